"""Generation against a loop without a cache that reads everything again for every token."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation import engine, fused
from xrec_jax.llm.generation import sampler as sampler_module
from xrec_jax.llm.generation import schedule as schedule_module
from xrec_jax.llm.generation.sampler import Sampler
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Request
from xrec_jax.llm.model import layers as layers_module
from xrec_jax.llm.model import llama, lora
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama, SoftPrompt
from xrec_jax.parallel.mesh import RULES, put_sharded, sharding, use_mesh

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=64,
    rope_theta=100.0,
    initializer_range=0.5,
)
MODEL = Llama(CONFIG)
WIDTH = 64
HOT = Sampling(temperature=1.1, top_k=20, top_p=0.95)
PENALTY = Sampling(repetition_penalty=1.8)


@functools.cache
def boxed():
    return jax.jit(MODEL.init)(jax.random.key(0))


@functools.cache
def params():
    return nn.unbox(boxed())


@functools.cache
def adapter():
    made = lora.init(lora.LoraConfig(rank=3, alpha=6.0), CONFIG, jax.random.key(1))
    rng = np.random.default_rng(8)
    moved = jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), made.params
    )
    return made.replace(params=moved)


@functools.cache
def requests():
    """Mixed lengths and limits; most share one of two beginnings."""
    rng = np.random.default_rng(4)
    heads = [rng.integers(0, 64, n).tolist() for n in (19, 17)]
    made = []
    for number, tail in enumerate(rng.integers(1, 9, 13)):
        start = heads[number % 2] if number % 4 != 3 else []
        ids = start + rng.integers(0, 64, tail).tolist()
        made.append(Request(ids, int(rng.integers(1, 24)), seed=1000 + number))
    made[2] = dataclasses.replace(made[2], max_new_tokens=1)
    made[5] = dataclasses.replace(made[5], ids=made[1].ids, max_new_tokens=23)
    return made


@functools.cache
def last_logits():
    return jax.jit(MODEL.logits)


@functools.cache
def free_run(number, *, adapted=True, penalty=1.0, soft=None):
    """Greedy tokens and their log-probabilities, up to the limit, whatever they are."""
    request = soft_requests()[number] if soft else requests()[number]
    ids, out, log_probs = list(request.ids), [], []
    replaced = None
    if soft:
        places = np.array([request.soft_positions], np.int32)
        replaced = SoftPrompt(places, request.soft_vectors[None])
    for _ in range(request.max_new_tokens):
        row = np.zeros((1, WIDTH), np.int32)
        row[0, : len(ids)] = ids
        used = adapter() if adapted else None
        scores = last_logits()(params(), row, adapter=used, soft=replaced)[0, len(ids) - 1]
        scores = np.asarray(scores, np.float64)
        log_p = scores - np.log(np.sum(np.exp(scores - scores.max()))) - scores.max()
        for token in set(ids):
            scores[token] *= 1 / penalty if scores[token] > 0 else penalty
        ids.append(int(np.argmax(scores)))
        out.append(ids[-1])
        log_probs.append(log_p[ids[-1]])
    return out, log_probs


@functools.cache
def eos():
    """Two tokens that both end some of the answers, at different lengths, and not all of them."""
    count = len(requests())
    answers = [free_run(i)[0] for i in range(count)]
    pairs = []
    for one in range(64):
        for two in range(one + 1, 64):
            ends = [next((t for t in a if t in (one, two)), None) for a in answers]
            pairs.append((min(ends.count(one), ends.count(two), ends.count(None)), one, two))
    worst, *found = max(pairs)
    assert worst >= 2
    return tuple(found)


def cut(tokens, log_probs, ends):
    """What of a free run stays when `ends` end it."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1], log_probs[: i + 1], "eos"
    return tokens, log_probs, "length"


@functools.cache
def sampler(batch=3, **options):
    return Sampler(MODEL, params(), eos=eos(), batch=batch, **options)


def assert_equal(answers, which=None, ends=None, **options):
    which = range(len(requests())) if which is None else which
    for answer, number in zip(answers, which, strict=True):
        expected = cut(*free_run(number, **options), eos() if ends is None else ends)
        assert (answer.ids, answer.stop) == (expected[0], expected[2])
        np.testing.assert_allclose(answer.log_probs, expected[1], atol=2e-4)


OPTIONS = [
    dict(batch=1, refill=1),
    dict(batch=3),
    dict(batch=5, refill=2),
    dict(batch=16),
    dict(batch=3, schedule="static"),
    dict(batch=5, schedule="static", share_prefixes=False),
    dict(batch=5, refill=2, unstack_layers=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_uncached_loop(options):
    run = sampler(**options)
    answers = run.generate(requests(), adapter=adapter())
    assert_equal(answers)
    reasons = [answer.stop for answer in answers]
    assert {"eos", "length"} == set(reasons)
    assert {answer.ids[-1] for answer in answers if answer.stop == "eos"} == set(eos())
    assert run.work.new_tokens == sum(len(answer.ids) for answer in answers)
    read = run.work.prompt_tokens + run.work.shared_tokens
    assert read >= sum(len(request.ids) for request in requests())
    assert (run.work.shared_tokens > 0) == options.get("share_prefixes", True)
    if not run.work.shared_tokens:
        assert read == sum(len(request.ids) for request in requests())


def test_prompts_are_computed_as_many_at_once_as_the_processor_holds(monkeypatch):
    """Two prompts of 16 or 24 tokens at a time, however many rows are free."""
    sizes = []
    admit = engine.admit

    def counted(*args):
        sizes.append(args[6].ids.shape)  # traced once for each shape
        return admit(*args)

    monkeypatch.setattr(engine, "admit", counted)
    monkeypatch.setattr(sampler_module, "_CPU_ACTIVATION_BYTES", 48 * 4 * CONFIG.intermediate_size)
    schedule_module._compiled.cache_clear()
    try:
        run = Sampler(MODEL, params(), eos=eos(), batch=16)
        assert_equal(run.generate(requests(), adapter=adapter()))
    finally:
        schedule_module._compiled.cache_clear()
    assert sizes and all(count * width <= 48 or count == 1 for count, width in sizes)


@pytest.mark.parametrize(
    "targets", [lora.TARGETS, ("q", "v"), ("k", "up", "down"), ("o",)], ids=",".join
)
def test_joined_projections_change_no_answer(monkeypatch, targets):
    """Kernels of one input side by side, and the updates of some of them."""
    made = lora.init(lora.LoraConfig(rank=3, targets=targets), CONFIG, jax.random.key(1))
    moved = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), made)
    sizes = fused.shapes(params()["layers"])
    joined = fused.fuse_lora(moved.scaled()["layers"], sizes)
    kernels = fused.fuse(params()["layers"])
    assert kernels["attn"].keys() == {"qkv", "o"} and kernels["mlp"].keys() == {"gate_up", "down"}
    # One product of all that is joined, against one for each part.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, CONFIG.hidden_size)), jnp.float32)
    for name, (group, parts) in layers_module.FUSED.items():
        expected = []
        for part in parts:
            y = x @ params()["layers"][group][part]["kernel"][1]
            pair = moved.scaled()["layers"].get(group, {}).get(part)
            expected.append(y if pair is None else y + x @ pair["a"][1] @ pair["b"][1])
        y = x @ kernels[group][name]["kernel"][1]
        pair = joined.get(group, {}).get(name)
        assert (pair is None) == (not set(parts) & set(targets))
        y = y if pair is None else y + x @ pair["a"][1] @ pair["b"][1]
        np.testing.assert_allclose(y, jnp.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)
    ours = Sampler(MODEL, params(), eos=eos(), batch=5).generate(requests(), adapter=moved)
    monkeypatch.setattr(sampler_module, "_FUSED_BYTES", 0)
    plain = Sampler(MODEL, params(), eos=eos(), batch=5).generate(requests(), adapter=moved)
    for a, b in zip(ours, plain, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_prompts_of_a_deep_model_are_scanned(monkeypatch, dtype):
    """One compiled layer for all of them, which changes no answer."""
    model = Llama(CONFIG, dtype=dtype)
    weights = jax.tree.map(lambda x: x.astype(dtype), params())

    used = []
    scanned_layers = Llama._scanned
    monkeypatch.setattr(
        Llama, "_scanned", lambda *args: used.append(args[1]) or scanned_layers(*args)
    )

    def answers():
        schedule_module._compiled.cache_clear()
        run = Sampler(model, weights, eos=eos(), batch=3)
        assert ("scanned" in run._params) == model.scans_prompts
        return run.generate(requests(), adapter=adapter())

    unrolled = answers()
    assert not used
    monkeypatch.setattr(llama, "_UNROLLED", 0)
    try:
        scanned = answers()
    finally:
        schedule_module._compiled.cache_clear()
    assert used and all("scanned" in tree for tree in used)
    for a, b in zip(unrolled, scanned, strict=True):
        same = len(a.ids) if dtype == jnp.float32 else 1
        assert a.ids[:same] == b.ids[:same] and (same == 1 or len(a.ids) == len(b.ids))
        np.testing.assert_allclose(
            a.log_probs[:same], b.log_probs[:same], atol=2e-4 if dtype == jnp.float32 else 0.1
        )


def test_a_cpu_carries_a_wide_cache_for_a_narrow_model():
    """Answers of a bfloat16 model have the log-probabilities of its uncached logits."""
    model = Llama(CONFIG, dtype=jnp.bfloat16)
    assert model.cache_dtype == jnp.float32 and MODEL.cache_dtype == jnp.float32
    rows = engine.empty_rows(model, batch=2, slots=5, most=3, vocab=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(rows.caches)} == {jnp.dtype(jnp.float32)}
    ids = [int(token) for token in np.random.default_rng(3).integers(1, 64, 9)]
    (answer,) = Sampler(model, params(), eos=(), batch=1).generate([Request(ids, 6)])
    logits = model.logits(params(), jnp.asarray([ids + answer.ids]))[0, len(ids) - 1 : -1]
    expected = jax.nn.log_softmax(logits)[jnp.arange(6), jnp.asarray(answer.ids)]
    np.testing.assert_allclose(answer.log_probs, expected, atol=0.15)
    exact = MODEL.logits(params(), jnp.asarray([ids + answer.ids]))[0, len(ids) - 1 : -1]
    exact = jax.nn.log_softmax(exact)[jnp.arange(6), jnp.asarray(answer.ids)]
    np.testing.assert_allclose(answer.log_probs, exact, atol=0.15)


def test_base_adapter_and_back():
    """One sampler, several adapters, no state between calls."""
    run = sampler()
    for adapted in (False, True, False):
        answers = run.generate(requests(), adapter=adapter() if adapted else None)
        assert_equal(answers, adapted=adapted)


def test_repetition_penalty():
    answers = sampler().generate(requests(), sampling=PENALTY, adapter=adapter())
    assert_equal(answers, penalty=1.8)
    plain = [cut(*free_run(i), eos())[0] for i in range(len(requests()))]
    assert [answer.ids for answer in answers] != plain


def test_one_prompt():
    answers = sampler(batch=5, refill=2).generate(requests()[:1], adapter=adapter())
    assert_equal(answers, [0])


def test_nothing_to_do():
    assert sampler().generate([]) == []


def test_stream_gives_answers_as_they_finish():
    found = dict(sampler().stream(requests(), adapter=adapter()))
    assert_equal([found[i] for i in range(len(requests()))])


def test_ring_is_written_over_many_times():
    """Also: without any EOS."""
    run = Sampler(MODEL, params(), eos=(), batch=2)
    answers = run.generate(requests() * 8, adapter=adapter())
    assert run.work.steps > 5 * (32 + 24)  # places for prompts and answers
    assert {answer.stop for answer in answers} == {"length"}
    assert_equal(answers, [*range(len(requests()))] * 8, ends=())


def test_continuous_takes_fewer_steps():
    steps = {}
    for schedule in ("continuous", "static"):
        run = sampler(batch=3, schedule=schedule, share_prefixes=False)
        assert_equal(run.generate(requests(), adapter=adapter()))
        steps[schedule] = run.work.steps
    lengths = [len(cut(*free_run(i), eos())[0]) for i in range(len(requests()))]
    assert steps["continuous"] < steps["static"]
    # A step gives at most a token a row; the first of each answer comes with its prompt.
    assert steps["continuous"] >= (sum(lengths) - len(lengths)) / 3
    assert steps["static"] <= 5 * (max(lengths) - 1)


@pytest.mark.parametrize("schedule", ["static", "continuous"])
def test_batches_are_full_with_small_groups(schedule):
    """Pairs of prompts with a common beginning fill a batch together."""
    rng = np.random.default_rng(2)
    heads = [rng.integers(0, 64, 18).tolist() for _ in range(8)]
    pairs = [Request([*head, n], 12) for head in heads for n in range(2)]
    run = Sampler(MODEL, params(), eos=(), batch=16, schedule=schedule, refill=4)
    run.generate(pairs)
    assert run.work.shared_tokens == 16 * 18
    assert run.work.prompt_tokens == 8 * 18 + 16
    assert run.work.steps == 11


@pytest.mark.parametrize("check_every", [1, 5])
def test_stop_callback(check_every):
    run = sampler(check_every=check_every)
    seen = []

    def stop(ids):
        """Keeps two tokens of an answer whose third is even."""
        seen.append(len(ids))
        return 2 if len(ids) >= 3 and ids[2] % 2 == 0 else None

    answers = run.generate(requests(), adapter=adapter(), stop=stop)
    kinds = set()
    for number, answer in enumerate(answers):
        tokens, log_probs, reason = cut(*free_run(number), eos())
        if len(tokens) >= 3 and tokens[2] % 2 == 0:
            tokens, log_probs, reason = tokens[:2], log_probs[:2], "string"
        assert (answer.ids, answer.stop) == (tokens, reason)
        np.testing.assert_allclose(answer.log_probs, log_probs, atol=2e-4)
        kinds.add(reason)
    assert kinds == {"eos", "length", "string"} and seen
    assert run.work.new_tokens == sum(len(answer.ids) for answer in answers)


@functools.cache
def soft_requests():
    rng = np.random.default_rng(9)
    made = []
    for number, request in enumerate(requests()):
        length = len(request.ids)
        # None; from the beginning; within what prompts share, behind what is worth sharing.
        places = ((), {0, length - 1, length // 2}, {min(16, length - 1), length - 1})[number % 3]
        vectors = rng.normal(size=(len(places), 16)).astype(np.float32)
        given = dict(soft_positions=tuple(sorted(places)), soft_vectors=vectors)
        made.append(dataclasses.replace(request, **given))
    return made


def test_soft_prompts():
    run = sampler(batch=5, refill=2)
    answers = run.generate(soft_requests(), adapter=adapter())
    assert_equal(answers, soft=True)
    assert run.work.shared_tokens >= 3 * 16
    assert free_run(1)[0] != free_run(1, soft=True)[0]


def test_random_answers_do_not_depend_on_the_batch():
    run, count = sampler(batch=5, refill=2), len(requests())
    expected = run.generate(requests(), sampling=HOT, adapter=adapter())
    assert len({tuple(answer.ids) for answer in expected}) > 8
    moved = [dataclasses.replace(request, seed=request.seed + 1) for request in requests()]
    changed = run.generate(moved, sampling=HOT, adapter=adapter())
    assert sum(a.ids != b.ids for a, b in zip(changed, expected, strict=True)) > 8
    order = np.random.default_rng(1).permutation(count)
    for batch, which in ((run, range(count)[::-1]), (sampler(), order)):
        answers = batch.generate([requests()[i] for i in which], sampling=HOT, adapter=adapter())
        for i, answer in zip(which, answers, strict=True):
            assert answer.ids == expected[i].ids
            np.testing.assert_allclose(answer.log_probs, expected[i].log_probs, atol=2e-4)


def test_sharded_over_eight_devices():
    mesh = tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed()), mesh, RULES)
        placed = put_sharded(params(), specs)
        shared = put_sharded(adapter(), jax.tree.map(lambda _: sharding(mesh), adapter()))
        run = Sampler(MODEL, placed, eos=eos(), batch=8, refill=2)
        answers = run.generate(requests(), sampling=HOT, adapter=shared)
        with pytest.raises(UserError, match="batch=6 must be divisible by the 4 devices"):
            Sampler(MODEL, placed, eos=(), batch=6)
    alone = sampler(batch=5, refill=2).generate(requests(), sampling=HOT, adapter=adapter())
    for answer, expected in zip(answers, alone, strict=True):
        assert (answer.ids, answer.stop) == (expected.ids, expected.stop)
        np.testing.assert_allclose(answer.log_probs, expected.log_probs, atol=2e-4)


def soft(*positions, rows):
    vectors = None if rows is None else np.ones((rows, 16), np.float32)
    return Request([3, 4], 2, soft_positions=positions, soft_vectors=vectors)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        ("prompt 1 is empty", Request([], 3)),
        ("max_new_tokens=0 of prompt 1 must be positive", Request([1], 0)),
        ("prompt 1 has 60 tokens and may get 5 more, but the model takes 64", Request([1] * 60, 5)),
        ("prompt 1 holds token 64, outside the vocabulary of 64", Request([3, 64, 5], 2)),
        ("prompt 1 holds token -7", Request([3, -7, 5], 2)),
        ("soft_vectors", soft(0, rows=None)),
        ("soft_vectors", soft(0, 1, rows=1)),
        ("soft_positions", soft(2, rows=1)),
        ("soft_positions", soft(-1, rows=1)),
        ("seed", Request([3], 2, seed=-1)),
        ("seed", Request([3], 2, seed=2**32)),
    ],
)
def test_refused_request(message, request_):
    with pytest.raises(UserError) as error:
        sampler().generate([Request([1, 2], 1), request_])
    assert message in str(error.value) and "prompt 1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("schedule='sttic' is not valid; did you mean 'static'", dict(schedule="sttic")),
        ("batch=0 must be positive", dict(batch=0)),
        ("refill=-1", dict(refill=-1)),
        ("check_every=0", dict(check_every=0)),
    ],
)
def test_refused_option(message, options):
    with pytest.raises(UserError) as error:
        Sampler(MODEL, params(), eos=(), **options)
    assert message in str(error.value)


def test_longest_prompt_that_fits():
    ids = tuple(requests()[0].ids) * 4
    run = Sampler(MODEL, params(), eos=(), batch=1)
    (answer,) = run.generate([Request(ids[:63], 1)])
    assert answer.ids == [int(np.argmax(last_logits()(params(), np.array([ids[:64]]))[0, 62]))]
    assert run.work.steps == 0
