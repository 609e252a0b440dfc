"""Losses against numpy in float64: values, gradients by finite differences, cases by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.training.rl.losses import (
    METRICS,
    PolicyOptions,
    explained_variance,
    policy_loss,
    value_loss,
)

LENGTHS = np.array([5, 1, 0, 3, 6])
MASK = np.arange(6) < LENGTHS[:, None]
RNG = np.random.default_rng(4)
OLD = -RNG.uniform(0.2, 4.0, size=MASK.shape)
NEW = OLD + RNG.normal(size=MASK.shape) * 0.5
ADVANTAGES = RNG.normal(size=MASK.shape)
VALUES, RETURNS = RNG.normal(size=(2, *MASK.shape))
OLD_VALUES = VALUES + RNG.normal(size=MASK.shape) * 0.4
STEP = 1e-6


def naive_policy_loss(new, clip=0.2):
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = np.exp(new[row, t] - OLD[row, t])
            advantage = ADVANTAGES[row, t]
            total -= min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    return total


def naive_value_loss(values, clip=0.3):
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            old, target = OLD_VALUES[row, t], RETURNS[row, t]
            near = np.clip(values[row, t], old - clip, old + clip)
            total += 0.5 * max((values[row, t] - target) ** 2, (near - target) ** 2)
    return total


def differences(function, at):
    """Central finite differences of a scalar function, entry by entry."""
    grad = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[index] = STEP
        grad[index] = (function(at + moved) - function(at - moved)) / (2 * STEP)
    return grad


def test_policy_loss_and_gradient_are_the_naive_ones():
    with jax.enable_x64(True):

        def loss(new):
            return policy_loss(new, jnp.asarray(OLD), jnp.asarray(ADVANTAGES), MASK, clip=0.2)[0][0]

        found, grad = jax.value_and_grad(loss)(jnp.asarray(NEW))
        assert found.dtype == jnp.float64
    assert float(found) == pytest.approx(naive_policy_loss(NEW), rel=1e-12)
    expected = differences(naive_policy_loss, NEW)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)
    # The case has tokens of every kind: off the mask, clipped above and below, free.
    clipped = MASK & (np.asarray(grad) == 0)
    assert (clipped & (NEW > OLD)).any() and (clipped & (NEW < OLD)).any()
    assert (MASK & ~clipped).sum() > 5


@pytest.mark.parametrize("clip", [0.3, 0.0])
def test_value_loss_and_gradient_are_the_naive_ones(clip):
    naive = lambda values: naive_value_loss(values, clip or np.inf)  # noqa: E731
    with jax.enable_x64(True):

        def loss(values):
            return value_loss(
                values, jnp.asarray(OLD_VALUES), jnp.asarray(RETURNS), MASK, clip=clip
            )

        found, grad = jax.value_and_grad(lambda values: loss(values).loss)(jnp.asarray(VALUES))
        share = float(loss(jnp.asarray(VALUES)).sums["value_clip_fraction"])
    assert float(found) == pytest.approx(naive(VALUES), rel=1e-12)
    np.testing.assert_allclose(grad, differences(naive, VALUES), rtol=1e-6, atol=1e-8)
    assert share == (MASK & (np.asarray(grad) == 0)).sum()
    assert (share > 0) == (clip > 0)


def test_what_they_report():
    new, old, advantages = (np.float32(x) for x in (NEW, OLD, ADVANTAGES))
    found, largest = policy_loss(new, old, advantages, MASK, clip=0.2)
    log_ratio = (NEW - OLD)[MASK]
    ratio = np.exp(log_ratio)
    bad = np.where(ADVANTAGES[MASK] > 0, ratio > 1.2, ratio < 0.8)
    expected = {
        "policy_loss": naive_policy_loss(NEW),
        "kl_old": (ratio - 1 - log_ratio).sum(),
        "ratio_mean": ratio.sum(),
        "clip_fraction": bad.sum(),
    }
    assert {k: float(v) for k, v in found.sums.items()} == pytest.approx(expected, rel=1e-5)
    assert float(largest) == pytest.approx(ratio.max(), rel=1e-6)
    names = {*found.sums, *value_loss(new, old, advantages, MASK, clip=1).sums}
    assert {f"ppo/{name}" for name in names} < METRICS.keys()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 0.7, -0.7, -0.7),
        (1.1, 0.7, -0.77, -0.77),
        (1.5, 0.7, -0.84, 0.0),  # the gain ends at 1.2
        (0.5, 0.7, -0.35, -0.35),
        (1.5, -0.7, 1.05, 1.05),  # a loss is never cut
        (0.5, -0.7, 0.56, 0.0),  # its reduction ends at 0.8
        (0.9, -0.7, 0.63, 0.63),
    ],
)
def test_the_clip_by_hand(ratio, advantage, expected, slope):
    old = jnp.full((1, 1), -1.3)
    value, grad = jax.value_and_grad(
        lambda new: (
            policy_loss(new, old, jnp.full((1, 1), advantage), jnp.ones((1, 1), bool), clip=0.2)[
                0
            ].loss
        )
    )(old + jnp.log(ratio))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(grad[0, 0]) == pytest.approx(slope, rel=1e-5)


def test_the_same_policy_has_ratios_of_exactly_one():
    same = jnp.asarray(NEW, "float32")
    found, largest = policy_loss(same, same, jnp.asarray(ADVANTAGES), MASK, clip=0.2)
    assert float(largest) == 1.0
    assert float(found.sums["ratio_mean"]) == MASK.sum()
    assert float(found.sums["kl_old"]) == float(found.sums["clip_fraction"]) == 0.0


def test_sums_add_up_over_any_parts():
    def loss(rows):
        new, old, advantages = (np.float32(x[rows]) for x in (NEW, OLD, ADVANTAGES))
        return np.array(policy_loss(new, old, advantages, MASK[rows], clip=0.2)[0].loss)

    whole = loss(slice(None))
    assert loss(slice(0, 2)) + loss(slice(2, 5)) == pytest.approx(whole, rel=1e-6)


def test_what_is_beyond_an_answer_may_be_anything():
    arrays = [np.float32(x) for x in (NEW, OLD, ADVANTAGES)]
    broken = [np.where(MASK, x, np.nan) for x in arrays]
    values = [np.float32(x) for x in (VALUES, OLD_VALUES, RETURNS)]
    broken_values = [np.where(MASK, x, np.nan) for x in values]

    def both(policy, value):
        def loss(new, values):
            first = policy_loss(new, *policy[1:], MASK, clip=0.2)[0].loss
            return first + value_loss(values, *value[1:], MASK, clip=0.2).loss

        return jax.value_and_grad(loss, argnums=(0, 1))(policy[0], value[0])

    for one, other in zip(
        jax.tree.leaves(both(arrays, values)),
        jax.tree.leaves(both(broken, broken_values)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_policy_far_from_the_old_one_stays_finite():
    new, old = jnp.array([[-1.0, -900.0]]), jnp.array([[-900.0, -1.0]])
    ones = jnp.ones((1, 2), bool)
    for sign in (1.0, -1.0):
        advantages = jnp.full((1, 2), sign)
        found, largest = policy_loss(new, old, advantages, ones, clip=0.2)
        grad = jax.grad(lambda x: policy_loss(x, old, advantages, ones, clip=0.2)[0].loss)(new)  # noqa: B023
        for value in (largest, *found.sums.values(), *grad[0]):
            assert np.isfinite(value)


def test_explained_variance_is_that_of_numpy():
    found = explained_variance(jnp.asarray(VALUES), jnp.asarray(RETURNS), MASK)
    rest, returns = (RETURNS - VALUES)[MASK], RETURNS[MASK]
    assert float(found) == pytest.approx(1 - rest.var() / returns.var(), rel=1e-5)
    perfect = explained_variance(jnp.asarray(RETURNS) + 3, jnp.asarray(RETURNS), MASK)
    assert float(perfect) == pytest.approx(1, abs=1e-5)
    assert float(explained_variance(jnp.asarray(VALUES), jnp.full((5, 6), 0.7), MASK)) == 0
    assert float(explained_variance(jnp.asarray(VALUES), jnp.asarray(RETURNS), 0 * MASK > 0)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=0.0),
        dict(clip=0.0),
        dict(clip=float("nan")),
        dict(value_clip=-0.1),
        dict(kl_stop=-1.0),
        dict(entropy_weight=float("inf")),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PolicyOptions(**wrong)
