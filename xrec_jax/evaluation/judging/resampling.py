"""Cluster bootstrap over prompts: rows of one prompt are dependent, and resampled together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate, exact


def clusters(prompts: Sequence[int] | Sequence[str] | np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers prompts from 0 without gaps, `[rows]`; also returns how many there are."""
    _, numbered = np.unique(np.asarray(prompts), return_inverse=True)
    numbered = numbered.reshape(-1)
    return numbered, int(numbered.max(initial=-1)) + 1


def draws(count: int, *, resamples: int, seed: int = 0) -> np.ndarray:
    """Multinomial weights of `count` prompts, `[resamples, count]`; rows sum to `count`."""
    # One seed gives all metrics the same weights, so that their differences are paired.
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def sums(values: np.ndarray, numbered: np.ndarray, count: int) -> np.ndarray:
    """Sums over the rows of each prompt: `[rows, ...]` -> `[count, ...]`."""
    totals = np.zeros((count, *values.shape[1:]))
    np.add.at(totals, numbered, values)
    return totals


def interval(value: float, sampled: np.ndarray, count: int) -> Estimate:
    """Estimate with the 95 % percentile interval of its finite samples."""
    sampled = sampled[np.isfinite(sampled)]
    # Resamples of a single prompt are all alike: the interval would claim certainty.
    if count < 2 or not sampled.size:
        return exact(value, count)
    low, high = np.quantile(sampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high), "count": count}


def clustered_mean(
    values: Sequence[float] | np.ndarray,
    prompts: Sequence[int] | Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean over rows, with a bootstrap interval over prompts.

    Args:
      values: `[rows]`.
      prompts: `[rows]` prompt of each row.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples.

    Returns:
      The estimate, with the number of prompts as its count.

    Raises:
      UserError: if there is no row.
    """
    values = np.asarray(values, np.float64)
    return clustered_ratios(
        values[:, None], np.ones((len(values), 1)), prompts, resamples=resamples, seed=seed
    )[0]


def clustered_ratios(
    above: np.ndarray,
    below: np.ndarray,
    prompts: Sequence[int] | Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """Ratios of sums for each column, from the same resamples of prompts.

    Args:
      above: `[rows, columns]` numerators.
      below: `[rows, columns]` denominators; a column's count is the number of prompts with any
        non-zero one.
      prompts: `[rows]` prompt of each row.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples.

    Raises:
      UserError: if there is no row.
    """
    if not len(above):
        raise UserError("a mean over prompts needs one row or more")
    numbered, count = clusters(prompts)
    # Summed by prompt first, a resample is a product with its weights.
    over, under = sums(above, numbered, count), sums(below, numbered, count)
    seen = (sums(np.abs(below), numbered, count) > 0).sum(axis=0)
    # A resample may hold no row of some column; `interval` drops its NaN.
    with np.errstate(invalid="ignore", divide="ignore"):
        value = over.sum(axis=0) / under.sum(axis=0)
        weight = draws(count, resamples=resamples, seed=seed) if resamples else np.zeros((0, count))
        sampled = (weight @ over) / (weight @ under)
    return [
        interval(value[i], sampled[:, i], int(seen[i])) if resamples else exact(value[i], seen[i])
        for i in range(len(value))
    ]


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, *, resamples: int, seed: int = 0
) -> np.ndarray:
    """Evaluates a statistic on the weights of each resample: `[resamples, ...]`.

    Args:
      statistic: function from weights `[count]` to an array.
      count: number of prompts.
      resamples: number of resamples.
      seed: seed of the resamples.
    """
    return np.array([statistic(weight) for weight in draws(count, resamples=resamples, seed=seed)])
