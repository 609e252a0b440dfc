"""Bootstrap intervals: their variance, their coverage, seeds, pairs, and cases without one."""

import numpy as np
import pytest

from xrec_jax.evaluation.intervals import bootstrap_means, estimate, exact, paired_difference


def test_means_vary_as_theory_says():
    values = np.random.default_rng(0).exponential(size=(1, 37))
    means = bootstrap_means(values, resamples=20_000, seed=3)
    assert means.shape == (20_000,)
    spread = np.sqrt(values.var() / 37)
    assert abs(means.mean() - values.mean()) < 5 * spread / np.sqrt(20_000)
    # The variance of 20,000 draws is known to about 1 %.
    np.testing.assert_allclose(means.std(), spread, rtol=0.04)


def test_seeds_are_resampled():
    # Users do not differ, so that all that varies is which of three seeds are drawn.
    seeds = np.array([0.0, 1.0, 2.5])
    means = bootstrap_means(np.tile(seeds[:, None], 8), resamples=20_000)
    possible = {round((a + b + c) / 3, 9) for a in seeds for b in seeds for c in seeds}
    assert set(np.round(means, 9)) == possible
    np.testing.assert_allclose(means.var(), seeds.var() / 3, rtol=0.06)
    np.testing.assert_allclose((means == 0).mean(), 1 / 27, atol=5 * np.sqrt(1 / 27 / 20_000))


def test_seeds_share_the_users_drawn():
    # Two seeds that disagree about every user cancel only if the same users are drawn for both.
    user = np.random.default_rng(1).normal(size=50)
    both = np.stack([user, user])
    means = bootstrap_means(both, resamples=20_000)
    np.testing.assert_allclose(means.var(), user.var() / 50, rtol=0.06)


def test_memory_chunks_change_nothing():
    values = np.random.default_rng(2).normal(size=(2, 23))
    whole = bootstrap_means(values, resamples=60, seed=4)
    for chunk in (1, 23, 100):
        np.testing.assert_allclose(
            bootstrap_means(values, resamples=60, seed=4, chunk=chunk), whole
        )
    assert (bootstrap_means(values, resamples=60, seed=5) != whole).any()


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(5)
    inside, width, trials = 0, 0.0, 400
    for trial in range(trials):
        found = estimate(rng.normal(0.3, 1.0, 60), resamples=300, seed=trial)
        assert found["low"] < found["value"] < found["high"]
        inside += found["low"] <= 0.3 <= found["high"]
        width += found["high"] - found["low"]
    # Percentile intervals of 60 users cover 93 to 95 %; 5 standard deviations are 6 %.
    assert 0.88 < inside / trials < 0.99
    np.testing.assert_allclose(width / trials, 2 * 1.96 / np.sqrt(60), rtol=0.06)


def test_the_value_is_the_mean_of_all():
    values = np.random.default_rng(6).random((3, 9))
    found = estimate(values, resamples=200)
    assert found["value"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["count"] == 9
    assert all(type(found[k]) is float for k in ("value", "low", "high"))
    assert estimate(values[0], resamples=200) == estimate(values[:1], resamples=200)
    low, high = np.quantile(bootstrap_means(values, resamples=200), [0.025, 0.975])
    assert (found["low"], found["high"]) == (low, high)
    assert estimate(np.full(7, 0.25), resamples=50) == {
        "value": 0.25, "low": 0.25, "high": 0.25, "count": 7
    }  # fmt: skip


def test_no_interval_where_there_is_none():
    nothing = {"value": 0.5, "low": None, "high": None}
    assert estimate(np.array([0.5])) == {**nothing, "count": 1}
    assert estimate(np.array([[0.25], [0.75]])) == {**nothing, "count": 1}
    assert estimate(np.array([0.25, 0.75]), resamples=0) == {**nothing, "count": 2}
    assert exact(np.float32(0.5), 3) == {**nothing, "count": 3}
    assert paired_difference(np.array([[1.0]]), np.array([[0.5]])) == {**nothing, "count": 1}


def test_paired_differences():
    rng = np.random.default_rng(7)
    user = rng.normal(size=80)
    better = user + 0.1 + 0.01 * rng.normal(size=(3, 80))
    worse = user + 0.01 * rng.normal(size=(2, 80))
    found = paired_difference(better, worse, resamples=400)
    assert found["value"] == pytest.approx(better.mean() - worse.mean(), abs=1e-12)
    assert found["count"] == 80
    # Users differ by far more than the two do, yet the sign is beyond doubt.
    assert 0.08 < found["low"] < 0.1 < found["high"] < 0.12
    assert estimate(better)["low"] < estimate(worse)["high"]
    turned = paired_difference(worse, better, resamples=400)
    for ours, theirs in (("value", "value"), ("low", "high"), ("high", "low")):
        assert turned[ours] == pytest.approx(-found[theirs], abs=1e-12)
    assert paired_difference(user, user, resamples=50)["high"] == 0
