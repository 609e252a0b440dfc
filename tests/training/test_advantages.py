"""Rewards and advantages against naive loops, on ragged answers and fractional rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import put_batch, use_mesh
from xrec_jax.training.rl.advantages import (
    ESTIMATORS,
    AdvantageOptions,
    advantages_of,
    answer_mask,
    gae,
    group_advantages,
    missing_eos,
    token_rewards,
    whiten,
)

LENGTHS = np.array([5, 1, 0, 3, 7, 2, 7, 4])
SIZE = 7
MASK = np.arange(SIZE) < LENGTHS[:, None]
RNG = np.random.default_rng(0)
SCORES = np.array([0.7, -0.3, 1.25, 0.01, -2.5, 0.7, 0.35, 3.1], np.float32)
LOG_PROBS, REFERENCE, VALUES = RNG.normal(size=(3, 8, SIZE)).astype(np.float32)
REWARDS = RNG.normal(size=(8, SIZE)).astype(np.float32) * 0.37
GROUPS = np.array([2, 0, 2, 0, 2, 5, 0, 2])


def test_masks_come_from_lengths():
    found = answer_mask(jnp.asarray(LENGTHS), SIZE)
    assert found.dtype == bool and np.array_equal(found, MASK)


# Rewards


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_token_rewards_are_those_of_a_loop(kind):
    found = token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, beta=0.05, kind=kind)
    estimate = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: np.exp(-d) - 1 + d}[
        kind
    ]
    expected = np.zeros((8, SIZE))
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            d = float(LOG_PROBS[row, t]) - float(REFERENCE[row, t])
            expected[row, t] = -0.05 * estimate(d) + (SCORES[row] if t == length - 1 else 0)
    assert found.score.dtype == found.penalty.dtype == jnp.float32
    for sums in (found, found.total, jnp.asarray(found)):
        np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)


def test_they_sum_to_the_score_less_the_kl():
    found = np.asarray(token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, beta=0.3), np.float64)
    divergence = np.sum((LOG_PROBS - REFERENCE) * MASK, axis=1)
    has = LENGTHS > 0
    np.testing.assert_allclose(found.sum(1)[has], (SCORES - 0.3 * divergence)[has], atol=2e-6)
    assert found[~has].sum() == 0


def test_a_fraction_stays_a_fraction():
    """0.7 is 0.7 whatever the dtypes, up to the advantage and its sign."""
    for dtype in (np.float32, np.float64, jnp.bfloat16):
        score = np.asarray([0.7, 0.2], dtype)
        whole = jnp.zeros((2, 3), jnp.int32)
        rewards = token_rewards(score, whole, whole, jnp.ones((2, 3), bool), beta=0)
        assert rewards.total.dtype == jnp.float32
        exact = np.asarray(score, np.float32)
        assert np.asarray(rewards)[:, 2].tolist() == exact.tolist() and exact[0] > 0.69
        advantages, returns = gae(
            rewards.total, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool), discount=1, lam=1
        )
        assert advantages.dtype == returns.dtype == jnp.float32
        np.testing.assert_allclose(returns, np.repeat(exact[:, None], 3, axis=1), rtol=1e-6)
    rewards = token_rewards(
        jnp.array([3, -1]), jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.ones((2, 2)), beta=0.5
    )
    assert rewards.total.dtype == jnp.float32
    assert np.asarray(rewards).tolist() == [[0, 3], [0, -1]]


def test_without_a_difference_to_the_reference_only_the_score_is_left():
    found = np.asarray(token_rewards(SCORES, LOG_PROBS, LOG_PROBS, MASK, beta=7.0, kind="k3"))
    assert np.count_nonzero(found) == np.count_nonzero(LENGTHS)
    for row, length in enumerate(LENGTHS):
        assert length == 0 or found[row, length - 1] == SCORES[row]


def test_what_is_beyond_an_answer_may_be_anything():
    broken = [np.where(MASK, x, np.nan) for x in (LOG_PROBS, REFERENCE, REWARDS, VALUES)]
    expected = token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, beta=0.1)
    np.testing.assert_array_equal(token_rewards(SCORES, *broken[:2], MASK, beta=0.1), expected)
    for name in ESTIMATORS:
        options = AdvantageOptions()
        one, other = (
            advantages_of(name, *arrays, MASK, GROUPS, options=options)
            for arrays in ((REWARDS, VALUES), broken[2:])
        )
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_answers_that_were_cut_off_lose_the_penalty():
    found = missing_eos(np.array([0.7, 0.7, -1.0]), np.array([True, False, False]), 0.25)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0.7, 0.45, -1.25], rtol=1e-6)


# Advantages


@pytest.mark.parametrize(
    ("discount", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0), (0.0, 0.5)]
)
def test_gae_is_the_sum_of_discounted_errors(discount, lam):
    advantages, returns = gae(REWARDS, VALUES, MASK, discount=discount, lam=lam)
    expected = np.zeros((8, SIZE))
    for row, length in enumerate(LENGTHS):
        value = [*VALUES[row, :length].astype(float), 0.0]
        errors = [REWARDS[row, t] + discount * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            expected[row, t] = sum(
                (discount * lam) ** (k - t) * errors[k] for k in range(t, length)
            )
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, np.where(MASK, expected + VALUES, 0), rtol=1e-5, atol=1e-6)


def test_gae_with_lambda_one_is_what_was_earned_less_what_was_expected():
    advantages, returns = gae(REWARDS, VALUES, MASK, discount=1.0, lam=1.0)
    to_go = np.cumsum((REWARDS * MASK)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, to_go * MASK, atol=1e-6)
    np.testing.assert_allclose(advantages, (to_go - VALUES) * MASK, atol=1e-6)


@pytest.mark.parametrize("scale", [True, False])
def test_groups_are_compared_as_by_a_loop(scale):
    found = np.asarray(group_advantages(SCORES, GROUPS, 6, MASK, scale=scale))
    for row in range(8):
        own = SCORES[GROUPS[row] == GROUPS].astype(float)
        expected = SCORES[row] - own.mean()
        if scale and len(own) > 1:
            expected /= own.std()
        np.testing.assert_allclose(found[row], np.where(MASK[row], expected, 0), atol=2e-6)
    assert np.all(found[5] == 0)  # alone in its group


def test_groups_of_token_rewards_compare_their_sums():
    found = group_advantages(REWARDS, GROUPS, 6, MASK)
    expected = group_advantages((REWARDS * MASK).sum(1), GROUPS, 6, MASK)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_scores_in_a_group_say_nothing():
    for value in (0.7, 0.1, 0.0, -1234.567):
        scores = np.full(7, value, np.float32)
        found = group_advantages(scores, np.zeros(7, int), 1, np.ones((7, 2), bool))
        assert np.all(np.asarray(found) == 0), value


def test_the_unit_of_a_score_does_not_matter_when_scaled():
    one = group_advantages(SCORES, GROUPS, 6, MASK)
    other = group_advantages(SCORES * 1e-6, GROUPS, 6, MASK)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one).max() > 1


def test_rows_without_a_group_count_nowhere():
    groups = np.where(np.arange(8) % 3 == 1, -1, GROUPS)
    found = np.asarray(group_advantages(SCORES, groups, 6, MASK))
    kept = groups >= 0
    assert np.all(found[~kept] == 0)
    np.testing.assert_allclose(
        found[kept], group_advantages(SCORES[kept], groups[kept], 6, MASK[kept]), atol=1e-6
    )
    rewards = token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, beta=0.3)
    found = advantages_of("group", rewards, None, MASK, groups, options=AdvantageOptions())[0]
    assert np.all(np.asarray(found)[~kept] == 0) and np.abs(found).max() > 0.3


# Whitening


def test_whitening_is_that_of_numpy():
    x = REWARDS * 3 + 11.7
    found = np.asarray(whiten(x, MASK))
    real = x[MASK].astype(float)
    np.testing.assert_allclose(found[MASK], (real - real.mean()) / real.std(), atol=2e-5)
    assert np.all(found[~MASK] == 0)


@pytest.mark.parametrize("value", [0.7, 0.0, -3e5, 1e-7])
def test_a_single_token_and_equal_tokens_become_zero(value):
    for shape in ((1, 1), (3, 5)):
        x = np.full(shape, value, np.float32)
        assert np.all(np.asarray(whiten(x, np.ones(shape, bool))) == 0)
    assert np.all(np.asarray(whiten(np.ones((2, 2)), np.zeros((2, 2), bool))) == 0)


def test_eight_devices_whiten_over_all_their_rows():
    x, mask = (np.tile(a, (2, 1)) for a in (REWARDS + 0.3, MASK))
    x[8:] *= 2.5
    mesh = tiny.mesh(8)
    with use_mesh(mesh):
        found = jax.jit(whiten)(*put_batch((x, mask), mesh))
        assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, whiten(x, mask), atol=2e-6)


# The interface


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_share_an_interface(name):
    plain = AdvantageOptions(lam=0.9, num_groups=6, whiten=False)
    found, returns = jax.jit(lambda *arrays: advantages_of(name, *arrays, options=plain))(
        REWARDS, VALUES, MASK, GROUPS
    )
    direct = {
        "gae": lambda: gae(REWARDS, VALUES, MASK, discount=1.0, lam=0.9)[0],
        "group": lambda: group_advantages(REWARDS, GROUPS, 6, MASK),
    }[name]()
    np.testing.assert_allclose(found, direct, atol=1e-6)
    assert returns.shape == (8, SIZE) and returns.dtype == jnp.float32
    white, same = advantages_of(
        name, REWARDS, VALUES, MASK, GROUPS, options=AdvantageOptions(lam=0.9)
    )
    # Only those of a critic: a group's have their baseline already.
    expected = whiten(direct, MASK) if name == "gae" else direct
    np.testing.assert_allclose(white, expected, atol=1e-5)
    np.testing.assert_allclose(same, returns, atol=1e-6)


# Groups and the KL


def rewards_by_a_loop(groups, scores, *, scale, beta):
    """Advantages and returns of answers whose KL is that of `LOG_PROBS` to `REFERENCE`."""
    advantages, returns = np.zeros((2, 8, SIZE))
    for row, length in enumerate(LENGTHS):
        # An answer without a token earns nothing, and its group is compared with that.
        own = [
            float(scores[o]) if LENGTHS[o] else 0.0 for o in range(8) if groups[o] == groups[row]
        ]
        spread = np.std(own)
        compared = (float(scores[row]) - np.mean(own)) / (spread if scale and spread else 1.0)
        for t in range(length):
            to_come = sum(
                float(LOG_PROBS[row, s]) - float(REFERENCE[row, s]) for s in range(t, length)
            )
            advantages[row, t] = compared - beta * to_come
            returns[row, t] = scores[row] - beta * to_come
    return advantages, returns


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("groups", [GROUPS, np.array([1, 1, 1, 4, 4, 4, 4, 4]), np.zeros(8, int)])
def test_groups_compare_scores_and_the_kl_stays_apart(groups, scale):
    """Fractions, groups of 1, 3, 4, 5 and 8, ragged answers, one of them empty."""
    rewards = token_rewards(SCORES, LOG_PROBS, REFERENCE, MASK, beta=0.3)
    for whitened in (True, False):
        options = AdvantageOptions(scale=scale, whiten=whitened)
        found = jax.jit(
            lambda r, options=options: advantages_of(
                "group", r, None, MASK, groups, options=options
            )
        )(rewards)
        expected = rewards_by_a_loop(groups, SCORES, scale=scale, beta=0.3)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize("score", [0.0, 0.1, 1.0, -37.3])
@pytest.mark.parametrize("beta", [0.05, 1e-4])
@pytest.mark.parametrize("noise", [1e-7, 1e-3])
def test_equal_scores_stay_equal_beside_a_kl(score, beta, noise):
    """Nothing but the KL itself is left, in one group as in many; it is not brought to a unit."""
    off = LOG_PROBS + noise * np.random.default_rng(1).normal(size=MASK.shape).astype(np.float32)
    mask = np.arange(SIZE) < np.maximum(LENGTHS, 1)[:, None]
    rewards = token_rewards(np.full(8, score), off, LOG_PROBS, mask, beta=beta)
    for groups in (np.zeros(8, int), np.arange(8) // 2, np.arange(8) // 3):
        found, _ = advantages_of("group", rewards, None, mask, groups, options=AdvantageOptions())
        to_come = np.cumsum(np.asarray(rewards.penalty)[:, ::-1], axis=1)[:, ::-1]
        np.testing.assert_allclose(found, np.where(mask, -to_come, 0), rtol=1e-6, atol=1e-12)
        assert 0 < np.abs(found).max() <= SIZE * beta * 4 * noise


def test_groups_of_equal_scores_say_nothing_where_long_answers_earn_more():
    """The mean over tokens is above 0 there; taken off, it would punish the groups that tie."""
    lengths = np.array([2, 7, 1, 6, 3, 3, 5])
    mask, groups = np.arange(SIZE) < lengths[:, None], np.array([0, 0, 1, 1, 2, 2, 2])
    scores = np.array([0.2, 0.9, -1.4, 0.3, 0.6, 0.6, 0.6], np.float32)
    zero = np.zeros(mask.shape, np.float32)
    rewards = token_rewards(scores, zero, zero, mask, beta=0.05)
    for options in (AdvantageOptions(), AdvantageOptions(scale=False)):
        found = np.asarray(advantages_of("group", rewards, None, mask, groups, options=options)[0])
        assert found[mask].mean() > 0.1
        assert np.all(found[groups == 2] == 0)
        assert (found[[1, 3]][mask[[1, 3]]] > 0).all() and (found[[0, 2]][mask[[0, 2]]] < 0).all()


@pytest.mark.parametrize("unit", [1e-4, 1.0, 300.0])
def test_the_weight_of_the_kl_does_not_depend_on_the_spread_of_a_group(unit):
    def advantages(reference):
        rewards = token_rewards(SCORES * unit, LOG_PROBS, reference, MASK, beta=0.3)
        return advantages_of("group", rewards, None, MASK, GROUPS, options=AdvantageOptions())[0]

    found = np.asarray(advantages(LOG_PROBS)) - np.asarray(advantages(REFERENCE))
    to_come = np.cumsum(((LOG_PROBS - REFERENCE) * MASK)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(found, 0.3 * to_come * MASK, atol=3e-6)


def test_groups_give_the_sums_to_go_as_returns():
    _, found = advantages_of("group", REWARDS, None, MASK, GROUPS, options=AdvantageOptions())
    expected = gae(REWARDS, 0 * VALUES, MASK, discount=1, lam=1)[1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantages_of("gea", 0, 0, 0, 0, options=AdvantageOptions()), "'gae'"),
        (lambda: ESTIMATORS["gae"](REWARDS, None, MASK, None, options=None), "critic"),
        (lambda: ESTIMATORS["group"](REWARDS, None, MASK, None, options=None), "group number"),
        (lambda: AdvantageOptions(lam=1.5), "lam=1.5"),
        (lambda: AdvantageOptions(num_groups=-1), "num_groups=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
