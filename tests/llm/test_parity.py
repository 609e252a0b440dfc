"""Exactness: logits, greedy tokens and LoRA training equal those of transformers and PEFT.

`experiments/parity/make_goldens.py` made the goldens with torch; `make parity` does it anew.
"""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import ours

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module", params=ours.LORA)
def lora(request):
    return ours.lora_differences(GOLDEN, request.param)


@pytest.mark.parametrize("name", ours.CHECKPOINTS)
def test_logits(name):
    assert ours.logits_difference(GOLDEN / name) < ours.LIMIT


@pytest.mark.parametrize("options", [{"attention": "xla"}, {"remat": "full"}, {"remat": "dots"}])
def test_logits_with_options(options):
    assert ours.logits_difference(GOLDEN / "llama31", **options) < ours.LIMIT


@pytest.mark.parametrize("name", ours.CHECKPOINTS)
def test_left_padding(name):
    assert ours.padded_difference(GOLDEN / name) < ours.LIMIT


@pytest.mark.parametrize("name", ours.CHECKPOINTS)
def test_greedy_tokens(name):
    tokens, reference = ours.greedy(GOLDEN / name)
    assert len(reference) == 64
    np.testing.assert_array_equal(tokens, reference)


def test_lora_loss_and_gradients(lora):
    gradients = {key: value for key, value in lora.items() if key.startswith("gradient")}
    assert gradients
    assert {k: v for k, v in (gradients | {"loss": lora["loss"]}).items() if v >= ours.LIMIT} == {}


def test_lora_after_ten_steps(lora):
    ends = {key: value for key, value in lora.items() if key.startswith("end")}
    assert ends
    losses = {"step losses": lora["step losses"]}
    assert {k: v for k, v in (ends | losses).items() if v >= ours.LIMIT} == {}


def test_adapter_trained_in_peft():
    assert ours.peft_difference(GOLDEN) < ours.LIMIT


def test_goldens_show_what_they_should():
    """Each checkpoint has the trait it stands for, or the tests above would show less."""
    models = {name: ours.load(GOLDEN / name)[0].config for name in ours.CHECKPOINTS}
    lengths = {name: ours.arrays(GOLDEN / name / "goldens.npz")["ids"].shape[1] for name in models}
    assert models["llama2"].num_kv_heads == models["llama2"].num_heads
    assert models["llama3"].num_kv_heads < models["llama3"].num_heads
    assert models["llama3"].rope_theta == 500_000
    assert len(list((GOLDEN / "llama3").glob("*.safetensors"))) > 1
    for name in ("llama31", "llama32"):
        assert lengths[name] > models[name].rope_scaling.original_max_positions
    for name in ("linear", "dynamic"):
        assert models[name].rope_scaling.kind == name
    assert "rope_scaling" in json.loads((GOLDEN / "linear" / "config.json").read_text())
    assert lengths["dynamic"] == models["dynamic"].max_positions
    tied = models["llama32"]
    assert tied.tie_embeddings and tied.head_dim * tied.num_heads != tied.hidden_size
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    assert all(manifest[name]["smallest_greedy_margin"] > 10 * ours.LIMIT for name in models)
    for name in ours.LORA:
        golden = ours.arrays(GOLDEN / f"lora_{name}.npz")
        assert all(np.abs(v).max() > 1e-3 for k, v in golden.items() if k.startswith("gradient"))
