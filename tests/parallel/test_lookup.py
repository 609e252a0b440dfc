"""Lookups and sparse products on split tables against plain NumPy."""

import re

import jax
import numpy as np
import pytest

from tests import tiny
from xrec_jax.parallel.lookup import spread, take_rows
from xrec_jax.parallel.mesh import put_sharded, sharding, use_mesh

MESHES = [(1, 1, 1), (8, 1, 1), (8, 2, 1), (8, 2, 2), (8, 1, 8)]  # devices, fsdp, tensor
ROWS, DIM = 128, 5


def exact_values(rng, *shape):
    """Fractions whose products and sums are exact in float32, whatever the order."""
    return (rng.integers(-64, 64, shape) / 16).astype(np.float32)


def value_and_grad(ids, cotangent):
    def total(table):
        rows = take_rows(table, ids)
        return (rows * cotangent).sum(), rows

    return jax.value_and_grad(total, has_aux=True)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("ids_shape", [(16,), (8, 3), (8, 3, 5)])
def test_take_rows_is_indexing(shape, ids_shape):
    rng = np.random.default_rng(len(ids_shape))
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    ids = rng.integers(0, ROWS, ids_shape).astype(np.int32)
    ids.flat[:4] = 0, ROWS - 1, 64, 64  # ends, and a repeat
    cotangent = exact_values(rng, *ids_shape, DIM)
    expected_grad = np.zeros_like(table)
    np.add.at(expected_grad, ids, cotangent)
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        placed = put_sharded(
            (table, ids, cotangent),
            (sharding(mesh, "table_rows", None), *(sharding(mesh, "batch"),) * 2),
        )
        step = jax.jit(lambda t, i, c: value_and_grad(i, c)(t))
        compiled = step.lower(*placed).compile()
        (_, rows), grad = jax.block_until_ready(compiled(*placed))
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_array_equal(grad, expected_grad)
    if mesh.size > 1:
        # Rows are only reduced; the table itself, as floats of all its rows, is never gathered.
        gathered = re.findall(r"= (\w+)\[([\d,]*)\][^=]* all-gather\(", compiled.as_text())
        floats = [
            int(np.prod([int(n) for n in dims.split(",")]))
            for kind, dims in gathered
            if kind == "f32"
        ]
        assert max(floats, default=0) <= ids.size * DIM
        assert grad.sharding.shard_shape(grad.shape) == (ROWS // 8, DIM)


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 2, 2)])
def test_a_batch_that_cannot_be_split_is_looked_up_whole(shape):
    rng = np.random.default_rng(9)
    table = rng.normal(size=(64, 3)).astype(np.float32)
    ids = rng.integers(0, 64, (7, 2)).astype(np.int32)
    cotangent = exact_values(rng, 7, 2, 3)
    expected_grad = np.zeros_like(table)
    np.add.at(expected_grad, ids, cotangent)
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        placed = put_sharded(table, sharding(mesh, "table_rows", None))
        step = jax.jit(lambda t: value_and_grad(ids, cotangent)(t))
        (_, rows), grad = jax.block_until_ready(step(placed))
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_array_equal(grad, expected_grad)


def test_take_rows_without_a_mesh():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(take_rows(table, np.array([3, 0])), table[[3, 0]])


@pytest.mark.parametrize("shape", MESHES[:4])
def test_spread_is_a_sparse_product(shape):
    rng = np.random.default_rng(2)
    source_rows, rows, edges = 64, 192, 328
    table = exact_values(rng, source_rows, DIM)
    source = rng.integers(0, source_rows, edges).astype(np.int32)
    target = rng.integers(0, rows // 2, edges).astype(np.int32)
    weight = (rng.integers(-16, 16, edges) / 32).astype(np.float32)
    weight[-5:] = 0
    cotangent = exact_values(rng, rows, DIM)
    expected = np.zeros((rows, DIM), np.float32)
    table_grad, weight_grad = np.zeros_like(table), np.zeros_like(weight)
    for edge in range(edges):
        s, t, w = source[edge], target[edge], weight[edge]
        expected[t] += w * table[s]
        table_grad[s] += w * cotangent[t]
        weight_grad[edge] = table[s] @ cotangent[t]
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        arrays = put_sharded(
            (table, weight, source, target, cotangent),
            (
                sharding(mesh, "table_rows"),
                *(sharding(mesh, "edges"),) * 3,
                sharding(mesh, "table_rows"),
            ),
        )

        def total(table, weight, source, target, cotangent):
            out = spread(table, source, target, weight, rows)
            return (out * cotangent).sum(), out

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, out), grads = jax.block_until_ready(step(*arrays))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(grads[0], table_grad)
    np.testing.assert_array_equal(grads[1], weight_grad)
    assert out.sharding.shard_shape(out.shape) == (rows // mesh.size, DIM)
