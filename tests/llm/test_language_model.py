"""`load_llm` and `LanguageModel`: logits, answers in any company, adapters, stop strings."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import xrec_jax
from tests import tiny
from tests.llm import models
from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation.stops import Stops
from xrec_jax.llm.io import bpe
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.peft_io import Base, save_adapter
from xrec_jax.llm.io.tokenizer import SOFT
from xrec_jax.llm.language_model import LanguageModel
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.parallel.mesh import use_mesh

TEXTS = ["the cat likes the small café by the river", "why? because it is near. "] * 6
ROWS = [[5, 9, 300, 12, 7], [1, 2], [80, 81, 82, 83, 84, 85, 86]]
CHAT = [{"role": "user", "content": "the cat?"}]
RECORD = {"text", "tokens", "log_prob", "stop", "ids", "log_probs"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model of one layer with its tokenizer, and two adapters beside it."""
    folder = tmp_path_factory.mktemp("lm")
    path = tiny.llama_directory(folder / "model", TEXTS, num_layers=1)
    config = open_model(path).config
    for number, name in enumerate(("one", "two"), start=1):
        fresh = lora.init(LoraConfig(rank=2, alpha=4.0), config, jax.random.key(number))
        changed = jax.tree.map(lambda x, n=number: x + 0.1 * n, fresh)
        save_adapter(folder / name, changed, base=Base(str(path)))
    return path


@pytest.fixture(scope="module")
def lm(directory):
    """The model with both adapters."""
    folder = directory.parent
    found = {name: folder / name for name in ("one", "two")}
    return xrec_jax.load_llm(directory, found, batch=4)


@functools.cache
def reference(lm, name=None):
    """Logits of `ROWS`, one at a time, without any padding."""
    return [
        np.asarray(lm.model.logits(lm.params, np.array([row]), adapter=lm.adapter(name)))[0]
        for row in ROWS
    ]


# Logits


@pytest.mark.parametrize("name", [None, "one", "two"])
def test_logits_are_those_of_every_row_alone(lm, name):
    found = lm.logits(ROWS, adapter=name)
    assert found.shape == (3, 7, lm.model.config.vocab_size) and found.dtype == np.float32
    for row, expected in zip(np.asarray(found), reference(lm, name), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=2e-5)


def test_adapters_differ_from_the_base_and_from_each_other(lm):
    base, one, two = (np.asarray(lm.logits(ROWS[:1], adapter=n)) for n in (None, "one", "two"))
    assert np.abs(base - one).max() > 0.1 < np.abs(one - two).max()
    again = np.asarray(lm.logits(ROWS[:1], adapter=None))
    np.testing.assert_array_equal(base, again)


def test_an_array_of_ids_gives_what_lists_give(lm):
    ids = np.array([row[:2] for row in ROWS], np.int32)
    found = np.asarray(lm.logits(ids, adapter=None))
    assert found.shape == (3, 2, lm.model.config.vocab_size)
    np.testing.assert_array_equal(found, lm.logits(ids.tolist(), adapter=None))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "at least one token"),
        ([[]], "at least one token"),
        ([[1, 2], [3, 320]], "row 1"),
        ([[-1]], "row 0"),
        ([[1] * 257], "257 tokens, but the model takes 256"),
        ([1, 2, 3], "row"),
        (["ab"], "row 0"),
        ([[1.5, 2.0]], "row 0"),
        ([[True]], "row 0"),
        ([[[1], [2, 3]]], "row 0"),
        (None, "list of rows"),
        (b"ab", "list of rows"),
        (7, "list of rows"),
    ],
)
def test_logits_refuse_what_is_no_row_of_ids(lm, rows, named):
    with pytest.raises(UserError, match=named):
        lm.logits(rows, adapter=None)


# Adapters


def test_which_adapter_is_meant(lm, directory):
    assert lm.adapter(None) is None
    with pytest.raises(UserError, match="no adapter 'default'; valid: one, two"):
        lm.logits(ROWS)
    with pytest.raises(UserError, match="no adapter 'thre'"):
        lm.generate(["a"], adapter="thre")
    bare = LanguageModel(lm.model, lm.params, lm.tokenizer)
    assert bare.adapter("default") is None
    single = LanguageModel(lm.model, lm.params, lm.tokenizer, adapters={"any": lm.adapters["two"]})
    assert single.adapter("default") is lm.adapters["two"]
    with pytest.raises(UserError, match="no adapter 'one'"):
        bare.adapter("one")


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_one_adapter_is_the_default(lm, directory, kind):
    alone = xrec_jax.load_llm(kind(directory), kind(directory.parent / "one"))
    np.testing.assert_array_equal(
        *(np.asarray(m.logits(ROWS, adapter=n)) for m, n in ((alone, "default"), (lm, "one")))
    )


# Answers


def test_answers_are_records(lm):
    records = lm.generate(["the cat", CHAT, ROWS[0]], max_new_tokens=5, adapter="one")
    assert len(records) == 3
    for record in records:
        assert record.keys() == RECORD
        assert record["tokens"] == len(record["ids"]) == len(record["log_probs"]) <= 5
        assert record["log_prob"] == pytest.approx(sum(record["log_probs"]), rel=1e-6)
        assert record["text"] == lm.tokenizer.decode(record["ids"])
        ended = record["ids"][-1] in lm.tokenizer.eos_ids
        assert record["stop"] == ("eos" if ended else "length")
        json.dumps(record)
    assert lm.generate([], adapter=None) == []


def test_greedy_answers_follow_the_logits(lm):
    record = lm.generate([ROWS[0]], max_new_tokens=4, adapter="two")[0]
    whole = [*ROWS[0], *record["ids"]]
    logits = np.asarray(lm.logits([whole], adapter="two"))[0, len(ROWS[0]) - 1 : -1]
    assert logits.argmax(axis=-1).tolist() == record["ids"]
    log_p = jax.nn.log_softmax(logits)
    expected = [float(log_p[k, token]) for k, token in enumerate(record["ids"])]
    assert record["log_probs"] == pytest.approx(expected, abs=1e-5)


def test_a_prompt_is_text_messages_or_ids(lm):
    chat, ids = lm.tokenizer.prompt(CHAT), lm.tokenizer.prompt("the cat?")
    assert chat == ids  # a text goes through the chat template, where there is one
    plain = lm.tokenizer.prompt("the cat?", template=False)
    assert plain != ids
    given = lm.generate([CHAT, "the cat?", ids], max_new_tokens=4, adapter=None)
    assert given[0] == given[1] == given[2]
    bare = lm.generate(["the cat?", plain], max_new_tokens=4, adapter=None, template=False)
    assert bare[0] == bare[1] != given[0]


OPTIONS = dict(max_new_tokens=6, temperature=1.0, adapter="one")


def test_an_answer_depends_on_prompt_and_seed_not_on_company(lm):
    seeds = [7, 8, 9, 7, 2, 4]
    prompts = [ROWS[0], ROWS[1], ROWS[0], ROWS[0], ROWS[2], ROWS[1]]
    together = lm.generate(prompts, seed=seeds, **OPTIONS)
    assert together[0] == together[3] and together[0]["ids"] != together[2]["ids"]
    for k in (1, 2):
        alone = lm.generate([prompts[k]], seed=[seeds[k]], **OPTIONS)[0]
        assert alone["ids"] == together[k]["ids"]
        assert alone["log_probs"] == pytest.approx(together[k]["log_probs"], abs=1e-5)


def test_one_seed_draws_by_place(lm):
    same = [ROWS[0]] * 3
    first, again, other = (lm.generate(same, seed=seed, **OPTIONS) for seed in (0, 0, 1))
    assert first == again
    assert len({tuple(record["ids"]) for record in first + other}) == 6


def test_limits_by_prompt(lm):
    records = lm.generate([ROWS[0]] * 3, max_new_tokens=[1, 3, 2], adapter="one")
    assert [record["tokens"] for record in records] == [1, 3, 2]
    assert records[1]["ids"][:2] == records[2]["ids"]


def test_stop_strings_cut_the_text(lm):
    whole = lm.generate([ROWS[0]], max_new_tokens=12, adapter="one")[0]
    assert whole["stop"] == "length" and len(whole["text"]) > 6
    end = whole["text"][4:6]
    place = whole["text"].index(end)
    record = lm.generate([ROWS[0]], max_new_tokens=12, adapter="one", stop=["@@", end])[0]
    assert (record["text"], record["stop"]) == (whole["text"][:place], "string")
    assert record["ids"] == whole["ids"][: record["tokens"]] and record["tokens"] < 12
    assert end in lm.tokenizer.decode(record["ids"])
    assert end not in lm.tokenizer.decode(record["ids"][:-1])
    unstopped = lm.generate([ROWS[0]], max_new_tokens=12, adapter="one", stop=["@@"])[0]
    assert unstopped == whole


def test_a_special_token_may_be_a_stop_text(lm):
    """The answer's text leaves it out, so it is looked for among the tokens."""
    tokenizer, spelled = lm.tokenizer, bpe.ROLES[1]
    special = tokenizer.encode(spelled, bos=False)
    assert len(special) == 1
    letters = tokenizer.encode("the", bos=False)
    ids = [*letters, *special, *letters, *tokenizer.encode("x", bos=False)]
    for texts, kept, text in (
        ([spelled], len(letters) + 1, "the"),
        ([spelled + "t"], len(letters) + 2, "the"),
        (["x"], len(ids), "thethe"),
        (["x", spelled], len(letters) + 1, "the"),
        (["h"], None, "t"),
        (["@"], None, "thethex"),
    ):
        stops = Stops(texts, tokenizer)
        if kept is not None:
            assert stops.keep(ids) == kept
        assert stops.cut(ids) == text
    assert Stops(["@"], tokenizer).keep(ids) is None
    end = tokenizer.decode_whole([tokenizer.eos_id])
    assert not Stops([end], tokenizer) and not Stops(None, tokenizer) and not Stops([], tokenizer)


def test_numbers_of_numpy_are_numbers(lm):
    plain = lm.generate([ROWS[0]], max_new_tokens=4, seed=5, adapter=None)
    other = lm.generate(
        np.array([ROWS[0]]),
        max_new_tokens=np.int64(4),
        temperature=np.float64(0.0),
        top_k=np.int32(0),
        seed=np.uint8(5),
        stop=None,
        adapter=None,
    )
    assert other == plain


def test_soft_prompts_stand_in_for_their_tokens(lm):
    """Vectors equal to embeddings of tokens give the answer of those tokens."""
    soft = lm.tokenizer.soft_id
    assert lm.tokenizer.encode(f"a{SOFT}b", bos=False).count(soft) == 1
    table = np.asarray(lm.params["embed"]["table"])
    hard = [[5, 9, 300, 12, 7], [40, 41, 42]]
    prompts = [[5, soft, soft, 12, 7], [soft, 41, 42]]
    vectors = [table[[9, 300]], table[[40]]]
    expected = lm.generate(hard, max_new_tokens=4, adapter="one")
    found = lm.generate(prompts, max_new_tokens=4, adapter="one", soft=vectors)
    assert [r["ids"] for r in found] == [r["ids"] for r in expected]
    moved = lm.generate(prompts, max_new_tokens=4, adapter="one", soft=[-v for v in vectors])
    assert [r["log_probs"] for r in moved] != [r["log_probs"] for r in found]
    for wrong in (
        [vectors[0][:1], vectors[1]],
        [vectors[0][:, :3], vectors[1]],
        [vectors[0][0]] * 2,
    ):
        with pytest.raises(UserError, match="prompt 0 has 2 soft tokens of 16 features"):
            lm.generate(prompts, soft=wrong, adapter="one")


GENERATE = {
    "no token": (dict(prompts=[[]]), "prompt 0 is empty"),
    "unknown token": (dict(prompts=[[5], [999]]), "prompt 1 holds token 999"),
    "negative token": (dict(prompts=[[-3, 4]]), "prompt 0"),
    "too long": (dict(prompts=[[5] * 250]), "prompt 0 has 250 tokens"),
    "no new token": (dict(max_new_tokens=0), "max_new_tokens=0"),
    "negative temperature": (dict(temperature=-1.0), "temperature=-1.0"),
    "top_p 0": (dict(top_p=0.0), "top_p=0.0"),
    "top_k negative": (dict(top_k=-1), "top_k=-1"),
    "min_p above 1": (dict(min_p=2.0), "min_p=2.0"),
    "penalty 0": (dict(repetition_penalty=0.0), "repetition_penalty=0.0"),
    "limits of another number": (
        dict(max_new_tokens=[1, 2, 3]),
        "max_new_tokens has 3 values for 1",
    ),
    "seeds of another number": (dict(seed=[1, 2]), "seed has 2 values for 1"),
    "soft of another number": (dict(soft=[]), "soft has 0 values for 1"),
    "a text, not a list": (dict(prompts="the cat"), "prompts"),
    "a conversation, not a list of them": (dict(prompts=CHAT), "prompt"),
    "stop is a text": (dict(stop="ab"), "stop"),
    "stop on nothing": (dict(stop=[""]), "stop"),
    "seed out of range": (dict(seed=[-1]), "seed"),
    "no role": (dict(prompts=[[{"content": "x"}]]), "prompt 0: .*role"),
    "no prompts": (dict(prompts=None), "prompts must be a list.* not NoneType"),
    "bytes, not a list": (dict(prompts=b"the cat"), "prompts must be a list.* not bytes"),
    "a prompt of bytes": (dict(prompts=["a", b"the"]), "prompt 1 is of type bytes"),
    "a prompt that is none": (dict(prompts=["a", None]), "prompt 1 is of type NoneType"),
    "a prompt that is a number": (dict(prompts=[5]), "prompt 0 is of type int"),
    "tokens of floats": (dict(prompts=[[5.0, 9.5]]), "prompt 0: token=5.0 must be a whole number"),
    "tokens of truth values": (dict(prompts=[[True]]), "prompt 0: token=True"),
    "tokens of texts": (dict(prompts=[["5", "9"]]), "prompt 0: token='5'"),
    "tokens in lists": (dict(prompts=[[[5], [9, 9]]]), r"prompt 0: token=\[5\]"),
    "half a character": (dict(prompts=["a", "b\ud83d"]), "prompt 1: .*half a surrogate pair"),
    "messages and something else": (dict(prompts=[[CHAT[0], "b"]]), "prompt 0: messages: number 1"),
    "limit none": (dict(max_new_tokens=None), "max_new_tokens=None must be a whole number"),
    "limit a float": (dict(max_new_tokens=8.0), "max_new_tokens=8.0 must be a whole number"),
    "limits with a float": (dict(max_new_tokens=[8.5]), r"max_new_tokens\[0\]=8.5"),
    "limit true": (dict(max_new_tokens=True), "max_new_tokens=True"),
    "seed none": (dict(seed=None), "seed=None must be a whole number"),
    "seed a float": (dict(seed=0.5), "seed=0.5"),
    "seeds of texts": (dict(seed=["1"]), r"seed\[0\]='1'"),
    "temperature none": (dict(temperature=None), "temperature=None must be a finite number"),
    "temperature a text": (dict(temperature="hot"), "temperature='hot'"),
    "temperature nan": (dict(temperature=float("nan")), "temperature=nan"),
    "temperature infinite": (dict(temperature=float("inf")), "temperature=inf"),
    "top_k a float": (dict(top_k=2.5), "top_k=2.5 must be a whole number"),
    "top_p none": (dict(top_p=None), "top_p=None"),
    "min_p nan": (dict(min_p=float("nan")), "min_p=nan"),
    "penalty infinite": (dict(repetition_penalty=float("inf")), "repetition_penalty=inf"),
    "stop a number": (dict(stop=5), "stop=5 must be a list of texts"),
    "stop on bytes": (dict(stop=[b"ab"]), "must be a text, not bytes"),
    "stop on none": (dict(stop=[None]), "must be a text, not NoneType"),
    "stop on half a character": (dict(stop=["\ud83d"]), "half a surrogate pair"),
    "template a text": (dict(template="yes"), "template='yes' must be True, False or None"),
    "adapter a list": (dict(adapter=["one"]), r"adapter=\['one'\] must be a name"),
    "soft a number": (dict(soft=5), "soft has type int"),
}


@pytest.mark.parametrize("case", GENERATE.values(), ids=GENERATE.keys())
def test_generate_refuses(lm, case):
    changed, named = case
    with pytest.raises(UserError, match=named):
        lm.generate(**{"prompts": [[5, 9]], "max_new_tokens": 8, "adapter": None} | changed)


# Loading


def test_dtype_and_quantisation(directory, lm):
    exact = np.asarray(lm.logits(ROWS, adapter=None))
    small = xrec_jax.load_llm(directory, dtype="bfloat16", quantization="int8")
    assert small.params["embed"]["table"].dtype == "bfloat16"
    found = np.asarray(small.logits(ROWS))
    assert found.dtype == np.float32 and found.shape == exact.shape
    real = [slice(len(row)) for row in ROWS]
    error = max(np.abs(a[r] - b[r]).max() for a, b, r in zip(found, exact, real, strict=True))
    assert 0 < error < 0.1 * np.abs(exact).max()


def test_on_a_mesh(directory, lm):
    """Parameters split over eight devices, any number of rows: the same logits and answers."""
    mesh = tiny.mesh(8, fsdp=2, tensor=2)
    with use_mesh(mesh):
        split = xrec_jax.load_llm(directory, directory.parent / "one", mesh=mesh, batch=4)
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(split.params)} == {8}
        for found, expected in zip(
            np.asarray(split.logits(ROWS)), reference(lm, "one"), strict=True
        ):
            np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=5e-5)
        answers = split.generate(ROWS, max_new_tokens=3)
    for found, expected in zip(
        answers, lm.generate(ROWS, max_new_tokens=3, adapter="one"), strict=True
    ):
        assert found["ids"] == expected["ids"]


def test_a_mesh_that_does_not_divide_is_named(directory, tmp_path):
    odd = tiny.llama_directory(tmp_path / "odd", TEXTS, num_layers=1, intermediate_size=23)
    with pytest.raises(UserError, match=r"layers/mlp/\w+/kernel.* 23.*tensor"):
        xrec_jax.load_llm(odd, mesh=tiny.mesh(8, fsdp=2, tensor=2))


def truncated(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def other(path):
    models.rewrite(path / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")


def smaller(path):
    shutil.rmtree(path)
    models.write(path, models.CONFIG)
    for file in path.with_name("model").glob("token*"):
        shutil.copy(file, path)


def untold(path):
    for file in path.glob("token*"):
        file.unlink()


DAMAGES = {
    "missing": (shutil.rmtree, "no such directory"),
    "empty": (emptied, "no language model"),
    "unknown architecture": (other, "MistralForCausalLM"),
    "truncated": (truncated, "model.safetensors"),
    "tokenizer of another model": (smaller, "do not belong together"),
    "no tokenizer": (untold, "no tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_directory_that_is_no_model_is_named(case, directory, tmp_path):
    damage, named = case
    shutil.copytree(directory, tmp_path / "model")
    copy = shutil.copytree(directory, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=named) as caught:
        xrec_jax.load_llm(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


OPTIONS_OF_LOADING = {
    "dtype": (dict(dtype="float46"), "dtype='float46'"),
    "quantisation": (dict(quantization="int4"), "int4"),
    "attention": (dict(attention="flsh"), "attention='flsh'"),
    "batch": (dict(batch=0), "batch=0"),
    "schedule": (dict(schedule="continous"), "did you mean 'continuous'"),
    "adapter that is none": (dict(adapter="nowhere"), "nowhere"),
}


@pytest.mark.parametrize("case", OPTIONS_OF_LOADING.values(), ids=OPTIONS_OF_LOADING.keys())
def test_options_of_loading(case, directory):
    """Told at the latest when the model is first used."""
    options, named = case
    with pytest.raises(UserError, match=named):
        xrec_jax.load_llm(directory, **options).generate([[5, 9]], max_new_tokens=2)


def test_an_adapter_of_another_model_is_refused(directory, tmp_path):
    config = open_model(directory).config
    wide = lora.init(LoraConfig(rank=2), tiny.LLAMA, jax.random.key(0))
    assert config.num_layers != tiny.LLAMA.num_layers
    save_adapter(tmp_path / "wide", Adapter(wide.params, wide.config))
    with pytest.raises(UserError, match="layer"):
        xrec_jax.load_llm(directory, tmp_path / "wide")
