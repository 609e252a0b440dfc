"""Bootstrap intervals over users and seeds; several cases of one user are drawn together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np


class Estimate(TypedDict):
    """A figure of `evaluation.json`: low and high bound a 95 % interval, None where there is none.

    `count` is the number of users (or cases) behind the value. `note` says what is special about
    it, such as why there is none: then the value is NaN, in the file null.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    note: NotRequired[str]


def without_meaning(note: str) -> Estimate:
    """A figure that these cases cannot have, and why; null in `evaluation.json`."""
    return {"value": math.nan, "low": None, "high": None, "count": 0, "note": note}


def exact(value: float, count: int) -> Estimate:
    """A figure without sampling error, such as a count or a bound computed from a model."""
    return {"value": float(value), "low": None, "high": None, "count": count}


def owners(users: Sequence[Hashable] | np.ndarray | None) -> np.ndarray | None:
    """Users of cases as numbers from 0, `[cases]`; None where each case is a user of its own."""
    if users is None:
        return None
    known: dict[Hashable, int] = {}
    numbers = np.array([known.setdefault(user, len(known)) for user in users], np.int64)
    return None if len(known) == len(numbers) else numbers


def user_sums(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sums over the cases of each user: `[cases, ...]` -> `[users, ...]`; see `owners`."""
    out = np.zeros((int(numbers.max()) + 1, *values.shape[1:]))
    np.add.at(out, numbers, values)
    return out


def bootstrap_means(
    values: np.ndarray,
    *,
    users: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    chunk: int = 1 << 22,
) -> np.ndarray:
    """Means of resampled data: users and seeds are both drawn with replacement.

    Args:
      values: `[..., seeds, users]`, the same users for every seed. The leading dimensions (metrics,
        say) share the draws, so that differences between them are paired.
      users: whose case each of the last dimension is, drawn with all that is theirs; by default
        each is a user of its own.
      resamples: how many.
      seed: of the draws.
      chunk: cells drawn at a time, which bounds memory.

    Returns:
      `[..., resamples]` float64.
    """
    *lead, seeds, cases = values.shape
    rng = np.random.default_rng(seed)
    flat = values.reshape(-1, cases).T
    numbers = owners(users)
    sizes: np.ndarray = np.ones(cases)
    if numbers is not None:
        flat, sizes = user_sums(flat, numbers), user_sums(sizes, numbers)
    count = len(flat)
    per_seed = np.empty((resamples, flat.shape[1]))
    step = max(1, chunk // count)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weight = rng.multinomial(count, np.full(count, 1 / count), size=size)
        per_seed[first : first + size] = weight @ flat / (weight @ sizes)[:, None]
    drawn = rng.integers(0, seeds, (resamples, seeds))
    picked = per_seed.reshape(resamples, -1, seeds)[np.arange(resamples)[:, None], :, drawn]
    return picked.mean(axis=1).T.reshape(*lead, resamples)


def estimate(
    values: np.ndarray,
    *,
    users: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds and users with a percentile bootstrap interval.

    Args:
      values: `[seeds, users]` or `[users]`.
      users: see `bootstrap_means`.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    return estimates({"": values}, users=users, resamples=resamples, seed=seed)[""]


def estimates(
    values: Mapping[str, np.ndarray],
    *,
    users: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`estimate` of several metrics of the same seeds and users, from the same draws.

    Args:
      values: metric name to `[seeds, users]`.
      users: see `bootstrap_means`; the count is theirs.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    stacked = np.stack([np.asarray(value, np.float64) for value in values.values()])
    numbers = owners(users)
    means = stacked.mean(axis=(1, 2))
    count = stacked.shape[2] if numbers is None else int(numbers.max()) + 1
    if resamples == 0 or count < 2:
        return {name: exact(mean, count) for name, mean in zip(values, means, strict=True)}
    sampled = bootstrap_means(stacked, users=numbers, resamples=resamples, seed=seed)
    bounds = np.quantile(sampled, [0.025, 0.975], axis=-1)
    return {
        name: {"value": float(mean), "low": float(low), "high": float(high), "count": count}
        for name, mean, low, high in zip(values, means, *bounds, strict=True)
    }


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    users: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean of `first - second` over the same users, with an interval.

    Seeds are averaged before the difference is taken, so the two may differ in number.

    Args:
      first: `[seeds, users]`.
      second: `[seeds, users]`.
      users: see `bootstrap_means`.
      resamples: bootstrap samples.
      seed: of the draws.
    """
    difference = np.atleast_2d(first).mean(axis=0) - np.atleast_2d(second).mean(axis=0)
    return estimate(difference, users=users, resamples=resamples, seed=seed)
