"""Bootstrap intervals over users and seeds; all cases of a user are resampled together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np


class Estimate(TypedDict):
    """An entry of `evaluation.json`, with the bounds `low` and `high` of a 95 % interval, or None.

    `count` is the number of users (or cases) of the value. `note` is a remark, such as why there is
    no value: then the value is NaN, in the file null.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    note: NotRequired[str]


def without_meaning(note: str) -> Estimate:
    """Undefined estimate with the reason as its note; null in `evaluation.json`."""
    return {"value": math.nan, "low": None, "high": None, "count": 0, "note": note}


def exact(value: float, count: int) -> Estimate:
    """Estimate without an interval, such as a count or a computed bound."""
    return {"value": float(value), "low": None, "high": None, "count": count}


def owners(users: Sequence[Hashable] | np.ndarray | None) -> np.ndarray | None:
    """Numbers the users of cases from 0, `[cases]`; None if each case has a user of its own."""
    if users is None:
        return None
    known: dict[Hashable, int] = {}
    numbers = np.array([known.setdefault(user, len(known)) for user in users], np.int64)
    # With a user for each case, sums over users would change nothing.
    return None if len(known) == len(numbers) else numbers


def user_sums(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sums over the cases of each user: `[cases, ...]` -> `[users, ...]`; see `owners`."""
    totals = np.zeros((int(numbers.max()) + 1, *values.shape[1:]))
    np.add.at(totals, numbers, values)
    return totals


def bootstrap_means(
    values: np.ndarray,
    *,
    users: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    chunk: int = 1 << 22,
) -> np.ndarray:
    """Means of bootstrap resamples, in which users and seeds are both drawn with replacement.

    Args:
      values: `[..., seeds, cases]`, the same cases for every seed. The leading dimensions (such as
        metrics) share the resamples, so that differences between them are paired.
      users: user of each case, whose cases are resampled together; by default each case has a user
        of its own.
      resamples: number of resamples.
      seed: seed of the resamples.
      chunk: number of weights drawn at a time, which bounds memory.

    Returns:
      `[..., resamples]` float64.
    """
    *lead, seeds, cases = values.shape
    rng = np.random.default_rng(seed)
    # Metrics and seeds become columns, so that all of them share the weights of a resample.
    flat = values.reshape(-1, cases).T
    numbers = owners(users)
    sizes: np.ndarray = np.ones(cases)
    if numbers is not None:
        flat, sizes = user_sums(flat, numbers), user_sums(sizes, numbers)
    # Multinomial weights are the counts of users in a resample; seeds are drawn afterwards.
    count = len(flat)
    per_seed = np.empty((resamples, flat.shape[1]))
    step = max(1, chunk // count)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weight = rng.multinomial(count, np.full(count, 1 / count), size=size)
        per_seed[first : first + size] = weight @ flat / (weight @ sizes)[:, None]
    # Each resample of users is paired with its own resample of seeds.
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
      values: `[seeds, cases]` or `[cases]`.
      users: see `bootstrap_means`.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples.
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
    """Estimates several metrics of the same seeds and users from the same resamples.

    Args:
      values: `[seeds, cases]` by metric name.
      users: see `bootstrap_means`; the count is their number.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples.
    """
    # Stacked, the metrics use the same resamples.
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

    Seeds are averaged before the difference is taken, so their numbers may differ.

    Args:
      first: `[seeds, cases]`.
      second: `[seeds, cases]`.
      users: see `bootstrap_means`.
      resamples: bootstrap samples.
      seed: seed of the resamples.
    """
    difference = np.atleast_2d(first).mean(axis=0) - np.atleast_2d(second).mean(axis=0)
    return estimate(difference, users=users, resamples=resamples, seed=seed)
