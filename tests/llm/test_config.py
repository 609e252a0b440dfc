"""The model's shape: to and from `config.json`, and what is refused."""

import dataclasses

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling, from_hf, to_hf
from xrec_jax.llm.model.rope import inverse_frequencies, rotate, rotations

SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
)
PLAIN = LlamaConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    max_positions=96,
    rope_theta=1234.5,
    rms_eps=3e-6,
    initializer_range=0.013,
)
CONFIGS = {
    "plain": PLAIN,
    "scaled": dataclasses.replace(PLAIN, rope_scaling=SCALING),
    "linear": dataclasses.replace(PLAIN, rope_scaling=RopeScaling(2.5, kind="linear")),
    "tied": dataclasses.replace(PLAIN, tie_embeddings=True, rope_theta=500000.0),
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MINIMAL = LLAMA | {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dialect", ["both", "transformers 4", "transformers 5"])
def test_round_trip(name, dialect):
    content = to_hf(CONFIGS[name], dtype="bfloat16", eos_token_id=[2, 7])
    assert content["eos_token_id"] == [2, 7] and content["dtype"] == "bfloat16"
    dropped = {"transformers 4": ["rope_parameters"], "transformers 5": ["rope_theta"], "both": []}
    for key in dropped[dialect]:
        del content[key]
    if dialect == "transformers 5":
        del content["rope_scaling"]
    assert from_hf(content) == CONFIGS[name]


def test_defaults_are_those_of_transformers():
    config = from_hf(MINIMAL)
    assert (config.num_kv_heads, config.head_dim, config.max_positions) == (6, 4, 2048)
    assert (config.rope_theta, config.rope_scaling, config.rms_eps) == (10000.0, None, 1e-6)
    assert not config.tie_embeddings
    empty = dict(MINIMAL, num_key_value_heads=None, head_dim=None, rope_scaling=None)
    assert from_hf(empty) == config


def test_type_is_the_old_name_of_rope_type():
    config = from_hf(dict(MINIMAL, rope_scaling={"type": "llama3", **LLAMA3}))
    assert config.rope_scaling == SCALING


def test_theta_of_rope_parameters_wins():
    rope = {"rope_theta": 77.0, "rope_type": "default"}
    assert from_hf(dict(MINIMAL, rope_parameters=rope, rope_theta=5.0)).rope_theta == 77.0


def test_scaling_that_was_added_to_a_file_replaces_what_was_there():
    """transformers 5 reads a non-empty `rope_scaling` before `rope_parameters`."""
    kept = {"rope_type": "default", "rope_theta": 77.0}
    scaled = {"rope_type": "llama3", **LLAMA3}
    config = from_hf(MINIMAL | {"rope_parameters": kept, "rope_scaling": scaled})
    assert (config.rope_theta, config.rope_scaling) == (10000.0, SCALING)
    inside = from_hf(MINIMAL | {"rope_scaling": scaled | {"rope_theta": 500.0}, "rope_theta": 9.0})
    assert (inside.rope_theta, inside.rope_scaling) == (500.0, SCALING)
    empty = from_hf(MINIMAL | {"rope_parameters": kept, "rope_scaling": {}})
    assert (empty.rope_theta, empty.rope_scaling) == (77.0, None)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_linear_and_dynamic_scaling(kind):
    wanted = RopeScaling(4.0, kind=kind)
    for key in ("rope_scaling", "rope_parameters"):
        for name in ("type", "rope_type"):
            config = from_hf(MINIMAL | {key: {name: kind, "factor": 4}})
            assert config.rope_scaling == wanted
            assert from_hf(to_hf(config)) == config
    plain = inverse_frequencies(from_hf(MINIMAL))
    np.testing.assert_array_equal(
        inverse_frequencies(config), plain / 4 if kind == "linear" else plain
    )


def test_where_the_original_length_stands():
    """Inside the scaling, beside it (which wins), or nowhere: then it is the model's length."""
    scaled = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
    scaled["rope_type"], key = "llama3", "original_max_position_embeddings"
    inside = MINIMAL | {"rope_scaling": scaled | {key: 64}}
    for content, length in (
        (inside, 64),
        (inside | {key: 32}, 32),
        (MINIMAL | {"rope_scaling": scaled}, 2048),
    ):
        assert from_hf(content).rope_scaling.original_max_positions == length


@pytest.mark.parametrize(
    "neutral",
    [
        {"pretraining_tp": 2},
        {"pretraining_tp": None},
        {"hidden_act": "swish"},
        {"attention_dropout": None},
        {"rope_parameters": None},
        {"partial_rotary_factor": None},
        {"architectures": None},
        {"architectures": ["LlamaModel"]},
        {"use_cache": False},
    ],
)
def test_what_changes_nothing_is_accepted(neutral):
    assert from_hf(MINIMAL | neutral) == from_hf(MINIMAL)


def scaling(**values):
    return {"rope_scaling": {"rope_type": "linear", "factor": 2.0} | values}


REFUSED = {
    "architecture 'MistralForCausalLM'": {"architectures": ["MistralForCausalLM"]},
    "architecture 'LlamaForCausalLM' (model_type": {"architectures": "LlamaForCausalLM"},
    "model_type 'mistral'": {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
    "hidden_act='gelu' is not supported; only 'silu' is": {"hidden_act": "gelu"},
    "hidden_act=None is not supported": {"hidden_act": None},
    "attention_bias=True is not supported": {"attention_bias": True},
    "attention_bias=None must be true or false": {"attention_bias": None},
    "mlp_bias=True is not supported": {"mlp_bias": True},
    "tie_word_embeddings='false' must be true or false": {"tie_word_embeddings": "false"},
    "rope scaling 'yarn' is not supported; only 'default', 'linear', 'dynamic', 'llama3' are": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0}
    },
    "rope scaling None is not supported": scaling(rope_type=None),
    "rope_scaling: key 'low_freq_factor' is missing": {
        "rope_scaling": {"rope_type": "llama3", "factor": 2.0}
    },
    "rope_scaling: factor=0 must be a positive number": scaling(factor=0),
    "rope_scaling: factor=inf must be a positive number": scaling(factor=float("inf")),
    "rope_scaling: factor=None must be a positive number": scaling(factor=None),
    "rope_scaling: factor=2.0 is not read by rope scaling 'default'": scaling(rope_type="default"),
    "rope_scaling: rope_theta=None must be a positive number": scaling(rope_theta=None),
    "config.json: rope_theta=None must be a positive number": {"rope_theta": None},
    "rope_scaling: beta_fast=32 is not read by rope scaling 'linear'": scaling(beta_fast=32),
    "rope_parameters='linear' must be an object": {"rope_parameters": "linear"},
    "partial_rotary_factor is not supported": scaling(partial_rotary_factor=0.5),
    "vocab_size='many' must be a positive whole number": {"vocab_size": "many"},
    "vocab_size=61.0 must be a positive whole number": {"vocab_size": 61.0},
    "hidden_size=None must be a positive whole number": {"hidden_size": None},
    "num_hidden_layers=0 must be a positive whole number": {"num_hidden_layers": 0},
    "num_key_value_heads=0 must be": {"num_key_value_heads": 0},
    "max_position_embeddings=None must be": {"max_position_embeddings": None},
    "rms_norm_eps=None must be a positive number": {"rms_norm_eps": None},
    "rms_norm_eps=nan must be a positive number": {"rms_norm_eps": float("nan")},
    "num_heads=6 is not a multiple of num_kv_heads=4": {"num_key_value_heads": 4},
    "hidden_size=25 is not a multiple of num_attention_heads=6": {"hidden_size": 25},
    "head_dim=5 must be even": {"head_dim": 5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(UserError) as error:
        from_hf(MINIMAL | REFUSED[message], where="dir/config.json")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("dir/config.json: ")
    assert str(error.value).count("dir/config.json") == 1


@pytest.mark.parametrize("key", sorted(MINIMAL.keys() - LLAMA.keys()))
def test_missing_key(key):
    content = {k: v for k, v in MINIMAL.items() if k != key}
    with pytest.raises(UserError, match=f"key '{key}' is missing"):
        from_hf(content)


def test_parameter_counts():
    q = o = 24 * 60
    k = v = 24 * 20
    layers = 3 * (q + k + v + o + 3 * 24 * 40)
    assert PLAIN.matmul_parameters == layers + 61 * 24
    assert PLAIN.num_parameters == layers + 2 * 61 * 24 + 7 * 24
    tied = CONFIGS["tied"]
    assert tied.num_parameters == layers + 61 * 24 + 7 * 24


def test_frequencies_by_hand():
    """Llama 3.1's rule, one frequency at a time, with all three of its cases met."""
    config = dataclasses.replace(PLAIN, rope_scaling=SCALING, rope_theta=50.0)
    cases = set()
    for i, found in enumerate(inverse_frequencies(config)):
        frequency = 50.0 ** (-2 * i / 10)
        wavelength = 2 * np.pi / frequency
        if wavelength < 64 / 4.0:
            expected, case = frequency, "kept"
        elif wavelength > 64 / 1.0:
            expected, case = frequency / 8.0, "stretched"
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected, case = (1 - smooth) * frequency / 8.0 + smooth * frequency, "between"
        cases.add(case)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert cases == {"kept", "between", "stretched"}


def test_rotation_turns_pairs_of_half_the_head():
    positions = np.array([[0, 3, 17]], np.int32)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 10)).astype(np.float32)
    turned = np.asarray(rotate(x, *rotations(PLAIN, positions)))
    for t, position in enumerate(positions[0]):
        for i in range(5):
            angle = position * 1234.5 ** (-2 * i / 10)
            pair = x[0, t, :, i] + 1j * x[0, t, :, i + 5]
            pair = pair * np.exp(1j * angle)
            np.testing.assert_allclose(turned[0, t, :, i], pair.real, atol=2e-6)
            np.testing.assert_allclose(turned[0, t, :, i + 5], pair.imag, atol=2e-6)
