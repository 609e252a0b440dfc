"""Bootstrap intervals over users and seeds."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Estimate(TypedDict):
    """A figure of `evaluation.json`: low and high bound a 95 % interval, None where there is none.

    `count` is the number of users (or cases) behind the value.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def exact(value: float, count: int) -> Estimate:
    """A figure without sampling error, such as a count or a bound computed from a model."""
    return {"value": float(value), "low": None, "high": None, "count": count}


def bootstrap_means(
    values: np.ndarray, *, resamples: int = 1000, seed: int = 0, chunk: int = 1 << 22
) -> np.ndarray:
    """Means of resampled data: users and seeds are both drawn with replacement.

    Args:
      values: `[seeds, users]`, the same users for every seed.
      resamples: how many.
      seed: of the draws.
      chunk: cells drawn at a time, which bounds memory.

    Returns:
      `[resamples]` float64.
    """
    seeds, users = values.shape
    rng = np.random.default_rng(seed)
    per_seed = np.empty((resamples, seeds))
    step = max(1, chunk // users)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weight = rng.multinomial(users, np.full(users, 1 / users), size=size)
        per_seed[first : first + size] = weight @ values.T / users
    drawn = rng.integers(0, seeds, (resamples, seeds))
    return np.take_along_axis(per_seed, drawn, axis=1).mean(axis=1)


def estimate(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean over seeds and users with a percentile bootstrap interval.

    Args:
      values: `[seeds, users]` or `[users]`.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    if resamples == 0 or values.shape[1] < 2:
        return exact(values.mean(), values.shape[1])
    low, high = np.quantile(bootstrap_means(values, resamples=resamples, seed=seed), [0.025, 0.975])
    return {
        "value": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "count": values.shape[1],
    }


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of `first - second` over the same users, with an interval.

    Seeds are averaged before the difference is taken, so the two may differ in number.

    Args:
      first: `[seeds, users]`.
      second: `[seeds, users]`.
      resamples: bootstrap samples.
      seed: of the draws.
    """
    difference = np.atleast_2d(first).mean(axis=0) - np.atleast_2d(second).mean(axis=0)
    return estimate(difference, resamples=resamples, seed=seed)
