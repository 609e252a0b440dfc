"""Hugging Face directories and imported checkpoints: exact round trips, any mesh, every damage."""

import dataclasses
import gc
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import runs
from tests.llm import models
from tests.llm.damage import config as _config
from tests.llm.damage import content as _bytes
from tests.llm.damage import header as _header
from tests.llm.damage import index as _index
from tests.llm.damage import put as _put
from tests.llm.damage import refused_unread
from tests.llm.damage import sharded as _sharded
from tests.llm.damage import weights as _weights
from tests.llm.models import CONFIG, rewrite, write
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import checkpoint, hf, hf_export
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.config import RopeScaling
from xrec_jax.llm.model.layout import abstract, build, logical_axes, parameters
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import make_mesh

KERNEL = "model.layers.1.mlp.up_proj.weight"
# Spelled out here, so that these tests stay whatever the rules table says.
SPLIT = {"embed": "fsdp", "heads": "tensor", "inner": "tensor", "vocab": "tensor"}


def shardings(mesh, config=CONFIG):
    """Features split over `fsdp`; heads, inner features and the vocabulary over `tensor`."""

    def split(parameter):
        parts = [SPLIT.get(axis) for axis in parameter.axes]
        return jax.sharding.NamedSharding(mesh, jax.P(*parts))

    return build(config, split)


def mesh():
    return make_mesh(2, 2, 2)


def expected(weights, config=CONFIG, dtype=None):
    """Our tree from the weights, done the plain way."""

    def leaf(parameter):
        parts = [weights[name] for _, name in parameter.hf_names()]
        parts = [part.T if parameter.transposed else part for part in parts]
        array = parts[0] if parameter.layers is None else np.stack(parts)
        return array.astype(dtype or array.dtype)

    return build(config, leaf)


def test_tree_has_the_documented_layout():
    shapes = {p.name: p.shape for p in parameters(CONFIG)}
    assert shapes == {
        "embed/table": (48, 16),
        "layers/attn_norm/scale": (3, 16),
        "layers/attn/q/kernel": (3, 16, 32),
        "layers/attn/k/kernel": (3, 16, 16),
        "layers/attn/v/kernel": (3, 16, 16),
        "layers/attn/o/kernel": (3, 32, 16),
        "layers/mlp_norm/scale": (3, 16),
        "layers/mlp/gate/kernel": (3, 16, 40),
        "layers/mlp/up/kernel": (3, 16, 40),
        "layers/mlp/down/kernel": (3, 40, 16),
        "final_norm/scale": (16,),
        "head/table": (48, 16),
    }
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(CONFIG, jnp.float32)))
    assert count == CONFIG.num_parameters
    axes = logical_axes(CONFIG)
    assert axes["layers"]["attn"]["o"]["kernel"] == ("layers", "heads", "embed")
    assert axes["layers"]["mlp"]["up"]["kernel"] == ("layers", "embed", "inner")


def test_the_model_asks_for_this_layout():
    made = nn.unbox(jax.eval_shape(Llama(CONFIG).init, jax.random.key(0)))
    assert jax.tree.structure(made) == jax.tree.structure(abstract(CONFIG, jnp.float32))
    wanted = jax.tree.leaves(abstract(CONFIG, jnp.float32))
    for leaf, other in zip(jax.tree.leaves(made), wanted, strict=True):
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_is_bit_exact(tmp_path, dtype, shards):
    weights = write(tmp_path, dtype=dtype, shards=shards)
    runs.assert_same_bits(hf.load_params(tmp_path, dtype=models.DTYPES[dtype]), expected(weights))
    assert hf.open_model(tmp_path).dtype == ("bfloat16" if dtype == "bfloat16" else "float32")


def test_small_reads_give_the_same(tmp_path, monkeypatch):
    weights = write(tmp_path)
    monkeypatch.setattr("xrec_jax.llm.io.tensorfile._CHUNK", 7 * 16 * 4)
    runs.assert_same_bits(hf.load_params(tmp_path), expected(weights))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_sharded_is_unsharded(tmp_path, dtype):
    weights = write(tmp_path / "hf", shards=2)
    model = hf.open_model(tmp_path / "hf")
    checkpoint.import_model(model, tmp_path / "imported")
    wanted = expected(weights, dtype=dtype)
    for source in (model, checkpoint.open_model(tmp_path / "imported")):
        for splits in (shardings(mesh()), shardings(make_mesh(1, 4, 2)), None):
            params = source.load_params(dtype=dtype, shardings=splits)
            runs.assert_same_bits(jax.device_get(params), wanted)
            if splits is not None:
                same = jax.tree.map(lambda p, s: p.sharding == s, params, splits)
                assert all(jax.tree.leaves(same))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    params = model.load_params(shardings=jax.tree.map(lambda _: single, wanted))
    assert params["embed"]["table"].devices() == {jax.devices()[3]}


def test_unequal_parts(imported, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=49)
    write(tmp_path, config)
    with pytest.raises(UserError, match=r"embed/table \[49, 16\] cannot be split .* mesh axes"):
        hf.load_params(tmp_path, shardings=shardings(mesh(), config))
    splits = shardings(mesh())
    splits["layers"]["attn_norm"]["scale"] = jax.sharding.NamedSharding(mesh(), jax.P("data"))
    with pytest.raises(UserError, match=r"layers/attn_norm/scale \[3, 16\] cannot be split"):
        checkpoint.restore_params(imported, shardings=splits)


def test_only_own_slices_are_read(tmp_path, monkeypatch):
    """With features split over two devices and heads over two, no read is of a whole stack."""
    write(tmp_path)
    sizes = []
    part = hf.HfModel.part

    def counted(model, parameter, index, dtype):
        found = part(model, parameter, index, dtype)
        sizes.append((parameter.name, found.size))
        return found

    monkeypatch.setattr(hf.HfModel, "part", counted)
    hf.load_params(tmp_path, dtype="bfloat16", shardings=shardings(mesh()))
    counts = {name: sum(1 for n, _ in sizes if n == name) for name, _ in sizes}
    assert counts["layers/attn/q/kernel"] == 4  # not 8: replicas share what was read
    assert dict(sizes)["layers/attn/q/kernel"] == 3 * 16 * 32 // 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", ["host", "devices"])
@pytest.mark.parametrize("limit", [hf_export.MAX_SHARD_BYTES, 3000])
def test_saved_is_loaded(tmp_path, tied, where, limit):
    config = dataclasses.replace(
        CONFIG, tie_embeddings=tied, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)
    )
    weights = models.tensors(config, "bfloat16")
    params = expected(weights, config)
    if where == "devices":
        params = jax.tree.map(jax.device_put, params, shardings(mesh(), config))
    ids = hf.Generation(1, (2, 7), 3)
    hf_export.save_params(
        tmp_path / "out", params, config, dtype="bfloat16", generation=ids, max_shard_bytes=limit
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (limit == 3000)
    read = {name: array for file in files for name, array in load_file(file).items()}
    assert read.keys() == weights.keys()
    for name, array in weights.items():
        assert read[name].tobytes() == array.tobytes()
    model = hf.open_model(tmp_path / "out")
    assert model.config == config and model.generation == ids and model.dtype == "bfloat16"
    runs.assert_same_bits(model.load_params(), expected(weights, config))


def test_import_and_export_come_back(tmp_path):
    weights = write(tmp_path / "hf", dtype="bfloat16", eos_token_id=[2, 5], bos_token_id=1)
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    source = hf.open_model(tmp_path / "hf")
    checkpoint.import_model(source, tmp_path / "imported")
    model = checkpoint.open_model(tmp_path / "imported")
    assert isinstance(model, checkpoint.ImportedModel)
    assert (model.config, model.dtype) == (CONFIG, "bfloat16")
    assert model.generation == hf.Generation(1, (2, 5))
    assert model.fingerprint() == source.fingerprint() == hf.fingerprint(tmp_path / "hf")
    assert (tmp_path / "imported" / "tokenizer.json").read_text() == "{}"
    runs.assert_same_bits(checkpoint.restore_params(tmp_path / "imported"), expected(weights))
    hf_export.save_model(tmp_path / "back", model, model.config, dtype="bfloat16")
    runs.assert_same_bits(hf.load_params(tmp_path / "back"), expected(weights))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "imported"]


def test_import_changes_dtype_and_then_the_fingerprint(tmp_path):
    weights = write(tmp_path / "hf")
    source = hf.open_model(tmp_path / "hf")
    checkpoint.import_model(source, tmp_path / "half", dtype="bfloat16")
    model = checkpoint.open_imported(tmp_path / "half")
    assert model.dtype == "bfloat16" and model.fingerprint() != source.fingerprint()
    runs.assert_same_bits(model.load_params(), expected(weights, dtype=jnp.bfloat16))
    write(tmp_path / "other", weights=models.tensors(seed=1))
    assert hf.fingerprint(tmp_path / "other") != source.fingerprint()


def test_merged_export_is_lora_merge(tmp_path):
    write(tmp_path / "hf")
    model = hf.open_model(tmp_path / "hf")
    adapter = lora.init(lora.LoraConfig(2, 6.0, targets=("q", "down")), CONFIG, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    hf_export.save_model(tmp_path / "out", hf_export.Merged(model, adapter), CONFIG)
    merged = lora.merge(jax.tree.map(jnp.asarray, model.load_params()), adapter)
    found = hf.load_params(tmp_path / "out")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, merged)
    assert not np.allclose(
        found["layers"]["attn"]["q"]["kernel"], model.load_params()["layers"]["attn"]["q"]["kernel"]
    )


IDS = {
    "one": ({"eos_token_id": 2}, {}, (None, (2,), None)),
    "several": ({"eos_token_id": [2, 3, 2]}, {"eos_token_id": 9}, (None, (2, 3), None)),
    "of the config": ({}, {"eos_token_id": 9, "bos_token_id": 0}, (0, (9,), None)),
    "both": ({"bos_token_id": 1}, {"eos_token_id": 9, "pad_token_id": 4}, (1, (9,), 4)),
    "pad of -1": ({"pad_token_id": -1}, {}, (None, (), None)),
    "null": ({"eos_token_id": None}, {}, (None, (), None)),
}


@pytest.mark.parametrize("case", IDS.values(), ids=IDS.keys())
def test_special_ids(tmp_path, case):
    generation, config, wanted = case
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hf.read_generation(tmp_path) == hf.Generation(*wanted)


# What is wrong, told in one line


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1])


SHARD = "model-00002-of-00002.safetensors"
DAMAGE = {
    "missing tensor": (_weights(lambda w: w.pop(KERNEL)), KERNEL, "missing", "model.safetensors"),
    "missing head": (_weights(lambda w: w.pop("lm_head.weight")), "lm_head.weight", "missing"),
    "wrong shape": (_put(KERNEL, (40, 17)), KERNEL, "[40, 17]", "[40, 16]", "model.safetensors"),
    "transposed": (_put(KERNEL, (16, 40)), KERNEL, "[16, 40]"),
    "wrong dtype": (_put(KERNEL, (40, 16), np.int8), KERNEL, "I8", "BF16"),
    "unexpected bias": (_put("model.layers.0.mlp.up_proj.bias", 40), "up_proj.bias", "3 layers"),
    "a layer too many": (_put("model.layers.3.input_layernorm.weight", 16), "layers.3", "3 layers"),
    "truncated": (_bytes(lambda b: b[:-100]), "model.safetensors", "truncated"),
    "cut in the header": (_bytes(lambda b: b[:100]), "model.safetensors", "truncated"),
    "cut to nothing": (_bytes(lambda b: b[:4]), "model.safetensors", "not a safetensors file"),
    "empty": (_bytes(lambda b: b""), "model.safetensors", "not a safetensors file"),
    "longer": (_bytes(lambda b: b + b"x"), "model.safetensors", "damaged"),
    "a pointer": (_bytes(lambda b: b"version https://git-lfs.github.com/spec/v1"), "of Git LFS"),
    "header no JSON": (_bytes(lambda b: b[:8] + b"x" + b[9:]), "model.safetensors", "no JSON"),
    "header no object": (_bytes(lambda b: (2).to_bytes(8, "little") + b"[]"), "no JSON object"),
    "entry without a shape": (_header(lambda h: h[KERNEL].pop("shape")), KERNEL, "damaged header"),
    "entry no object": (_header(lambda h: h.update({KERNEL: 3})), KERNEL, "damaged header"),
    "bytes unlike the shape": (
        _header(lambda h: h[KERNEL].update(shape=[40, 15])),
        KERNEL,
        "[40, 15]",
        "2560 bytes",
    ),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "neither model.safetensors"),
    "other weights": (
        lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
        "pytorch_model.bin",
    ),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json", "no such file"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{"), "config.json, line 1"),
    "config no object": (lambda p: (p / "config.json").write_text("[]"), "not a JSON object"),
    "architecture": (_config(architectures=["MistralForCausalLM"]), "MistralForCausalLM"),
    "model type": (_config(model_type="qwen2"), "qwen2"),
    "key missing": (_config(hidden_size=None), "config.json", "hidden_size"),
    "more layers asked for": (_config(num_hidden_layers=4), "layers.3", "missing"),
    "generation ids": (_config(eos_token_id="</s>"), "eos_token_id", "</s>"),
    "absent shard": (_sharded(lambda p: (p / SHARD).unlink()), SHARD, "absent"),
    "truncated shard": (_sharded(lambda p: _cut(p / SHARD)), SHARD, "truncated"),
    "index no map": (_sharded(_index(weight_map={})), "index.json", "weight_map"),
    "index names a path": (
        _sharded(_index(weight_map={KERNEL: "../model.safetensors"})),
        KERNEL,
        "no file name",
    ),
    "index names too much": (
        _sharded(_index(weight_map={"model.x": SHARD})),
        "model.x",
        SHARD,
        "missing",
    ),
    "index names too little": (_sharded(_index(weight_map={KERNEL: SHARD})), "embed_tokens"),
}


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_told_before_anything_is_loaded(tmp_path, monkeypatch, case):
    refused_unread(tmp_path, monkeypatch, *case)


def test_a_file_cut_while_it_is_read(tmp_path):
    write(tmp_path)
    model = hf.open_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="it ends inside tensor"):
        model.load_params()
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*model.safetensors: No such file"):
        model.load_params()


def test_what_a_model_is_not(tmp_path):
    (tmp_path / "file").write_bytes(b"GGU")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    for path, words in {
        tmp_path / "nowhere": "no such directory or file; a base is a local path",
        tmp_path / "file": "is a file; give the directory .*, or a GGUF file",
        tmp_path / "file.gguf": "the file is damaged or truncated",
        tmp_path / "nowhere.gguf": "nowhere.gguf: no such file; a base is a local path",
        "gs://bucket/file.gguf": "gs:// needs|read from a local disk",
        "hf://meta-llama/x": "hf:// is not supported; write meta-llama/x, without it",
        tmp_path: "no language model: neither xrec.json .* nor config.json",
    }.items():
        with pytest.raises(UserError, match=words):
            checkpoint.open_model(path)
    with pytest.raises(UserError, match="local disk"):
        hf.open_model("gs://bucket/model")


def test_another_configuration(tmp_path):
    write(tmp_path / "hf")
    other = dataclasses.replace(CONFIG, intermediate_size=32)
    with pytest.raises(UserError, match=r"gate_proj.* \[40, 16\]; config.json asks for \[32, 16\]"):
        hf.load_params(tmp_path / "hf", config=other)
    checkpoint.import_model(hf.open_model(tmp_path / "hf"), tmp_path / "imported")
    with pytest.raises(UserError, match=r"gate/kernel has shape \(3, 16, 40\) .* \(3, 16, 32\)"):
        checkpoint.restore_params(tmp_path / "imported", config=other)
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    with pytest.raises(UserError, match=r"head/table has shape .* but none in the configured"):
        checkpoint.restore_params(tmp_path / "imported", config=tied)


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "hf")
    model = hf.open_model(tmp_path / "hf")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    before = runs.contents(tmp_path)
    for name, words in {"file": "is a file", "full": "not empty", "file/x": "cannot write"}.items():
        with pytest.raises(UserError, match=words):
            checkpoint.import_model(model, tmp_path / name)
        with pytest.raises(UserError, match=words):
            hf_export.save_model(tmp_path / name, model, CONFIG)
    with pytest.raises(UserError, match="local disk"):
        hf_export.save_model("gs://bucket/x", model, CONFIG)
    with pytest.raises(UserError, match="'bfloat61' is not supported; did you mean 'bfloat16'"):
        checkpoint.import_model(model, tmp_path / "new", dtype="bfloat61")
    assert runs.contents(tmp_path) == before


def test_a_failed_write_leaves_nothing(tmp_path):
    write(tmp_path / "hf")
    model = hf.open_model(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    before = runs.contents(tmp_path)
    with pytest.raises(UserError, match="it ends inside"):
        checkpoint.import_model(model, tmp_path / "a" / "b")
    with pytest.raises(UserError, match="it ends inside"):
        hf_export.save_model(tmp_path / "a" / "b", model, CONFIG)
    assert runs.contents(tmp_path) == before


def _unmark(path):
    (path / "xrec.json").unlink()


def _truncate(path):
    for file in (path / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


IMPORTED = {
    "unfinished": (_unmark, "did not finish", "xrec.json"),
    "another format": (lambda p: rewrite(p / "xrec.json", format=2), "format 2", "import"),
    "another kind": (lambda p: rewrite(p / "xrec.json", kind="adapter"), "'adapter'"),
    "dtype": (lambda p: rewrite(p / "xrec.json", dtype="int4"), "'int4'"),
    "another shape": (
        lambda p: rewrite(p / "config.json", vocab_size=50),
        "embed/table",
        "[48, 16]",
        "[50, 16]",
    ),
    "mark no JSON": (lambda p: (p / "xrec.json").write_text("{"), "xrec.json, line 1"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json"),
    "a layer gone": (
        lambda p: shutil.rmtree(p / "params" / "layers" / "0001"),
        "layers/0001",
        "damaged",
    ),
    "truncated": (_truncate, "params/embed", "damaged"),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    path = tmp_path_factory.mktemp("imported")
    write(path / "hf")
    checkpoint.import_model(hf.open_model(path / "hf"), path / "out")
    return path / "out"


# Orbax closes its event loop under reads that have failed, which shows when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("split", [False, True], ids=["host", "devices"])
@pytest.mark.parametrize("case", IMPORTED.values(), ids=IMPORTED.keys())
def test_damaged_import(imported, tmp_path, case, split):
    damage, *named = case
    path = tmp_path / "copy"
    shutil.copytree(imported, path)
    damage(path)
    with pytest.raises(UserError) as error:
        checkpoint.open_model(path).load_params(shardings=shardings(mesh()) if split else None)
    for name in named:
        assert name in str(error.value)
    assert "\n" not in str(error.value)
    gc.collect()
