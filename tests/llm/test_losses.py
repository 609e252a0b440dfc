"""Chunked cross entropy and log-probabilities against the whole array of logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.llm.model.losses import chunk_columns, cross_entropy, log_probs
from xrec_jax.parallel.mesh import put_batch, put_replicated, sharding, use_mesh

ROWS, LENGTH, WIDTH, VOCAB = 5, 7, 6, 11


@functools.cache
def case(rows=ROWS):
    """Fractional weights; one row without any, one with a single one at its end."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(rows, LENGTH, WIDTH)).astype(np.float32)
    table = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32)
    weights = rng.random((rows, LENGTH)).astype(np.float32) * (rng.random((rows, LENGTH)) < 0.6)
    weights[1] = 0.0
    weights[2] = 0.0
    weights[2, -1] = 0.37
    weights[0, 0] = -0.5  # a weight is any number, as for an advantage
    return hidden, table, targets, weights.astype(np.float32)


def naive_log_probs(hidden, table, targets, temperature=1.0):
    """Token by token, in float64."""
    out = np.zeros(targets.shape)
    for i, j in np.ndindex(*targets.shape):
        logits = table.astype(np.float64) @ hidden[i, j] / temperature
        out[i, j] = logits[targets[i, j]] - np.log(np.sum(np.exp(logits)))
    return out


def whole(hidden, table, targets, weights):
    log_p = jax.nn.log_softmax(hidden @ table.T)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights)


@functools.cache
def reference():
    """Loss, and its gradients in states and table, without chunks."""
    return jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(*case())


@functools.cache
def compiled(chunk, train_table):
    loss = functools.partial(cross_entropy, chunk=chunk, train_table=train_table)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize(
    ("chunk", "train_table"),
    [(0, True), (1, True), (3, True), (LENGTH, True), (LENGTH + 4, True), (3, False)],
)
def test_cross_entropy(chunk, train_table):
    hidden, table, targets, weights = case()
    loss, (hidden_grad, table_grad) = compiled(chunk, train_table)(*case())
    np.testing.assert_allclose(
        loss, -np.sum(naive_log_probs(hidden, table, targets) * weights), rtol=1e-5
    )
    expected = reference()[1]
    np.testing.assert_allclose(hidden_grad, expected[0], atol=2e-6)
    assert not np.any(hidden_grad[1]) and not np.any(hidden_grad[2, :-1])
    if train_table:
        np.testing.assert_allclose(table_grad, expected[1], atol=5e-6)
    else:
        assert not np.any(table_grad)


def test_forward_alone_and_without_jit():
    for train_table in (True, False):
        loss = cross_entropy(*case(), chunk=3, train_table=train_table)
        np.testing.assert_allclose(loss, reference()[0], rtol=1e-5)


def test_gradient_is_scaled_by_what_follows():
    """A mean over tokens, squared: the cotangent of the sum is not one."""
    hidden, table, targets, weights = case()

    def after(loss):
        return (loss / 7.3) ** 2

    def ours(hidden, table):
        return after(cross_entropy(hidden, table, targets, weights, chunk=2, train_table=True))

    found = jax.jit(jax.grad(ours, argnums=(0, 1)))(hidden, table)
    total, grads = reference()
    for a, b in zip(found, grads, strict=True):
        np.testing.assert_allclose(a, 2 * total / 7.3**2 * b, rtol=1e-4, atol=2e-6)


def test_gradient_by_finite_differences():
    hidden, table, targets, weights = case()
    grads = compiled(3, True)(*case())[1]
    rng = np.random.default_rng(0)
    for which in range(2):
        direction = rng.normal(size=(hidden, table)[which].shape)
        values = []
        for sign in (1, -1):
            moved = [hidden.astype(np.float64), table.astype(np.float64)]
            moved[which] = moved[which] + sign * 1e-5 * direction
            values.append(-np.sum(naive_log_probs(*moved, targets) * weights))
        slope = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(np.sum(grads[which] * direction), slope, rtol=1e-4)


def test_no_weight_at_all():
    hidden, table, targets, weights = case()
    loss, grads = compiled(3, True)(hidden, table, targets, np.zeros_like(weights))
    assert loss == 0 and not np.any(grads[0]) and not np.any(grads[1])


def test_negative_weights():
    """Advantages have either sign."""
    hidden, table, targets, weights = case()
    loss, grads = compiled(3, True)(hidden, table, targets, -np.abs(weights))
    np.testing.assert_allclose(
        loss, np.sum(naive_log_probs(hidden, table, targets) * np.abs(weights)), rtol=1e-5
    )
    assert np.any(grads[0]) and np.any(grads[1])


@pytest.mark.parametrize("chunk", [3, LENGTH])
def test_targets_without_weight_may_be_anything(chunk):
    hidden, table, targets, weights = case()
    for wrong in (-100, VOCAB, 10**6):
        other = np.where(weights == 0, wrong, targets).astype(np.int32)
        loss, grads = compiled(chunk, True)(hidden, table, other, weights)
        np.testing.assert_allclose(loss, reference()[0], rtol=1e-5)
        np.testing.assert_allclose(grads[0], reference()[1][0], atol=2e-6)
        np.testing.assert_allclose(grads[1], reference()[1][1], atol=5e-6)


def test_large_logits_are_finite():
    hidden, table, targets, weights = case()
    hidden = hidden * 1e3
    loss, grads = compiled(3, True)(hidden, table, targets, weights)
    np.testing.assert_allclose(loss, whole(hidden, table, targets, weights), rtol=1e-5)
    assert np.isfinite(grads[0]).all() and np.isfinite(grads[1]).all()


def test_bfloat16_states():
    hidden, table, targets, weights = case()
    half = jnp.asarray(hidden, jnp.bfloat16)
    loss, grads = compiled(3, True)(half, table, targets, weights)
    assert loss.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
    assert grads[1].dtype == jnp.float32
    np.testing.assert_allclose(loss, reference()[0], rtol=0.02)
    for a, b in zip(grads, reference()[1], strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.05)


@pytest.mark.parametrize("axes", [(8, 2, 2), (8, 4, 1)])
def test_on_a_mesh(axes):
    hidden, table, targets, weights = case(rows=8)
    table = np.concatenate([table, table[:1] * 0.5])  # 12 rows: tensor must divide them
    expected, expected_grads = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(
        hidden, table, targets, weights
    )
    mesh = tiny.mesh(*axes)
    with use_mesh(mesh):
        rows = put_batch((hidden, targets, weights), mesh)
        split = jax.device_put(table, sharding(mesh, "vocab", None))
        loss, grads = jax.block_until_ready(compiled(3, True)(rows[0], split, rows[1], rows[2]))
        values = jax.block_until_ready(
            jax.jit(functools.partial(log_probs, chunk=3))(
                rows[0], put_replicated(table, mesh), rows[1]
            )
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads[0], expected_grads[0], atol=2e-6)
    np.testing.assert_allclose(grads[1], expected_grads[1], atol=5e-6)
    np.testing.assert_allclose(values, naive_log_probs(hidden, table, targets), atol=1e-5)


@pytest.mark.parametrize(("chunk", "temperature"), [(0, 1.0), (1, 0.6), (3, 1.7), (LENGTH, 0.6)])
def test_log_probs(chunk, temperature):
    hidden, table, targets, weights = case()

    def weighted(hidden, table):
        values = log_probs(hidden, table, targets, temperature=temperature, chunk=chunk)
        return jnp.sum(values * weights), values

    (_, values), grads = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(
        hidden, table
    )
    assert values.shape == targets.shape and values.dtype == jnp.float32
    np.testing.assert_allclose(
        values, naive_log_probs(hidden, table, targets, temperature), atol=1e-5
    )
    expected = jax.jit(jax.grad(whole, argnums=(0, 1)))(
        hidden / np.float32(temperature), table, targets, -weights
    )
    np.testing.assert_allclose(grads[0], expected[0] / temperature, atol=3e-6)
    np.testing.assert_allclose(grads[1], expected[1], atol=6e-6)


def test_equal_states_have_no_divergence_at_any_temperature():
    hidden, table, targets, _ = case()
    run = jax.jit(functools.partial(log_probs, chunk=2))
    for temperature in (0.3, 1.0, 2.5):
        one = run(hidden, table, targets, temperature=temperature)
        two = run(hidden.copy(), table.copy(), targets, temperature=temperature)
        np.testing.assert_array_equal(one, two)


def largest(jaxpr):
    """Elements of the largest array that a traced program names, inner programs included."""
    size = 0
    for equation in jaxpr.eqns:
        size = max([size, *(v.aval.size for v in equation.outvars)])
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    size = max(size, largest(inner))
    return size


def test_logits_never_exist_at_once():
    rows, length, width, vocab, chunk = 3, 50, 4, 1000, 5
    hidden, table = jnp.zeros((rows, length, width)), jnp.zeros((vocab, width))
    targets, weights = jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length))

    def loss(hidden, table):
        return cross_entropy(hidden, table, targets, weights, chunk=chunk, train_table=True)

    def likelihood(hidden, table):
        return jnp.sum(log_probs(hidden, table, targets, chunk=chunk))

    def all_at_once(hidden, table):
        return whole(hidden, table, targets, weights)

    sizes = [
        largest(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(hidden, table).jaxpr)
        for f in (loss, likelihood, all_at_once)
    ]
    assert sizes == [rows * chunk * vocab, rows * chunk * vocab, rows * length * vocab]


def test_chunk_fits_the_budget():
    assert chunk_columns(2, 40, 100) == 40  # a small batch is one chunk
    columns = chunk_columns(16, 2048, 32000)
    assert 1 <= columns < 2048
    assert chunk_columns(10**6, 2048, 10**6) == 1


def test_a_chunk_is_a_product_of_many_rows_whatever_the_vocabulary():
    """A small vocabulary fills the bytes of a chunk, a large one gets the fewest rows that pay."""
    assert chunk_columns(8, 1000, 1000) == (4 << 20) // (4 * 8 * 1000)
    assert chunk_columns(2, 1000, 49152) == 64
    assert chunk_columns(1, 100, 49152) == 100
