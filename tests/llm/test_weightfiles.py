"""Names and files in the wild: every parameter is found, or what is there is said in one line."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.llm import models
from tests.llm.damage import config as _config
from tests.llm.damage import content as _bytes
from tests.llm.damage import header as _header
from tests.llm.damage import put as _put
from tests.llm.damage import refused_unread
from tests.llm.damage import sharded as _sharded
from tests.llm.damage import weights as _weights
from tests.llm.models import CONFIG, rewrite, write
from xrec_jax import load_llm
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import checkpoint, hf, peft_io
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.model import lora

KERNEL, OTHER = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
SHARD = "model-00002-of-00002.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = dataclasses.replace(CONFIG, tie_embeddings=True)


def test_tied_checkpoints_may_hold_an_equal_head(tmp_path):
    weights = models.tensors(TIED) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
    }
    weights[HEAD] = weights[EMBEDDING].astype(np.float64)
    write(tmp_path, TIED, weights=weights)
    model = hf.open_model(tmp_path)
    assert model.config == TIED and "head" not in model.load_params()


def test_two_tables_that_differ_are_not_tied(tmp_path):
    """As transformers 5 does; `config.json` says tied, but a head of its own is stored."""
    weights = models.tensors(CONFIG)
    for change in (
        lambda w: w,
        lambda w: {**w, HEAD: w[EMBEDDING] + np.float32(1e-3) * np.eye(48, 16, -32, np.float32)},
    ):
        write(tmp_path, TIED, weights=change(weights))
        model = hf.open_model(tmp_path)
        assert model.config == CONFIG
        stored = load_file(tmp_path / "model.safetensors")[HEAD]
        np.testing.assert_array_equal(model.load_params()["head"]["table"], stored)


def _bare(weights):
    return {name.removeprefix("model."): value for name, value in weights.items()}


def _only_head(weights):
    return {HEAD if name == EMBEDDING else name: value for name, value in weights.items()}


NAMES = {
    "tied, under the head's name": (TIED, _only_head),
    "without the prefix": (CONFIG, _bare),
    "tied, without the prefix": (TIED, _bare),
    "one without the prefix": (CONFIG, lambda w: w | _bare({"model.norm.weight": w.pop(NORM)})),
    "with the prefix twice": (
        CONFIG,
        lambda w: {n if n == HEAD else f"model.{n}": v for n, v in w.items()},
    ),
}
NORM = "model.norm.weight"


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES.keys())
def test_other_names_of_the_same_parameters(tmp_path, case):
    config, rename = case
    write(tmp_path / "usual", config)
    write(tmp_path / "other", config, weights=rename(models.tensors(config)))
    assert hf.open_model(tmp_path / "other").config == config
    found, wanted = (hf.load_params(tmp_path / name) for name in ("other", "usual"))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_single_file_is_read_before_an_index(tmp_path):
    """Shards of an earlier save may lie beside it, or only their index."""
    write(tmp_path, weights=models.tensors(seed=9), shards=2)
    weights = write(tmp_path)
    np.testing.assert_array_equal(hf.load_params(tmp_path)["head"]["table"], weights[HEAD])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert set(hf.open_model(tmp_path).tensors) == set(weights)


def _double(path):
    """Names a tensor as another one, so that the header has one name twice."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    assert len(OTHER) == len(KERNEL)
    file.write_bytes(data.replace(f'"{OTHER}"'.encode(), f'"{KERNEL}"'.encode(), 1))


def _leave_out(header):
    first = min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
    del header[first]


def _tied_head(shape):
    def damage(path):
        _put(HEAD, shape)(path)
        rewrite(path / "config.json", tie_word_embeddings=True)

    return damage


def _second_copy(path):
    weights = load_file(path / SHARD)
    other = load_file(path / SHARD.replace("-00002-", "-00001-"))
    save_file(weights | dict([other.popitem()]), path / SHARD)


DAMAGE = {
    "one parameter twice": (_put("norm.weight", 16), "'model.norm.weight'", "'norm.weight'"),
    "tied, a head of another shape": (_tied_head((40, 16)), "lm_head.weight", "[48, 16]"),
    "GPTQ": (_put("model.layers.0.mlp.up_proj.qweight", 4, np.int32), "quantised", "qweight"),
    "bitsandbytes": (_put(KERNEL + ".absmax", 4, np.uint8), "quantised", "absmax"),
    "FP8": (_put("model.layers.0.mlp.up_proj.weight_scale_inv", 4), "quantised", "weight_scale_i"),
    "int8": (_put(KERNEL, (40, 16), np.int8), "quantised", "I8"),
    "says it is quantised": (
        _config(quantization_config={"quant_method": "awq", "bits": 4}),
        "config.json",
        "quantised ('awq')",
        "give the unquantised model",
    ),
    "overlapping tensors": (
        _header(lambda h: h[OTHER].update(data_offsets=h[KERNEL]["data_offsets"])),
        "overlaps the tensor before it",
    ),
    "a gap between tensors": (_header(_leave_out), "behind a gap"),
    "a tensor named twice": (_double, repr(KERNEL), "twice"),
    "offsets that are no numbers": (
        _header(lambda h: h[KERNEL].update(data_offsets=[0.0, 2560])),
        KERNEL,
        "damaged header",
    ),
    "offsets of true": (
        _header(lambda h: h[KERNEL].update(shape=[True, 640])),
        KERNEL,
        "damaged header",
    ),
    "header nested too deep": (
        _bytes(lambda b: (80_000).to_bytes(8, "little") + b"[" * 80_000),
        "no JSON",
    ),
    "a pointer of Git LFS": (
        _bytes(lambda b: b"version https://git-lfs.github.com/spec/v1\nsize 9\n"),
        "git lfs pull",
    ),
    "a shard holds what the index finds elsewhere": (
        _sharded(_second_copy),
        SHARD,
        "model-00001-of-00002",
        "stale",
    ),
    "a stale index beside too small a file": (
        lambda p: (write(p, shards=2), _weights(lambda w: w.pop(KERNEL))(p)),
        KERNEL,
        "stale",
    ),
}


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_told_before_anything_is_loaded(tmp_path, monkeypatch, case):
    refused_unread(tmp_path, monkeypatch, *case)


def test_an_adapter_is_no_base(tmp_path):
    settings = lora.LoraConfig(rank=2)
    peft_io.save_adapter(
        tmp_path / "own",
        lora.init(settings, CONFIG, jax.random.key(0)),
        base=peft_io.Base("models/llama"),
    )
    shutil.copytree(tmp_path / "own", tmp_path / "peft")
    (tmp_path / "peft" / "xrec.json").unlink()
    for name in ("own", "peft"):
        with pytest.raises(UserError, match=r"is an adapter, not a base.*'models/llama'"):
            checkpoint.open_model(tmp_path / name)
    write(tmp_path / "peft")
    with pytest.raises(UserError, match="both a model and an adapter"):
        checkpoint.open_model(tmp_path / "peft")


@pytest.mark.parametrize("scheme", ["gs", "s3", "az", "hf", "https"])
def test_remote_paths_are_refused_without_asking_the_network(monkeypatch, scheme):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("socket.getaddrinfo", None)
    path = f"{scheme}://bucket/model"
    shape = tiny.LLAMA
    for read in (
        checkpoint.open_model,
        load_llm,
        load_tokenizer,
        lambda p: peft_io.load_adapter(p, shape),
    ):
        with pytest.raises(UserError, match=f"{path}: {scheme}:// (needs the package|is not)"):
            read(path)
