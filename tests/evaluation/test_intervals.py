"""Bootstrap intervals: their variance, their coverage, seeds, pairs, and cases without one."""

import numpy as np
import pytest

from xrec_jax.evaluation.faithfulness import planted
from xrec_jax.evaluation.faithfulness.counterfactual import Counterfactual
from xrec_jax.evaluation.statistics.intervals import (
    bootstrap_means,
    estimate,
    exact,
    owners,
    paired_difference,
)
from xrec_jax.evaluation.texts.grounding import ratio_of_sums
from xrec_jax.evaluation.texts.text_metrics import diversity, mean_of


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
        "value": 0.25,
        "low": 0.25,
        "high": 0.25,
        "count": 7,
    }


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


def crowd(seed=0):
    """Cases of 40 users, 1 to 9 each, alike within a user: (users, values)."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(40), rng.integers(1, 10, 40))
    values = rng.normal(0, 1, 40)[users] + rng.normal(0, 0.3, len(users))
    order = rng.permutation(len(users))
    return [f"user {n}" for n in users[order]], values[order]


def test_cases_of_a_user_are_drawn_together():
    users, values = crowd()
    found = estimate(values, users=users, resamples=4000)
    assert found["value"] == pytest.approx(values.mean()) and found["count"] == 40
    names, rng = np.array(users), np.random.default_rng(1)
    own = [values[names == name] for name in dict.fromkeys(users)]
    drawn = [np.concatenate([own[n] for n in rng.integers(0, 40, 40)]).mean() for _ in range(4000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=0.04)
    plain = estimate(values, resamples=1000)
    assert found["high"] - found["low"] > 1.7 * (plain["high"] - plain["low"])
    # One case each: the draws are those without users.
    assert owners(range(7)) is None
    assert estimate(values, users=range(len(values))) == estimate(values)
    np.testing.assert_array_equal(owners(["b", "a", "b"]), [0, 1, 0])
    alone = estimate(values[:3], users=["a"] * 3)
    assert alone == exact(values[:3].mean(), 1)


def test_intervals_of_users_with_several_cases_cover_the_truth():
    inside = {"users": 0, "cases": 0}
    for seed in range(150):
        users, values = crowd(seed)
        for name, whose in (("users", users), ("cases", None)):
            found = estimate(values, users=whose, resamples=300)
            inside[name] += found["low"] <= 0 <= found["high"]
    assert inside["users"] >= 132 and inside["cases"] < 115


def test_figures_of_explanations_draw_users():
    users, values = crowd(2)
    n = len(values)
    shares = 1 / (1 + np.exp(-values))
    sparse = np.where(np.arange(n) % 5 == 0, np.nan, values)
    for whole, each in (
        (mean_of(sparse, users=users), mean_of(sparse)),
        (ratio_of_sums(shares, shares + 1, users=users), ratio_of_sums(shares, shares + 1)),
        (
            diversity([range(int(4 * s) + 1) for s in shares], users=users),
            diversity([range(int(4 * s) + 1) for s in shares]),
        ),
        (
            Counterfactual(*np.stack([sparse * k for k in (5, 1, 4, 3, 1)])).estimates(users=users)[
                "counterfactual/fall"
            ],
            Counterfactual(*np.stack([sparse * k for k in (5, 1, 4, 3, 1)])).estimates()[
                "counterfactual/fall"
            ],
        ),
    ):
        assert whole["value"] == pytest.approx(each["value"])
        assert whole["high"] - whole["low"] > 1.4 * (each["high"] - each["low"])
        assert whole["count"] <= 40 < each["count"]


def test_planted_reasons_are_compared_user_by_user():
    users, values = crowd(3)
    counts = np.zeros((len(values), 1 + len(planted.BREAKDOWN), 4), np.int64)
    counts[:, 0] = [4, 2, 4, 2]
    other = counts.copy()
    other[values > 0.1, 0] = [4, 3, 4, 3]
    one, two = (
        planted.PlantedScores(f, f, f, c)
        for f, c in (
            (np.full(len(values), 0.5), counts),
            (np.where(values > 0.1, 0.75, 0.5) - 0.07, other),
        )
    )
    plain, whole = planted.compare(two, one), planted.compare(two, one, users=users)
    assert whole["planted/p"]["count"] == 40
    assert whole["planted/p"]["value"] > 3 * plain["planted/p"]["value"]
    assert whole["planted/f1_difference"]["value"] == plain["planted/f1_difference"]["value"]
    names = ("planted/f1", "planted/micro_f1")
    alone, together = two.estimates(), two.estimates(users=users)
    for name in names:
        width = [f[name]["high"] - f[name]["low"] for f in (together, alone)]
        assert width[0] > 1.4 * width[1]
