"""Bootstrap over prompts: rows of one prompt are not independent, so they are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate, exact


def clusters(prompts: Sequence[int] | Sequence[str] | np.ndarray) -> tuple[np.ndarray, int]:
    """Prompts as numbers from 0 without gaps, `[rows]`, and how many there are."""
    _, numbered = np.unique(np.asarray(prompts), return_inverse=True)
    numbered = numbered.reshape(-1)
    return numbered, int(numbered.max(initial=-1)) + 1


def draws(count: int, *, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each of `count` prompts is drawn: `[resamples, count]`, rows sum to `count`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def sums(values: np.ndarray, numbered: np.ndarray, count: int) -> np.ndarray:
    """Sums of rows over the rows of each prompt: `[rows, ...]` -> `[count, ...]`."""
    out = np.zeros((count, *values.shape[1:]))
    np.add.at(out, numbered, values)
    return out


def interval(value: float, sampled: np.ndarray, count: int) -> Estimate:
    """A value with the percentile interval (95 %) of its samples; NaN ones are left out."""
    sampled = sampled[np.isfinite(sampled)]
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
    """Mean over rows, with an interval from prompts drawn with replacement.

    Args:
      values: `[rows]`.
      prompts: `[rows]`, what each belongs to.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.

    Returns:
      The estimate; its count is that of the prompts.

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
    """Ratios of sums, one a column, from the same draws of prompts.

    Args:
      above: `[rows, columns]`.
      below: `[rows, columns]`; a column's count is the number of prompts where it is not all 0.
      prompts: `[rows]`.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.

    Raises:
      UserError: if there is no row.
    """
    if not len(above):
        raise UserError("a mean over prompts needs one row or more")
    numbered, count = clusters(prompts)
    over, under = sums(above, numbered, count), sums(below, numbered, count)
    seen = (sums(np.abs(below), numbered, count) > 0).sum(axis=0)
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
    """A statistic of prompt weights for each draw: `[resamples, ...]`.

    Args:
      statistic: from weights `[count]` to an array; called once a draw.
      count: of prompts.
      resamples: how many.
      seed: of the draws.
    """
    return np.array([statistic(weight) for weight in draws(count, resamples=resamples, seed=seed)])
