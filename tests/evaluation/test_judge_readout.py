"""The judge's probabilities against logits read one row at a time, on one device and on eight."""

import jax
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.readout import AnswerReader
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import put_replicated, use_mesh

SHAPE = LlamaConfig(**(tiny.LLAMA.__dict__ | {"max_positions": 300}))
ANSWERS = (11, 42)


def adapter():
    config = lora.LoraConfig(rank=2, alpha=6.0, targets=("q", "down"))
    made = lora.init(config, SHAPE, jax.random.key(4))
    key = jax.random.key(5)
    return lora.Adapter(
        jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), made.params), config
    )


def rows(seed=0):
    """Ragged rows; 3 to 7 share 66 tokens, 8 to 10 too few to be read apart."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(1, SHAPE.vocab_size, n).tolist()  # noqa: E731
    alone = [draw(n) for n in (90, 71, 96)]
    shared, few = draw(66), draw(40)
    return [
        *alone,
        *(shared + draw(n) for n in (1, 30, 12, 27, 5)),
        *([*few, n] for n in (3, 4, 9)),
    ]


GROUPS = [[3, 4, 5, 6, 7], [8, 9, 10]]


@pytest.fixture(scope="module")
def expected():
    model, params, tuned = Llama(SHAPE), tiny.llama_params(SHAPE), adapter()
    read = jax.jit(
        lambda ids, segments: model.logits(params, ids, segments=segments, adapter=tuned)
    )
    found = []
    for row in rows():
        ids, segments = np.zeros((1, 96), np.int32), np.zeros((1, 96), np.int32)
        ids[0, : len(row)], segments[0, : len(row)] = row, 1
        two = np.asarray(read(ids, segments))[0, len(row) - 1, list(ANSWERS)].astype(np.float64)
        found.append(np.exp(two[0]) / np.exp(two).sum())
    return np.array(found)


@pytest.mark.parametrize("devices, groups", [(1, GROUPS), (8, GROUPS), (1, ())])
def test_probabilities_are_those_of_single_rows(expected, devices, groups):
    mesh = tiny.mesh(8, 2, 2) if devices == 8 else tiny.mesh()
    with use_mesh(mesh):
        params, tuned = (
            put_replicated(tree, mesh) for tree in (tiny.llama_params(SHAPE), adapter().params)
        )
        reader = AnswerReader(
            Llama(SHAPE), params, lora.Adapter(tuned, adapter().config), ANSWERS, mesh=mesh, batch=4
        )
        found = reader(rows(), groups=groups)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.min() > 0.01 and found.max() < 0.99
    assert found.std() > 0.05


def test_rows_and_batches_that_cannot_be_read_are_refused():
    mesh = tiny.mesh(8)
    with use_mesh(mesh):
        made = dict(mesh=mesh, batch=8)
        params = tiny.llama_params(SHAPE)
        with pytest.raises(UserError, match="batch=6 must be divisible by the 8 devices"):
            AnswerReader(Llama(SHAPE), params, None, ANSWERS, mesh=mesh, batch=6)
        with pytest.raises(UserError, match="both answers are token 7"):
            AnswerReader(Llama(SHAPE), params, None, (7, 7), **made)
        reader = AnswerReader(Llama(SHAPE), params, None, ANSWERS, **made)
        for row in ([], [1] * 301):
            with pytest.raises(UserError, match=f"row 1 has {len(row)} tokens"):
                reader([[1], row])
