"""SASRec's layers, losses and shared negatives against NumPy loops."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.recommenders.test_models import make, random_params, source
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.data.packed_windows import PackedWindows
from xrec_jax.data.pipeline import Negatives, WindowRows
from xrec_jax.recommenders import blocks, candidates, losses, sasrec


def turned(x, position):
    """One head's features, each pair rotated as a complex number."""
    half = len(x) // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([pairs.real, pairs.imag])


def naive_transformer(model, params, history):
    """States after every item of one history, head by head and position by position."""
    pre, gated = model.block != "post_norm", model.block == "gated"
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, w):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]
        )

    x = p["item"]["embedding"][history]
    if model.positions == "learned":
        x = x + p["position"][: len(history)]
    x = x if pre else norm(x, p["norm"])
    for layer in range(model.layers):
        w, mixed = p[f"blocks_{layer}"], np.zeros_like(x)
        source = norm(x, w["attention_norm"]) if pre else x
        for h in range(model.heads):
            q, k, v = (source @ w[name][:, h] for name in "qkv")
            if model.positions == "rotary":
                q, k = (np.stack([turned(row, t) for t, row in enumerate(y)]) for y in (q, k))
            for t in range(len(history)):
                e = np.exp([q[t] @ k[s] / math.sqrt(model.dim / model.heads) for s in range(t + 1)])
                mixed[t] += (e / e.sum()) @ v[: t + 1] @ w["out"][h]
        if gated:
            mixed = mixed * sigmoid(x @ w["attention_gate"] + w["attention_gate_bias"])
        x = x + mixed if pre else norm(x + mixed, w["attention_norm"])
        source = norm(x, w["mlp_norm"]) if pre else x
        z = source @ w["up"]
        if gated:
            branch = source @ w["gate"]
            out = (branch * sigmoid(branch) * z) @ w["down"]
            x = x + out * sigmoid(x @ w["mlp_gate"] + w["mlp_gate_bias"])
        else:
            z = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
            x = x + z @ w["down"] if pre else norm(x + z @ w["down"], w["mlp_norm"])
    return norm(x, p["norm"]) if pre else x


LAYERS = [
    dict(),
    dict(block="pre_norm"),
    dict(block="gated"),
    dict(positions="rotary"),
    dict(block="gated", positions="rotary"),
]


@functools.cache
def sequence_case(**hparams):
    model = make("sasrec", dropout=0.0, **hparams)
    history = np.random.default_rng(4).integers(0, 61, (5, model.length)).astype(np.int32)
    states = jax.jit(lambda p, h: model.net.apply({"params": p}, h, None))
    last = jax.jit(lambda p, h, n: model.user_state(p, None, {"history": h, "length": n}))
    return model, random_params(model), history, states, last


@pytest.mark.parametrize("hparams", LAYERS)
def test_sasrec_states(hparams):
    model, params, history, states, _ = sequence_case(**hparams)
    expected = [naive_transformer(model, params, row) for row in history]
    np.testing.assert_allclose(states(params, history), expected, atol=2e-5)


@pytest.mark.parametrize("hparams", [LAYERS[0], LAYERS[-1]])
def test_sasrec_is_causal(hparams):
    _, params, history, states, _ = sequence_case(**hparams)
    before = np.asarray(states(params, history))
    for position in range(9):
        changed = history.copy()
        changed[:, position] = (changed[:, position] + 7) % 61
        after = np.asarray(states(params, changed))
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (np.abs(after[:, position:] - before[:, position:]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("hparams", [LAYERS[0], LAYERS[1], LAYERS[-1]])
def test_sasrec_last_state_ignores_padding(hparams):
    model, params, history, states, last = sequence_case(**hparams)
    length = np.array([9, 1, 4, 8, 2], np.int32)
    found = np.asarray(last(params, history, length))
    full = np.asarray(states(params, history))
    np.testing.assert_allclose(found, full[np.arange(5), length - 1], atol=2e-6)
    padded = np.where(np.arange(9) < length[:, None], history, (history + 13) % 61)
    np.testing.assert_array_equal(last(params, padded, length), found)
    short = [
        naive_transformer(model, params, row[:n])[-1]
        for row, n in zip(history, length, strict=True)
    ]
    np.testing.assert_allclose(found, short, atol=2e-5)


OWN = [  # objective, negatives_per, sampler, logq
    ("full_softmax", "", "", True),
    ("sampled_softmax", "", "", True),
    ("sampled_softmax", "position", "uniform", True),
    ("sampled_softmax", "window", "popularity", False),
    ("bce", "", "", True),
    ("bce", "window", "popularity", True),
    ("gbce", "", "", True),
]
SHARED = [
    ("sampled_softmax", "batch", "uniform", True),
    ("sampled_softmax", "batch", "uniform", False),
    ("sampled_softmax", "batch", "popularity", True),
    ("sampled_softmax", "batch", "in_batch", True),
    ("bce", "batch", "uniform", True),
    ("gbce", "batch", "popularity", True),
]


@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize(("objective", "per", "sampler", "logq"), OWN + SHARED)
def test_sasrec_losses(objective, per, sampler, logq, context):
    _, params, _, states, _ = sequence_case()
    number = 17 if per == "batch" else 3
    model = make(
        "sasrec",
        dropout=0.0,
        objective=objective,
        negatives=number,
        negatives_per=per,
        sampler=sampler,
        logq=logq,
        calibration=0.6,
        context=context,
    )
    # Windows of the tiny world, some with fewer targets than a piece; collisions are made sure of.
    batch = {name: values[:11] for name, values in source(model)[0].items()}
    target, weight = batch["target"], batch["weight"]
    assert set(weight.sum(1).tolist()) - {0.0, float(9 - context)} and weight.sum(1).max() > 3
    if "negative" in batch:
        batch["negative"][:, 0] = target[np.arange(11), weight.argmax(1)]
    events = np.append(np.arange(61), np.random.default_rng(6).integers(0, 61, 90))
    frozen = dict(model.frozen(np.zeros(151, int), events).arrays)
    key = jax.random.key(0)
    loss, _ = jax.jit(model.loss)(params, frozen, batch, key)

    q = np.bincount(events, minlength=61) / 151
    if sampler == "uniform" or (not sampler and objective != "sampled_softmax"):
        q = np.full(61, 1 / 61)
    table = np.asarray(params["item"]["embedding"])[:61]
    scores = np.asarray(states(params, batch["history"])) @ table.T
    shared = drawn_by(model, frozen, target, weight, key, context) if per == "batch" else None
    total = 0.0
    for b, t in zip(*np.nonzero(weight), strict=True):
        s, y = scores[b, t].astype(np.float64), target[b, t]
        if objective == "full_softmax":
            total += np.log(np.exp(s).sum()) - s[y]
            continue
        if shared is not None:
            drawn = shared
        elif model.negatives_per_row > 3:  # each target of a window has negatives of its own
            piece = batch["negative"][b].reshape(9 - context, 3)
            drawn = piece[t - min(weight[b].argmax(), context)]
        else:
            drawn = batch["negative"][b]
        others, count = drawn[drawn != y], len(drawn)
        if objective == "sampled_softmax":
            share = q[others] * count if logq else 1.0
            total += np.log(np.exp(s[y]) + (np.exp(s[others]) / share).sum()) - s[y]
            continue
        # Negatives of the batch that equal the target do not count; those of the host may.
        used = others if shared is not None else drawn
        terms = np.log1p(np.exp(s[used]))
        if objective == "bce":
            total += np.log1p(np.exp(-s[y])) + terms.mean()
        else:
            rate = number / 60
            power = rate * (0.6 * (1 - 1 / rate) + 1 / rate)
            total += (power * np.log1p(np.exp(-s[y])) + terms.sum()) / (len(used) + 1)
    np.testing.assert_allclose(loss, total / weight.sum(), rtol=2e-5)


def drawn_by(model, frozen, target, weight, key, context):
    """The shared negatives of a step, without those that fell on padding."""
    key = jax.random.fold_in(key, 1)
    if model.sampler == "uniform":
        return np.asarray(candidates.uniform(key, 17, 61).item)
    if model.sampler == "popularity":
        return np.asarray(candidates.popular(key, 17, frozen["upto"], frozen["log_q"]).item)
    if context:  # the loss sees the pieces only
        first = np.minimum((weight > 0).argmax(1), context)[:, None] + np.arange(9 - context)
        target, weight = (np.take_along_axis(x, first, 1) for x in (target, weight))
    found = candidates.in_batch(key, 17, target, weight, frozen["log_q"])
    real = np.isfinite(found.log_count)
    assert 5 < real.sum() < 17
    np.testing.assert_allclose(
        found.log_count[real], frozen["log_q"][found.item[real]] + math.log(real.sum()), rtol=1e-6
    )
    return np.asarray(found.item)[real]


@pytest.mark.parametrize("kind", ["softmax", "bce", "gbce"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradients_of_shared_negatives(monkeypatch, kind, chunk):
    """In chunks of positions the same as of the whole array at once."""
    rng = np.random.default_rng(3)
    rows, steps, dim, number = 3, 6, 5, 9
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * rows * number * chunk)
    states, own = (rng.normal(size=(rows, steps, dim)).astype(np.float32) for _ in range(2))
    vectors = rng.normal(size=(number, dim)).astype(np.float32)
    target = rng.integers(0, 12, (rows, steps)).astype(np.int32)
    weight = rng.choice([0.0, 0.25, 1.7], (rows, steps)).astype(np.float32)
    item = rng.integers(0, 12, number).astype(np.int32)
    item[0] = target[0, 0]
    log_count = np.log(rng.uniform(0.2, 3, number)).astype(np.float32)
    log_count[4] = np.inf  # a row that is none
    drawn = candidates.Candidates(jnp.asarray(item), jnp.asarray(log_count))
    loss = candidates.Loss(kind, power=0.3)

    def found(states, own, vectors):
        return candidates.summed_loss(loss, states, own, vectors, target, weight, drawn)

    def plain(states, own, vectors):
        total = 0.0
        for place in np.ndindex(rows, steps):
            keep = [n for n in range(number) if n != 4 and item[n] != target[place]]
            positive, scores = states[place] @ own[place], vectors[np.array(keep)] @ states[place]
            if kind == "softmax":
                shifted = jnp.exp(scores - log_count[np.array(keep)]).sum()
                value = jnp.log(jnp.exp(positive) + shifted) - positive
            elif kind == "bce":
                value = jnp.log1p(jnp.exp(-positive)) + jnp.log1p(jnp.exp(scores)).mean()
            else:
                value = 0.3 * jnp.log1p(jnp.exp(-positive)) + jnp.log1p(jnp.exp(scores)).sum()
                value = value / (len(keep) + 1)
            total += weight[place] * value
        return total

    arrays = states, own, vectors
    value, grads = jax.value_and_grad(lambda *x: 0.7 * found(*x), (0, 1, 2))(*arrays)
    expected, expected_grads = jax.value_and_grad(lambda *x: 0.7 * plain(*x), (0, 1, 2))(*arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, rtol=2e-5, atol=2e-6)
    assert not np.asarray(grads[2])[4].any() and not np.asarray(grads[0])[weight == 0].any()


def test_draws_have_their_probabilities():
    key, number = jax.random.key(2), 40_000
    counts = np.array([3, 0, 5, 1, 11])
    log_q = np.log(np.maximum(counts, 1e-30) / 20).astype(np.float32)
    upto = np.cumsum(counts).astype(np.int32)
    drawn = candidates.popular(key, number, jnp.asarray(upto), jnp.asarray(log_q))
    share = np.bincount(drawn.item, minlength=5) / number
    np.testing.assert_allclose(share, counts / 20, atol=4 * 0.5 / math.sqrt(number))
    assert share[1] == 0
    np.testing.assert_allclose(drawn.log_count, np.log(counts[drawn.item] / 20 * number), rtol=1e-5)
    drawn = candidates.uniform(key, number, 5)
    share = np.bincount(drawn.item, minlength=5) / number
    np.testing.assert_allclose(share, 0.2, atol=4 * 0.4 / math.sqrt(number))
    np.testing.assert_allclose(drawn.log_count, math.log(number / 5), rtol=1e-6)


def test_gbce_power_by_hand():
    # 256 of 12,100 other items: a = .0212.
    assert losses.gbce_power(0.75, 256, 12_101) == pytest.approx(1 - 0.75 * (1 - 256 / 12_100))
    assert losses.gbce_power(0.0, 5, 100) == 1.0
    assert losses.gbce_power(1.0, 5, 101) == pytest.approx(0.05)
    assert losses.gbce_power(1.0, 500, 101) == 1.0  # more draws than items


def test_rotation_depends_on_distances_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 4, 2, 6)), jnp.float32) for _ in range(2))
    places = np.arange(4)[None]

    def scores(shift):
        return jnp.einsum(
            "bthk,bshk->bhts", blocks.rotate(q, places + shift), blocks.rotate(k, places + shift)
        )

    np.testing.assert_allclose(scores(0), scores(31), atol=1e-5)
    assert np.abs(scores(0) - jnp.einsum("bthk,bshk->bhts", q, k)).max() > 0.1


def test_the_loss_draws_anew_at_every_step():
    _, params, _, _, _ = sequence_case()
    model = make(
        "sasrec",
        dropout=0.0,
        objective="sampled_softmax",
        negatives_per="batch",
        negatives=9,
        sampler="uniform",
    )
    batch = source(model)[0]
    values = [
        float(jax.jit(model.loss)(params, {}, batch, jax.random.key(n))[0]) for n in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    "hparams", [dict(), dict(block="gated", positions="rotary"), dict(context=4)]
)
def test_packed_windows_are_what_they_are_alone(hparams):
    """States by the naive transformer of each window; loss and gradient of all of them at once."""
    model, params, _, _, _ = sequence_case(**hparams)
    packed = dataclasses.replace(model, packing=25)
    events = [3, 14, 2, 9, 31, 6, 1, 8, 5, 4, 12]
    user = np.repeat(np.arange(len(events), dtype=np.int32), events)
    item = np.random.default_rng(7).integers(0, 61, len(user)).astype(np.int32)
    histories = Histories.of([Interactions(user, item)], len(events))
    none = Negatives(histories, 61, per_row=0, sampling="uniform", seed=0)
    windows = WindowRows.of(histories, none, length=model.length, context=model.context, seed=0)
    packs = PackedWindows.of(windows, 25)
    alone = windows.rows(2, np.arange(windows.num_rows))
    batch = packs.rows(2, np.arange(packs.num_rows))
    states = jax.jit(
        lambda p, b: packed.net.apply(
            {"params": p}, b["history"], None, False, (b["segment"], b["place"])
        )
    )(params, batch)
    for row in range(packs.num_rows):
        for segment in range(1, batch["segment"][row].max() + 1):
            here = batch["segment"][row] == segment
            expected = naive_transformer(model, params, batch["history"][row][here])
            np.testing.assert_allclose(states[row][here], expected, atol=2e-5)

    def graded(model, batch):
        loss = jax.jit(jax.value_and_grad(lambda p: model.loss(p, {}, batch, jax.random.key(0))[0]))
        return loss(params)

    one, other = graded(model, alone), graded(packed, batch)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one[1], other[1])
    with pytest.raises(AssertionError):  # the windows must not see each other
        mixed = graded(packed, {**batch, "segment": np.minimum(batch["segment"], 1)})
        np.testing.assert_allclose(one[0], mixed[0], rtol=1e-5)


@pytest.mark.parametrize("negatives_per", ["batch", "window"])
def test_shares_of_the_latest_windows(negatives_per):
    """In a batch shares are those of its targets; a window draws from all events."""
    sizes = dict(length=3, objective="sampled_softmax", negatives_per=negatives_per)
    model = make("sasrec", windows="latest", sampler="popularity", context=1, **sizes)
    user, item = np.repeat([0, 2, 3], [1, 5, 2]), np.array([7, 7, 7, 7, 1, 2, 3, 2])
    kept = item if negatives_per == "window" else [7, 1, 2, 3, 2]
    log_q = model.frozen(user, item).arrays["log_q"]
    np.testing.assert_allclose(
        np.exp(log_q), np.bincount(kept, minlength=len(log_q)) / len(kept), atol=1e-9
    )


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (dict(packing=8), "packing=8 must be 0 or at least length=9"),
        (dict(packing=-1), "packing=-1"),
        (dict(packing=20, objective="bce"), "objective='bce' needs negatives_per='batch'"),
        (dict(sampler="in_batch", objective="sampled_softmax"), "needs negatives_per='batch'"),
        (dict(negatives_per="windows"), "did you mean 'window'"),
        (dict(windows="last"), "windows='last'"),
        (dict(item_init="cooccurence"), "did you mean 'cooccurrence'"),
        (dict(block="gatd"), "did you mean 'gated'"),
        (dict(positions="rotray"), "did you mean 'rotary'"),
        (dict(calibration=1.5), "calibration=1.5"),
        (dict(positions="rotary", dim=18, heads=6), "dim / heads"),
        (dict(logq="yes"), "logq='yes'"),
    ],
)
def test_sasrec_values_that_are_refused(hparams, message):
    with pytest.raises(UserError, match=message):
        make("sasrec", **hparams)


def test_sasrec_in_bfloat16_is_close():
    model, params, history, _, last = sequence_case()
    half = make("sasrec", dropout=0.0, dtype="bfloat16")
    batch = {"history": history, "length": np.full(5, 9, np.int32)}
    found = jax.jit(lambda p, b: half.user_state(p, None, b))(params, batch).astype(np.float32)
    expected = last(params, history, batch["length"])
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    batch = {"history": history, "target": history[::-1], "weight": np.ones((5, 9), np.float32)}
    losses = [jax.jit(m.loss)(params, {}, batch, jax.random.key(0))[0] for m in (model, half)]
    assert losses[1].dtype == jnp.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_sasrec_multiplies_in_bfloat16():
    model = make("sasrec", dtype="bfloat16", dropout=0.0)
    params = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(
        lambda p: model.net.apply({"params": p}, np.zeros((2, 9), np.int32), None)
    )(params)
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 8 * model.layers
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}


def test_sasrec_drops_in_training_only():
    model, params, history, _, last = sequence_case()
    dropping = make("sasrec", dropout=0.4)
    length = np.array([9, 1, 4, 8, 2], np.int32)
    found = dropping.user_state(params, None, {"history": history, "length": length})
    np.testing.assert_allclose(found, last(params, history, length), atol=2e-6)
    batch = {"history": history, "target": history[::-1], "weight": np.ones((5, 9), np.float32)}
    losses = [
        float(loss(params, {}, batch, jax.random.key(key))[0])
        for loss in (jax.jit(model.loss), jax.jit(dropping.loss))
        for key in (0, 0, 1)
    ]
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == losses[4] != losses[5]


@pytest.mark.parametrize("length", [8, 9, 50])
def test_sasrec_drops_attention_weights_at_every_length(monkeypatch, length):
    shapes = []
    for module in (sasrec, blocks):
        monkeypatch.setattr(
            module, "dropout", lambda x, rate, key: shapes.append((x.shape, rate, key is None)) or x
        )
    model = make("sasrec", length=length, dropout=0.3)
    batch = {
        "history": np.zeros((2, length), np.int32),
        "target": np.zeros((2, length), np.int32),
        "weight": np.ones((2, length), np.float32),
    }
    params = jax.eval_shape(lambda k: nn.unbox(model.init(k)), jax.random.key(0))
    shapes.clear()
    jax.eval_shape(lambda p: model.loss(p, {}, batch, jax.random.key(0)), params)
    assert all(rate == 0.3 and not off for _, rate, off in shapes)
    attention = [shape for shape, _, _ in shapes if len(shape) == 4]
    assert attention == [(2, 2, length, length)] * 2
    assert len(shapes) - len(attention) == 1 + 2 * 2  # embedding, and two branches a layer
