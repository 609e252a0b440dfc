"""Bootstrap intervals over users and seeds."""

from __future__ import annotations

from collections.abc import Mapping
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
      values: `[..., seeds, users]`, the same users for every seed. The leading dimensions (metrics,
        say) share the draws, so that differences between them are paired.
      resamples: how many.
      seed: of the draws.
      chunk: cells drawn at a time, which bounds memory.

    Returns:
      `[..., resamples]` float64.
    """
    *lead, seeds, users = values.shape
    rng = np.random.default_rng(seed)
    flat = values.reshape(-1, users).T
    per_seed = np.empty((resamples, flat.shape[1]))
    step = max(1, chunk // users)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weight = rng.multinomial(users, np.full(users, 1 / users), size=size)
        per_seed[first : first + size] = weight @ flat / users
    drawn = rng.integers(0, seeds, (resamples, seeds))
    picked = per_seed.reshape(resamples, -1, seeds)[np.arange(resamples)[:, None], :, drawn]
    return picked.mean(axis=1).T.reshape(*lead, resamples)


def estimate(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean over seeds and users with a percentile bootstrap interval.

    Args:
      values: `[seeds, users]` or `[users]`.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    return estimates({"": values}, resamples=resamples, seed=seed)[""]


def estimates(
    values: Mapping[str, np.ndarray], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """`estimate` of several metrics of the same seeds and users, from the same draws.

    Args:
      values: metric name to `[seeds, users]`.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    stacked = np.stack([np.asarray(value, np.float64) for value in values.values()])
    means, count = stacked.mean(axis=(1, 2)), stacked.shape[2]
    if resamples == 0 or count < 2:
        return {name: exact(mean, count) for name, mean in zip(values, means, strict=True)}
    sampled = bootstrap_means(stacked, resamples=resamples, seed=seed)
    bounds = np.quantile(sampled, [0.025, 0.975], axis=-1)
    return {
        name: {"value": float(mean), "low": float(low), "high": float(high), "count": count}
        for name, mean, low, high in zip(values, means, *bounds, strict=True)
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
