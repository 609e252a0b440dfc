"""The held-out loss: the mean over tokens, whatever the batch, the rows and the devices."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.data.test_packing import examples
from xrec_jax.data.packing import PackedRows
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.training.held_out import HeldOutLoss, perplexity

LENGTHS = [9, 14, 5, 20, 11, 3, 17, 8, 12, 2, 20]
SHAPE = dataclasses.replace(tiny.LLAMA, num_layers=1)
MODEL = Llama(SHAPE)
LORA = lora.LoraConfig(rank=2, alpha=4.0, dropout=0.5)  # dropout must not act here


def adapter():
    """An adapter that changes the model."""
    fresh = lora.init(LORA, SHAPE, jax.random.key(1))
    return jax.device_get(jax.tree.map(lambda x: x + 0.1, fresh))


def naive(made, tuned):
    """Mean of `-log p` over trained tokens, one example at a time, in float64."""
    nll = []
    logits_of = jax.jit(lambda p, ids: MODEL.logits(p, ids, adapter=tuned))
    params = tiny.llama_params(SHAPE)
    for one in made:
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(one.ids)] = one.ids
        logits = np.asarray(logits_of(params, padded)[0, : len(one.ids)], np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        nll += [-log_p[k - 1, one.ids[k]] for k in range(1, len(one.ids)) if one.trained[k]]
    return float(np.mean(nll))


@pytest.mark.parametrize(("batch_size", "devices", "together"), [(4, 1, True), (8, 8, False)])
def test_it_is_the_mean_over_tokens(batch_size, devices, together):
    made = examples(LENGTHS, seed=3)
    rows = PackedRows(made, length=24, together=together)
    assert rows.num_rows % batch_size  # the last batch is not full
    mesh = tiny.mesh(devices, fsdp=min(devices, 2), tensor=min(devices, 2))
    with use_mesh(mesh):
        loss = HeldOutLoss(MODEL, rows, mesh=mesh, batch_size=batch_size)
        base, tuned = tiny.llama_params(SHAPE), adapter()
        assert loss(base, None, None) == pytest.approx(naive(made, None), rel=1e-6)
        found = loss(tuned.params, base, LORA)
        assert found == pytest.approx(naive(made, tuned), rel=1e-6)
        zeros = jax.tree.map(np.zeros_like, tuned.params)
        assert loss(zeros, base, LORA) == pytest.approx(loss(base, None, None), rel=1e-6)


def test_perplexity():
    assert perplexity(0.0) == 1.0 and perplexity(2.0) == pytest.approx(7.389056)
    assert perplexity(1e4) == float("inf")
