"""Configurations in the metadata of GGUF files: both ways, and what is refused."""

import dataclasses

import numpy as np
import pytest

from tests.llm import models
from tests.llm.io.gguf import files
from tests.llm.io.gguf.files import CONFIG
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.gguf import config as gguf_config
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.io.gguf.names import Key
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling
from xrec_jax.llm.model.rope import inverse_frequencies

# The shapes of published models matter for their rotary frequencies.
LLAMA31 = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=131072,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
)
LLAMA32 = dataclasses.replace(LLAMA31, head_dim=64, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))


def opened(path, metadata=None, config=CONFIG, change=lambda writer: None):
    files.write(path / "x.gguf", config, metadata=metadata, change=change)
    return open_model(path / "x.gguf").config


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, rope_scaling=RopeScaling(2.5, kind="linear"), rms_eps=1e-6),
        dataclasses.replace(CONFIG, rope_theta=123456.7, num_kv_heads=4, head_dim=32),
    ],
)
def test_there_and_back(tmp_path, config):
    ours = gguf_config.to_metadata(config)
    files.write(tmp_path / "x.gguf", config, metadata=ours)
    assert open_model(tmp_path / "x.gguf").config == config
    theirs = files._metadata(config)
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("config", [LLAMA31, LLAMA32], ids=["3.1", "3.2"])
def test_published_scalings_are_recovered(config):
    factors = files.rope_factors(config)
    np.testing.assert_allclose(gguf_config.rope_factors(config), factors, rtol=1e-6)
    plain = dataclasses.replace(config, rope_scaling=None)
    assert gguf_config.rope_factors(plain) is None
    assert gguf_config.with_rope_factors(plain, factors, where="x") == config


@pytest.mark.parametrize("factor", [5.0, 3.0, 2.7, 10.5, 40.0])
def test_our_own_factors_are_recovered(factor):
    config = dataclasses.replace(LLAMA31, rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192))
    plain = dataclasses.replace(config, rope_scaling=None)
    factors = gguf_config.rope_factors(config)
    assert gguf_config.with_rope_factors(plain, factors, where="x") == config


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(3.0, 1.0, 4.0, 2048),
        RopeScaling(8.0, 2.0, 8.0, 16384),
        RopeScaling(8.0, 1.0, 3.0, 6000),
        RopeScaling(5.0, 1.5, 7.0, 10000),
        RopeScaling(8.0, 1.0, 4.0, 1 << 19),
    ],
)
def test_other_scalings_give_the_same_frequencies(scaling):
    config = dataclasses.replace(LLAMA31, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    fitted = gguf_config.with_rope_factors(plain, files.rope_factors(config), where="x")
    np.testing.assert_allclose(
        inverse_frequencies(fitted), inverse_frequencies(config), rtol=3e-5, atol=0.0
    )


def test_equal_factors_are_linear_scaling():
    plain = dataclasses.replace(LLAMA31, rope_scaling=None)
    for value, scaling in ((1.0, None), (2.5, RopeScaling(2.5, kind="linear"))):
        factors = np.full(64, value, np.float32)
        assert gguf_config.with_rope_factors(plain, factors, where="x").rope_scaling == scaling


@pytest.mark.parametrize(
    "factors",
    [
        np.linspace(1, 8, 64),
        np.r_[np.ones(32), np.full(32, 8.0)][::-1],
        np.r_[np.ones(63), 0.0],
        np.r_[np.ones(63), -8.0],
        np.r_[np.ones(63), 0.5],
        np.random.default_rng(0).uniform(1, 8, 64),
    ],
)
def test_other_factors_are_refused(factors):
    plain = dataclasses.replace(LLAMA31, rope_scaling=None)
    with pytest.raises(UserError, match="x: its factors of single rotary frequencies"):
        gguf_config.with_rope_factors(plain, factors.astype(np.float32), where="x")


def test_numbers_are_what_they_were_before_float32(tmp_path):
    config = opened(tmp_path, {Key.RMS_EPS: 1e-5, Key.ROPE_BASE: 1e5, Key.ROPE_SCALE_LINEAR: 0.1})
    assert config.rms_eps == 1e-5 and config.rope_theta == 1e5
    assert config.rope_scaling == RopeScaling(0.1, kind="linear")


def test_defaults(tmp_path):
    """Of keys that older files lack: llama.cpp's."""
    square = dataclasses.replace(CONFIG, num_kv_heads=4)
    missing = (
        Key.HEAD_COUNT_KV,
        Key.KEY_LENGTH,
        Key.ROPE_DIMENSIONS,
        Key.ROPE_BASE,
        Key.VOCAB_SIZE,
    )
    assert opened(tmp_path, dict.fromkeys(missing), square) == square


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({Key.ROPE_SCALING_TYPE: "none", Key.ROPE_SCALING_FACTOR: 4.0}, None),
        ({Key.ROPE_SCALING_TYPE: "linear"}, None),
        ({Key.ROPE_SCALING_TYPE: "linear", Key.ROPE_SCALING_FACTOR: 1.0}, None),
        ({Key.ROPE_SCALING_FACTOR: 0.0}, None),
        ({Key.ROPE_SCALING_FACTOR: 4.0}, RopeScaling(4.0, kind="linear")),
        (
            {Key.ROPE_SCALING_FACTOR: 4.0, Key.ROPE_SCALE_LINEAR: 2.0},
            RopeScaling(4.0, kind="linear"),
        ),
        ({Key.HEAD_COUNT_KV: [2, 2]}, None),
        ({"llama.expert_count": 0, "llama.logit_scale": 1.0}, None),
        ({"llama.attention.sliding_window": 64}, None),
    ],
)
def test_accepted(tmp_path, more, scaling):
    assert opened(tmp_path, more) == dataclasses.replace(CONFIG, rope_scaling=scaling)


REFUSED = {
    "yarn": ({Key.ROPE_SCALING_TYPE: "yarn", Key.ROPE_SCALING_FACTOR: 4.0}, "'yarn' is not"),
    "longrope": ({Key.ROPE_SCALING_TYPE: "longrope"}, "'longrope' is not supported"),
    "architecture": ({Key.ARCHITECTURE: "qwen2"}, "general.architecture='qwen2' is not supported"),
    "no architecture": ({Key.ARCHITECTURE: None}, "general.architecture=None"),
    "adapter": ({Key.TYPE: "adapter"}, "general.type='adapter' is not supported"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count=8 is not supported"),
    "not causal": ({"llama.attention.causal": False}, "llama.attention.causal=False"),
    "scaled logits": ({"llama.logit_scale": 0.5}, "llama.logit_scale=0.5"),
    "window": ({"llama.attention.sliding_window": 32}, "only full attention is"),
    "no layers": ({Key.BLOCK_COUNT: None}, "'llama.block_count' of its metadata is missing"),
    "zero layers": ({Key.BLOCK_COUNT: 0}, "llama.block_count=0 must be a positive whole number"),
    "huge layers": ({Key.BLOCK_COUNT: 0xFFFFFFFF}, "must be a positive whole number"),
    "more layers": ({Key.BLOCK_COUNT: 1_000_000}, "'blk.2.attn_norm.weight' is missing"),
    "text for a number": ({Key.BLOCK_COUNT: "two"}, "llama.block_count='two' must be"),
    "fraction": ({Key.HEAD_COUNT: 4.5}, "llama.attention.head_count=4.5 must be"),
    "switch": ({Key.HEAD_COUNT: True}, "head_count=True must be"),
    "heads": ({Key.HEAD_COUNT: 3, Key.KEY_LENGTH: None}, "is not a multiple of"),
    "kv heads": ({Key.HEAD_COUNT_KV: 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
    "layers apart": ({Key.HEAD_COUNT_KV: [2, 4]}, "differs from layer to layer"),
    "odd head": ({Key.KEY_LENGTH: 15, Key.ROPE_DIMENSIONS: 15}, "head_dim=15 must be even"),
    "partial rotation": ({Key.ROPE_DIMENSIONS: 8}, "only 16, the size of a head, is"),
    "other values": ({Key.VALUE_LENGTH: 8}, "llama.attention.value_length=8 is not supported"),
    "no eps": ({Key.RMS_EPS: None}, "layer_norm_rms_epsilon' of its metadata is missing"),
    "eps": ({Key.RMS_EPS: -1.0}, "layer_norm_rms_epsilon=-1.0 must be a positive number"),
    "no number": ({Key.ROPE_BASE: float("nan")}, "llama.rope.freq_base=nan must be"),
    "infinite": ({Key.ROPE_BASE: float("inf")}, "llama.rope.freq_base=inf must be"),
    "width": ({Key.EMBEDDING_LENGTH: 128}, "'token_embd.weight' has shape [48, 64]; its metadata"),
    "token id": ({Key.EOS_ID: "x"}, "tokenizer.ggml.eos_token_id='x' is not a token id"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path, case):
    more, words = case
    path = tmp_path / "x.gguf"

    def change(writer):
        own = {k: v for k, v in more.items() if k.startswith("general.")}
        for key, value in own.items():
            writer.kv_data[0].pop(key, None)
            if value is not None:
                writer.add_string(key, value)

    rest = {key: value for key, value in more.items() if not key.startswith("general.")}
    files.write(path, metadata=rest, change=change)
    with pytest.raises(UserError) as caught:
        open_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message
    assert len(message) < 300


TENSORS = {
    "missing": (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "'blk.1.ffn_up.weight' is"),
    "no embedding": (
        lambda w: w.pop("model.embed_tokens.weight"),
        "'token_embd.weight' is missing",
    ),
    "norm missing": (lambda w: w.pop("model.norm.weight"), "'output_norm.weight' is missing"),
    "shape": (
        lambda w: w.update({"model.layers.0.self_attn.k_proj.weight": np.zeros((64, 64))}),
        "'blk.0.attn_k.weight' has shape [64, 64]; its metadata ask for [32, 64]",
    ),
    "layer too many": (
        lambda w: w.update({"model.layers.2.mlp.up_proj.weight": np.zeros((96, 64))}),
        "'blk.2.ffn_up.weight' is none of a LLaMA's with 2 layers",
    ),
}


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS.keys())
def test_tensors(tmp_path, case):
    change, words = case
    weights = models.tensors(CONFIG)
    change(weights)
    files.write(tmp_path / "x.gguf", weights=weights)
    with pytest.raises(UserError) as caught:
        open_model(tmp_path / "x.gguf")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.1.ffn_gate_exps.weight", "rope_freqs.x"]
)
def test_extra_tensors_are_refused_by_name(tmp_path, name):
    def add(writer):
        writer.add_tensor(name, np.zeros(64, np.float32))

    with pytest.raises(UserError, match=f"tensor '{name}' is none of a LLaMA's with 2 layers"):
        opened(tmp_path, change=add)


def test_factors_and_a_scaling_at_once(tmp_path):
    def add(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))

    assert opened(tmp_path, change=add) == CONFIG
    with pytest.raises(UserError, match=r"both llama.rope.scaling.factor and factors of single"):
        opened(tmp_path, {Key.ROPE_SCALING_FACTOR: 2.0}, change=add)


def test_wrong_number_of_factors(tmp_path):
    def add(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(7, np.float32))

    with pytest.raises(UserError, match=r"'rope_freqs.weight' has shape \[7\]; its metadata ask"):
        opened(tmp_path, change=add)
