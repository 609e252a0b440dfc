"""Agreement between raters beyond chance: Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.evaluation.statistics.intervals import Estimate

Level = Literal["nominal", "ordinal", "interval"]


def coincidences(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often two values were given to one unit.

    Args:
      ratings: `[raters, units]`, NaN where a rater gave no value.

    Returns:
      The distinct values `[k]` of units that two raters or more rated, ascending, and the counts
      `[units, k, k]`. A unit that m raters rated adds m to the total: every ordered pair of two of
      its ratings counts 1 / (m - 1). A unit with fewer than two ratings adds nothing.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2:
        raise UserError(f"ratings must be [raters, units], not of shape {ratings.shape}")
    given = ~np.isnan(ratings)
    paired = given.sum(axis=0) > 1
    levels = np.unique(ratings[:, paired][given[:, paired]])
    each = (ratings[:, :, None] == levels).sum(axis=0).astype(np.float64)
    each[~paired] = 0
    pairs = each[:, :, None] * each[:, None, :]
    place = np.arange(len(levels))
    pairs[:, place, place] -= each
    return levels, pairs / np.maximum(each.sum(axis=1) - 1, 1)[:, None, None]


def alpha_of(levels: np.ndarray, counts: np.ndarray, level: Level) -> np.ndarray:
    """Alpha of coincidence counts.

    Args:
      levels: `[k]`, ascending.
      counts: `[..., k, k]`, symmetric.
      level: how far two values are apart, see `alpha`.

    Returns:
      `[...]`, NaN where all values are equal or there are none.
    """
    if level not in get_args(Level):
        raise UserError(f"unknown level {level!r} of alpha{did_you_mean(level, get_args(Level))}")
    n_c = counts.sum(axis=-1)
    total = n_c.sum(axis=-1)
    if level == "nominal":
        apart = 1 - np.eye(len(levels))
    else:
        # The ordinal distance, the sum of n_g from c to k less half of n_c and n_k, is the distance
        # of the mid-ranks of c and k.
        ranks = np.cumsum(n_c, axis=-1) - n_c / 2 if level == "ordinal" else levels
        apart = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (counts * apart).sum(axis=(-2, -1))
    expected = (n_c[..., :, None] * n_c[..., None, :] * apart).sum(axis=(-2, -1))
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

    With o_ck the number of times that c and k meet on one unit (see `coincidences`), n_c its row
    sums and n their sum (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"):

        alpha = 1 - (n - 1) * sum_ck o_ck d_ck / sum_ck n_c n_k d_ck

    1 is full agreement, 0 what chance gives. d_ck is 0 or 1 for nominal values, (c - k)^2 for
    interval values, and (n_c / 2 + sum of n_g strictly between + n_k / 2)^2 for ordinal ones.

    Args:
      ratings: `[raters, units]`, NaN where a rater gave no value.
      level: nominal, ordinal or interval.
      clusters: `[units]`, what is drawn as a whole by the bootstrap, such as the item that several
        rated texts are about; None: every unit by itself.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.

    Returns:
      Its count is the number of units with two ratings or more. The value is NaN where no unit has
      two ratings, or where every rating is the same: agreement cannot be told from chance then.

    Raises:
      UserError: for an unknown level, or ratings of another shape.
    """
    levels, counts = coincidences(ratings)
    rated = np.atleast_1d(counts.any(axis=(1, 2)))
    value = float(alpha_of(levels, counts.sum(axis=0), level))
    names = [str(c) for c in (range(len(rated)) if clusters is None else clusters)]
    if len(names) != len(rated):
        raise UserError(f"{len(names)} clusters for {len(rated)} rated units")
    # A cluster's counts are only ever used together.
    distinct, member = np.unique(np.array(names)[rated], return_inverse=True)
    out: Estimate = {"value": value, "low": None, "high": None, "count": int(rated.sum())}
    if not resamples or len(distinct) < 2 or np.isnan(value):
        return out
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
    known = known[~np.isnan(known)]  # a draw may hold one value only
    if known.size:
        out["low"], out["high"] = (float(bound) for bound in np.quantile(known, [0.025, 0.975]))
    return out
