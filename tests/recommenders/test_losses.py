"""Ranking losses against float64 loops, finite differences and hand-worked cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.recommenders import losses

ROWS, STEPS, DIM, ITEMS, PADDED = 3, 6, 4, 11, 64


def softmax_case(seed=0, scale=1.0):
    """Positions with fractional and zero weights; padding rows of the table hold large values."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(ROWS, STEPS, DIM)) * scale
    table = rng.normal(size=(PADDED, DIM))
    table[ITEMS:] = 50.0
    target = rng.integers(0, ITEMS, (ROWS, STEPS))
    target[0, :2] = target[0, 2]
    weight = rng.choice([0.0, 0.25, 1.0, 1.7], (ROWS, STEPS))
    weight[1, 2:] = 0.0
    return (
        states.astype(np.float32),
        table.astype(np.float32),
        target.astype(np.int32),
        weight.astype(np.float32),
    )


def naive(states, table, target, weight):
    """Loss, and its gradients for states, table and weight, position by position."""
    states, table = states.astype(np.float64), table.astype(np.float64)
    total, grads = 0.0, (np.zeros_like(states), np.zeros_like(table), np.zeros(weight.shape))
    for place in np.ndindex(*target.shape):
        logits = [float(states[place] @ table[item]) for item in range(ITEMS)]
        top = max(logits)
        log_z = top + math.log(sum(math.exp(x - top) for x in logits))
        w, y = float(weight[place]), int(target[place])
        total += w * (log_z - logits[y])
        grads[2][place] = log_z - logits[y]
        for item in range(ITEMS):
            slope = w * (math.exp(logits[item] - log_z) - (item == y))
            grads[0][place] += slope * table[item]
            grads[1][item] += slope * states[place]
    return total, grads


def with_chunks(monkeypatch, steps):
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * ROWS * PADDED * steps)


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 4, 6, 100])
def test_full_softmax_and_its_gradients(monkeypatch, chunk):
    with_chunks(monkeypatch, chunk)
    states, table, target, weight = softmax_case()

    def loss(states, table):
        return 0.3 * losses.full_softmax(states, table, target, weight, ITEMS)

    scans = str(jax.make_jaxpr(loss)(states, table))
    largest = {0: 1, 4: 3, 100: 6}.get(chunk, chunk)
    assert f"length={STEPS // largest}" in scans
    assert f"f32[{ROWS * largest},{PADDED}]" in scans
    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(states, table)
    expected, expected_grads = naive(states, table, target, weight)
    np.testing.assert_allclose(value, 0.3 * expected, rtol=1e-6)
    for grad, reference in zip(grads, expected_grads, strict=False):
        np.testing.assert_allclose(grad, 0.3 * reference, rtol=2e-5, atol=2e-6)
    assert not np.asarray(grads[1])[ITEMS:].any()
    assert not np.asarray(grads[0])[weight == 0].any()
    # Without a gradient the same value.
    np.testing.assert_array_equal(loss(states, table), value)


def test_full_softmax_gradient_of_the_weights():
    states, table, target, weight = softmax_case()
    grad = jax.grad(losses.full_softmax, argnums=3)(states, table, target, weight, ITEMS)
    np.testing.assert_allclose(grad, naive(states, table, target, weight)[1][2], rtol=1e-5)


def test_full_softmax_by_finite_differences():
    states, table, target, weight = softmax_case(4)
    direction = [np.random.default_rng(1).normal(size=a.shape) for a in (states, table)]
    direction[1][ITEMS:] = 0
    grads = jax.grad(losses.full_softmax, argnums=(0, 1))(states, table, target, weight, ITEMS)
    slope = sum(
        float((np.asarray(g, np.float64) * d).sum()) for g, d in zip(grads, direction, strict=True)
    )
    step = 1e-4
    ahead, behind = (
        naive(
            states + sign * step * direction[0], table + sign * step * direction[1], target, weight
        )[0]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5)


def test_full_softmax_of_extreme_scores():
    states, table, target, weight = softmax_case(2, scale=200.0)
    value, grads = jax.value_and_grad(losses.full_softmax, argnums=(0, 1))(
        states, table, target, weight, ITEMS
    )
    expected, expected_grads = naive(states, table, target, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for grad, reference in zip(grads, expected_grads, strict=False):
        np.testing.assert_allclose(grad, reference, rtol=2e-4, atol=2e-2)


def test_full_softmax_without_any_weight():
    states, table, target, weight = softmax_case()
    value, grads = jax.value_and_grad(losses.full_softmax, argnums=(0, 1))(
        states, table, target, 0 * weight, ITEMS
    )
    assert value == 0 and not any(np.asarray(g).any() for g in grads)


def test_full_softmax_in_bfloat16():
    states, table, target, weight = softmax_case(3)
    states = jnp.asarray(states, jnp.bfloat16)
    value, grads = jax.value_and_grad(losses.full_softmax, argnums=(0, 1))(
        states, jnp.asarray(table), target, weight, ITEMS
    )
    assert value.dtype == jnp.float32
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]
    expected, expected_grads = naive(np.asarray(states, np.float32), table, target, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    for grad, reference in zip(grads, expected_grads, strict=False):
        error = np.linalg.norm(np.asarray(grad, np.float64) - reference)
        assert error < 2e-2 * np.linalg.norm(reference)


def cross_entropy(scores, target):
    return np.log(np.exp(scores).sum()) - scores[target]


def test_sampled_softmax_with_every_item_once_is_the_full_softmax():
    scores = np.array([0.5, -1.25, 2.0, 0.75, -0.5])
    log_q = np.full(5, math.log(1 / 5))
    for target in range(5):
        found = losses.sampled_softmax(scores[target], scores, log_q, np.arange(5) == target)
        np.testing.assert_allclose(found, cross_entropy(scores, target), rtol=1e-6)


def test_sampled_softmax_hand_worked():
    # The target counts e; a draw counts exp(s) / (3 q): 4/3, 8/3 e^2 and 2/3 e; one collision.
    found = losses.sampled_softmax(
        np.array([1.0, 1.0]),
        np.array([[0.0, 2.0, 7.0], [0.0, 2.0, 1.0]]),
        np.log([[0.25, 0.125, 0.5], [0.25, 0.125, 0.5]]),
        np.array([[False, False, True], [False, False, False]]),
    )
    rest = math.e + (4 + 8 * math.e**2) / 3
    assert found.shape == (2,)
    np.testing.assert_allclose(
        found, [math.log(rest / math.e), math.log((rest + 2 / 3 * math.e) / math.e)], rtol=1e-6
    )


@pytest.mark.parametrize("draws", [20, 20_000])
def test_sampled_softmax_approaches_the_full_one(draws):
    """Every item is drawn exactly as often as its probability says: no sampling noise is left."""
    scores = np.array([0.5, -1.25, 2.0, 0.75, -0.5])
    q = np.array([0.1, 0.2, 0.4, 0.05, 0.25])
    drawn = np.repeat(np.arange(5), np.rint(q * draws).astype(int))
    assert len(drawn) == draws
    log_q, softmax = np.log(q), np.exp(scores) / np.exp(scores).sum()

    def loss(scores, target):
        return losses.sampled_softmax(scores[target], scores[drawn], log_q[drawn], drawn == target)

    for target in range(5):
        grad = jax.grad(loss)(jnp.asarray(scores), target)
        np.testing.assert_allclose(grad, softmax - np.eye(5)[target], atol=1e-4)


def softplus(x):
    return math.log1p(math.exp(x))


def test_bpr_hand_worked():
    found = losses.bpr(np.array([0.5, -1.0]), np.array([[-0.25, 1.5], [-1.0, -3.5]]))
    expected = [(softplus(-0.75) + softplus(1.0)) / 2, (math.log(2) + softplus(-2.5)) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # d/ds_pos = -sigmoid(s_neg - s_pos), which vanishes and saturates without overflow.
    slope = jax.vmap(jax.grad(lambda p: losses.bpr(p, jnp.zeros(1))))(
        jnp.array([0.5, 300.0, -300.0])
    )
    np.testing.assert_allclose(slope, [-1 / (1 + math.exp(0.5)), 0.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(losses.bpr(np.float32(-300), np.zeros(2, np.float32)), 300.0)


def test_binary_cross_entropy_hand_worked():
    found = losses.binary_cross_entropy(
        np.array([0.5, -200.0]), np.array([[-0.25, 1.5, 0.0], [200.0, -200.0, -200.0]])
    )
    expected = [
        softplus(-0.5) + (softplus(-0.25) + softplus(1.5) + softplus(0.0)) / 3,
        200 + 200 / 3,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weighted_mean():
    values = np.array([[2.0, 4.0], [8.0, np.float32(1e30)]], np.float32)
    assert losses.weighted_mean(values, np.array([[1.0, 2.0], [1.0, 0.0]])) == 4.5
    assert losses.weighted_mean(values, np.zeros((2, 2))) == 0
    np.testing.assert_allclose(
        losses.weighted_mean(values, np.array([[0.25, 0.5], [0, 0]])), 10 / 3
    )
