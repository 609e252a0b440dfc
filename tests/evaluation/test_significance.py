"""Tests and effect sizes against SciPy, full enumeration, and cases worked by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.significance import group_effect, holm, mcnemar, sign_flip

# Sign flips


def flips(first, second):
    """Every pattern of signs, zeros too: the share of sums at least as far from zero."""
    difference = [a - b for a, b in zip(first, second, strict=True)]
    observed = abs(sum(difference))
    patterns = list(itertools.product((1, -1), repeat=len(difference)))
    hits = sum(
        abs(sum(s * d for s, d in zip(signs, difference, strict=True))) >= observed - 1e-9
        for signs in patterns
    )
    return hits / len(patterns)


@pytest.mark.parametrize("seed", range(4))
def test_few_cases_are_enumerated(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.4, 1, 7).round(1), rng.normal(0, 1, 7).round(1)
    second[2] = first[2]
    assert sign_flip(first, second) == flips(first, second)
    scipy = stats.permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip(first, second) == pytest.approx(scipy.pvalue)


def test_by_hand():
    # Differences 1, 1, 1: of eight patterns two reach a sum of 3.
    assert sign_flip([1, 2, 3.5], [0, 1, 2.5]) == 0.25
    # 3, -1: |2| is reached by all but 3 - 1 = 2 ... 4, 2, 2, 4: all of them.
    assert sign_flip([3, 0], [0, 1]) == 1.0
    assert sign_flip([2, 2], [2, 2]) == 1.0


def test_the_sides_may_be_exchanged():
    rng = np.random.default_rng(1)
    first, second = rng.random(9), rng.random(9)
    assert sign_flip(first, second) == sign_flip(second, first)


def test_many_cases_are_drawn():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.12, 1, (2, 160))[0], rng.normal(0, 1, 160)
    found = sign_flip(first, second, resamples=20_000)
    # Differences of about normal sums: the t test's p-value is near.
    normal = stats.ttest_rel(first, second).pvalue
    assert 0.01 < normal < 0.99
    assert found == pytest.approx(normal, abs=4 * np.sqrt(normal * (1 - normal) / 20_000) + 0.01)
    assert sign_flip(first, second, seed=1) == sign_flip(first, second, seed=1)


def test_a_drawn_p_value_is_never_zero():
    # Certain in truth: 2 of 2**40 patterns. The observed pattern counts as one of those drawn.
    assert sign_flip(np.full(40, 1.5), np.zeros(40), resamples=99) == 0.01


def test_drawing_agrees_with_counting():
    rng = np.random.default_rng(5)
    first, second = rng.normal(0.5, 1, 13), rng.normal(0, 1, 13)
    exact, drawn = (sign_flip(first, second, resamples=n) for n in (8192, 8191))
    assert exact == flips(first, second)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 8191) + 1e-3) and drawn != exact


@pytest.mark.parametrize("test", [sign_flip, mcnemar])
@pytest.mark.parametrize(
    ("first", "second"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[2.0]]), (1.0, 2.0)]
)
def test_pairs_are_needed(test, first, second):
    with pytest.raises(UserError, match="a paired test needs as many values on both sides"):
        test(first, second)


# McNemar


@pytest.mark.parametrize(("wins", "losses", "same"), [(8, 1, 5), (1, 8, 0), (3, 3, 2), (0, 5, 1)])
def test_mcnemar_is_a_binomial_test_of_what_differs(wins, losses, same):
    first = [True] * wins + [False] * losses + [True] * same
    second = [False] * wins + [True] * losses + [True] * same
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == pytest.approx(mcnemar(second, first))
    # The same as flipping signs of differences of 1.
    assert mcnemar(first, second) == pytest.approx(sign_flip(np.array(first) * 1.0, second))


def test_mcnemar_is_never_zero():
    assert 0 < mcnemar(np.ones(2000), np.zeros(2000)) < 1e-300


def test_mcnemar_by_hand():
    # Five of five: two sides of (1/2)**5 each.
    assert mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]) == 2 / 32
    assert mcnemar([1, 0], [1, 0]) == 1.0


# Groups


def test_hedges_g_by_hand():
    first, second = [1.0, 2.0, 4.5], [0.5, 1.0, 1.5, 3.0, 4.0]
    found = group_effect(first, second)
    # Means 2.5 and 2; squared deviations 2.25 + .25 + 4 = 6.5 and 2.25 + 1 + .25 + 1 + 4 = 8.5.
    pooled = np.sqrt((6.5 + 8.5) / 6)
    g = 0.5 / pooled * (1 - 3 / (4 * 8 - 9))
    error = np.sqrt(8 / 15 + g**2 / 16)
    assert found.difference == 0.5 and found.counts == (3, 5)
    assert found.size == pytest.approx(g)
    assert (found.low, found.high) == pytest.approx((g - 1.96 * error, g + 1.96 * error), rel=1e-4)
    assert found.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    turned = group_effect(second, first)
    assert (turned.size, turned.low) == pytest.approx((-found.size, -found.high))


def test_the_interval_of_g_covers_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = group_effect(rng.normal(0.6, 1, 17), rng.normal(0, 1, 25))
        inside += found.low <= 0.6 <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_groups_without_variation():
    same = group_effect([2.0, 2.0], [2.0, 2.0, 2.0])
    assert (same.difference, same.size, same.p) == (0.0, 0.0, 1.0)
    apart = group_effect([0.1] * 3, [0.3] * 4)
    assert apart.size == -np.inf and apart.p == pytest.approx(1 / 35)  # of 7 over 3 ways
    assert group_effect([1.0, 1.0], [2.0, 2.0]).p == pytest.approx(2 / 6)
    assert group_effect([0.0] * 5000, [1.0] * 5000).p > 0
    far = np.arange(3000) % 2 * 1e-3
    assert 0 < group_effect(far, far + 1).p < 1e-300
    # A mean of equal numbers may differ from them by rounding; that is no effect.
    rounded = group_effect([0.1] * 3, [0.1] * 7)
    assert (rounded.size, rounded.p) == (0.0, 1.0)


def test_one_group_without_variation():
    first, second = [0.1] * 3, [0.4, 0.2, 0.9, 0.3]
    found = group_effect(first, second)
    # The spread is the second group's, pooled as Student does.
    t = (0.1 - np.mean(second)) / np.sqrt(np.var(second, ddof=1) * 3 / 5 * (1 / 3 + 1 / 4))
    assert found.p == pytest.approx(2 * stats.t.cdf(t, 5))
    pooled = np.sqrt(np.var(second, ddof=1) * 3 / 5)
    assert found.size == pytest.approx((0.1 - 0.45) / pooled * (1 - 3 / 19))


@pytest.mark.parametrize("scale", [1e-140, 1e-9, 1.0, 1e9])
def test_units_change_nothing_but_the_difference(scale):
    first, second = np.array([1.0, 2.0, 4.5]), np.array([0.5, 1.0, 1.5, 3.0])
    plain, found = group_effect(first, second), group_effect(first * scale, second * scale)
    assert (found.size, found.p) == pytest.approx((plain.size, plain.p), rel=1e-6)


def test_a_group_of_one_is_refused():
    with pytest.raises(UserError, match="two cases in each, got 1 and 4"):
        group_effect([1.0], [1.0, 2.0, 3.0, 4.0])


# Holm


def test_holm_by_hand():
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02, "e": 0.9})
    # 5 x .01, 4 x .02, 3 x .03, then 2 x .04 = .08 is below the .09 before it, and 1 x .9.
    expected = {"c": 0.09, "a": 0.05, "d": 0.09, "b": 0.08, "e": 0.9}
    assert found == pytest.approx(expected) and list(found) == list(expected)
    assert holm({"x": 0.7, "y": 0.6}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}


def test_holm_against_rejections_step_by_step():
    rng = np.random.default_rng(3)
    for _ in range(20):
        p = {str(n): float(v) for n, v in enumerate(rng.random(6) ** 3)}
        for level in (0.01, 0.05, 0.2):
            rejected, left = set(), dict(p)
            while left:
                name = min(left, key=left.get)
                if left[name] * len(left) > level:
                    break
                rejected.add(name)
                del left[name]
            assert {name for name, q in holm(p).items() if q <= level} == rejected


def test_a_group_without_spread_is_tested_with_the_spread_of_the_other():
    """Welch's test would take ten equal values for a group that never varies."""
    constant = np.full(10, 0.25)
    other = np.random.default_rng(5).normal(0.55, 0.6, 190)
    found = group_effect(constant, other).p
    pooled = np.var(other, ddof=1) * 189 / 198
    t = abs(other.mean() - 0.25) / np.sqrt(pooled * (1 / 10 + 1 / 190))
    assert found == pytest.approx(2 * stats.t.sf(t, 198))
    assert found > 20 * stats.ttest_1samp(other, 0.25).pvalue  # what Welch's would be near
    assert group_effect(other, constant).p == pytest.approx(found)
