"""Significance tests and effect sizes: paired and unpaired, and correction for many of them."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from xrec_jax.core.errors import UserError

_LEAST_P = sys.float_info.min  # smaller p-values would underflow to 0


def _pair(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> np.ndarray:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise UserError(
            f"a paired test needs as many values on both sides, one or more: {a.shape}, {b.shape}"
        )
    return a - b


def sign_flip(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a paired randomisation test on the mean difference.

    Exact if there are at most `resamples` sign patterns of the non-zero differences; otherwise
    patterns are sampled and the observed one counts as one of them, so that p is never 0.

    Args:
      first: `[n]`.
      second: `[n]`, of the same cases.
      resamples: number of sampled patterns.
      seed: seed of the patterns.

    Raises:
      UserError: if lengths differ or there is no value.
    """
    difference = _pair(first, second)
    difference = difference[difference != 0]
    if not difference.size:
        return 1.0
    n, observed = difference.size, abs(difference.sum())
    slack = 1e-12 * np.abs(difference).sum()  # equal sums may differ by rounding
    if n < 31 and 2**n <= resamples:
        every = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(every @ difference) >= observed - slack))
    rng = np.random.default_rng(seed)
    hits, done, step = 0, 0, max(1, (1 << 22) // n)
    while done < resamples:
        size = min(step, resamples - done)
        signs = rng.integers(0, 2, (size, n), np.int8) * 2.0 - 1
        hits += int(np.sum(np.abs(signs @ difference) >= observed - slack))
        done += size
    return (hits + 1) / (resamples + 1)


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """McNemar's test: exact two-sided p-value of equal accuracy on the same cases."""
    difference = _pair(np.asarray(first, np.float64), np.asarray(second, np.float64))
    # Cases that both get right, or both wrong, tell nothing; the rest is a fair coin under H0.
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    if wins + losses == 0:
        return 1.0
    return max(float(stats.binomtest(wins, wins + losses).pvalue), _LEAST_P)


@dataclasses.dataclass(frozen=True)
class Effect:
    """Difference between two groups.

    Attributes:
      difference: mean of the first minus mean of the second, in the unit of the values.
      size: Hedges' g, the difference in pooled standard deviations, corrected for few cases; 0 if
        all values are equal.
      low: lower bound of the 95 % interval of `size`.
      high: upper bound.
      p: two-sided p-value of Welch's test. If one group does not vary, of Student's test, as ten
        equal values are no proof of a group without spread. If neither does, but the means differ,
        of the exact randomisation test. Never 0.
      counts: numbers of cases of both groups.
    """

    difference: float
    size: float
    low: float
    high: float
    p: float
    counts: tuple[int, int]


def group_effect(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> Effect:
    """Compares two independent groups (Hedges 1981; normal interval of g).

    Raises:
      UserError: if a group has fewer than two cases.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, m = a.size, b.size
    if min(n, m) < 2:
        raise UserError(f"a comparison of groups needs two cases in each, got {n} and {m}")
    (mean_a, var_a), (mean_b, var_b) = _moments(a), _moments(b)
    difference = mean_a - mean_b
    pooled = float(np.sqrt(((n - 1) * var_a + (m - 1) * var_b) / (n + m - 2)))
    if pooled == 0:
        size = 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
        # Of all assignments of cases to groups only this one, or its mirror, is as extreme.
        p = 1.0 if difference == 0 else (1 + (n == m)) / math.comb(n + m, n)
        return Effect(difference, size, size, size, max(p, _LEAST_P), (n, m))
    # Hedges' correction for few cases, then the large-sample standard error of g.
    size = difference / pooled * (1 - 3 / (4 * (n + m) - 9))
    error = np.sqrt((n + m) / (n * m) + size**2 / (2 * (n + m)))
    low, high = size - 1.959964 * error, size + 1.959964 * error
    if var_a and var_b:
        p = _welch(difference, var_a / n, var_b / m, n - 1, m - 1)
    else:
        statistic = abs(difference) / (pooled * np.sqrt(1 / n + 1 / m))
        p = max(float(2 * stats.t.sf(statistic, n + m - 2)), _LEAST_P)
    return Effect(difference, float(size), float(low), float(high), p, (n, m))


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and variance, exact for equal values, whose sums would have a rounding error."""
    if np.all(values == values[0]):
        return float(values[0]), 0.0
    return float(values.mean()), float(values.var(ddof=1))


def _welch(difference: float, a: float, b: float, df_a: int, df_b: int) -> float:
    """Two-sided p-value of Welch's test (1947).

    Args:
      difference: difference of the means.
      a: squared standard error of the first mean.
      b: squared standard error of the second mean.
      df_a: degrees of freedom of the first.
      df_b: degrees of freedom of the second.
    """
    # As shares of the sum, because squares of tiny errors would underflow.
    first, second = a / (a + b), b / (a + b)
    freedom = 1 / (first**2 / df_a + second**2 / df_b)
    return max(float(2 * stats.t.sf(abs(difference) / np.sqrt(a + b), freedom)), _LEAST_P)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusts p-values by Holm's method, which controls the family-wise error rate."""
    ranked = sorted(p_values.items(), key=lambda entry: entry[1])
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(ranked):
        # A running maximum, so that a larger p is never adjusted below a smaller one.
        largest = max(largest, min(1.0, p * (len(ranked) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
