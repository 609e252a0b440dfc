"""Agreement between raters beyond chance: Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.evaluation.statistics.intervals import Estimate

Level = Literal["nominal", "ordinal", "interval"]


def coincidences(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coincidence matrices: counts of pairs of values given to one unit.

    Args:
      ratings: `[raters, units]`, NaN for missing values.

    Returns:
      The distinct values `[k]` of units with two or more ratings, ascending, and the counts
      `[units, k, k]`. A unit with m ratings adds m to the total: every ordered pair of its ratings
      counts 1 / (m - 1). A unit with fewer than two ratings adds nothing.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2:
        raise UserError(f"ratings must be [raters, units], not of shape {ratings.shape}")
    present = ~np.isnan(ratings)
    paired = present.sum(axis=0) > 1
    levels = np.unique(ratings[:, paired][present[:, paired]])
    each = (ratings[:, :, None] == levels).sum(axis=0).astype(np.float64)
    each[~paired] = 0
    pairs = each[:, :, None] * each[:, None, :]
    place = np.arange(len(levels))
    pairs[:, place, place] -= each
    return levels, pairs / np.maximum(each.sum(axis=1) - 1, 1)[:, None, None]


def alpha_of(levels: np.ndarray, counts: np.ndarray, level: Level) -> np.ndarray:
    """Alpha from coincidence counts.

    Args:
      levels: `[k]` values, ascending.
      counts: `[..., k, k]`, symmetric.
      level: level of measurement, see `alpha`.

    Returns:
      `[...]`, NaN if all values are equal or there are none.
    """
    if level not in get_args(Level):
        raise UserError(f"unknown level {level!r} of alpha{did_you_mean(level, get_args(Level))}")
    n_c = counts.sum(axis=-1)
    total = n_c.sum(axis=-1)
    if level == "nominal":
        distance = 1 - np.eye(len(levels))
    else:
        # The ordinal distance, the sum of n_g from c to k less half of n_c and n_k, is the distance
        # of the mid-ranks of c and k.
        ranks = np.cumsum(n_c, axis=-1) - n_c / 2 if level == "ordinal" else levels
        distance = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (counts * distance).sum(axis=(-2, -1))
    expected = (n_c[..., :, None] * n_c[..., None, :] * distance).sum(axis=(-2, -1))
    defined = expected > 0
    return np.where(defined, 1 - (total - 1) * observed / np.where(defined, expected, 1), np.nan)


def alpha(
    ratings: np.ndarray,
    *,
    level: Level = "interval",
    clusters: Sequence[object] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Krippendorff's alpha with a bootstrap interval.

    With o_ck the number of coincidences of c and k on one unit (see `coincidences`), n_c its row
    sums and n their sum (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"):

        alpha = 1 - (n - 1) * sum_ck o_ck d_ck / sum_ck n_c n_k d_ck

    1 is full agreement, 0 is chance level. d_ck is 0 or 1 for nominal values, (c - k)^2 for
    interval values, and (n_c / 2 + sum of n_g strictly between + n_k / 2)^2 for ordinal ones.

    Args:
      ratings: `[raters, units]`, NaN for missing values.
      level: level of measurement: nominal, ordinal or interval.
      clusters: `[units]` clusters of the bootstrap, such as the item that several rated texts are
        about; None for single units.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples.

    Returns:
      The estimate, with the number of units with two or more ratings as its count. The value is NaN
      if there is no such unit, or if all ratings are equal, when agreement cannot be distinguished
      from chance.

    Raises:
      UserError: for an unknown level, or ratings of another shape.
    """
    levels, counts = coincidences(ratings)
    rated = np.atleast_1d(counts.any(axis=(1, 2)))
    value = float(alpha_of(levels, counts.sum(axis=0), level))
    names = [str(c) for c in (range(len(rated)) if clusters is None else clusters)]
    if len(names) != len(rated):
        raise UserError(f"{len(names)} clusters for {len(rated)} rated units")
    # Counts are added up by cluster first: a resample is then a product with its weights.
    distinct, member = np.unique(np.array(names)[rated], return_inverse=True)
    result: Estimate = {"value": value, "low": None, "high": None, "count": int(rated.sum())}
    if not resamples or len(distinct) < 2 or np.isnan(value):
        return result
    k = len(levels)
    grouped = np.zeros((len(distinct), k * k))
    np.add.at(grouped, member, counts[rated].reshape(-1, k * k))
    rng = np.random.default_rng(seed)
    drawn, step = [], max(1, (1 << 22) // max(k * k, len(distinct)))
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weight = rng.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), size)
        drawn.append(alpha_of(levels, (weight @ grouped).reshape(-1, k, k), level))
    known = np.concatenate(drawn)
    known = known[~np.isnan(known)]  # a resample may have only one value
    if known.size:
        result["low"], result["high"] = (
            float(bound) for bound in np.quantile(known, [0.025, 0.975])
        )
    return result
