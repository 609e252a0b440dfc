"""Fair win ratios: both orders averaged, ties kept, any number of systems."""

from __future__ import annotations

import itertools

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.comparisons import Comparisons
from xrec_jax.evaluation.judging.resampling import clustered_mean, clustered_ratios
from xrec_jax.evaluation.statistics.intervals import Estimate


def points(table: Comparisons, *, margin: float = 0.0, soft: bool = False) -> np.ndarray:
    """What `one` gets of each comparison: 1 for a win, 1/2 for a tie, 0.

    A tie is a pair whose orders name different winners (or one of them none), or whose mean
    probability lies nearer to 1/2 than `margin`.

    Args:
      table: the comparisons.
      margin: from 0 to below 1/2.
      soft: take the mean probability itself instead.

    Returns:
      `[rows]` float64; `other` gets the rest to 1.

    Raises:
      UserError: on a margin out of range.
    """
    if not 0.0 <= margin < 0.5:
        raise UserError(f"margin={margin} must be at least 0 and below 0.5")
    if soft:
        return table.probability
    won = (table.forward > 0.5) & (table.backward < 0.5)
    lost = (table.forward < 0.5) & (table.backward > 0.5)
    clear = np.abs(table.probability - 0.5) >= margin
    return 0.5 + 0.5 * ((won & clear) * 1.0 - (lost & clear) * 1.0)


def consistent(table: Comparisons) -> np.ndarray:
    """`[rows]` bool: whether both orders name the same winner, or both none."""
    return np.sign(table.forward - 0.5) == -np.sign(table.backward - 0.5)


def position_bias(table: Comparisons) -> np.ndarray:
    """`[rows]` share of both orders won by what is shown first (none: half a win), minus 1/2.

    0 on average for a judge without a preference for a place; 1/2 for one that always takes the
    first, -1/2 for one that always takes the second.
    """
    first = [(p > 0.5) + 0.5 * (p == 0.5) for p in (table.forward, table.backward)]
    return (first[0] + first[1]) / 2.0 - 0.5


def win_ratios(
    table: Comparisons,
    *,
    margin: float = 0.0,
    soft: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Points of each system over its comparisons with all others, 1/2 for no better than they.

    Args:
      table: the comparisons.
      margin: see `points`.
      soft: see `points`.
      resamples: bootstrap samples over prompts; 0 for no intervals.
      seed: of the draws.

    Raises:
      UserError: if there is no comparison.
    """
    gained, played = _shares(table, points(table, margin=margin, soft=soft))
    found = clustered_ratios(gained, played, table.prompts, resamples=resamples, seed=seed)
    return dict(zip(table.systems, found, strict=True))


def tie_rates(
    table: Comparisons, *, margin: float = 0.0, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Share of each system's comparisons that are ties."""
    tied = (points(table, margin=margin) == 0.5) * 1.0
    members = _members(table)
    found = clustered_ratios(
        tied[:, None] * members, members, table.prompts, resamples=resamples, seed=seed
    )
    return dict(zip(table.systems, found, strict=True))


def win_matrix(table: Comparisons, *, margin: float = 0.0, soft: bool = False) -> np.ndarray:
    """`[systems, systems]` points of the row's system over the column's; ties are half a win.

    Entry `[i, j]` plus entry `[j, i]` is the number of comparisons of the two.
    """
    count = len(table.systems)
    gained = points(table, margin=margin, soft=soft)
    wins = np.zeros((count, count))
    np.add.at(wins, (table.one, table.other), gained)
    np.add.at(wins, (table.other, table.one), 1.0 - gained)
    return wins


def pair_figures(
    table: Comparisons, *, margin: float = 0.0, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """`win/ratio` (of the first), `win/ties` and `win/consistency` for each "A vs B"."""
    found = {}
    for one, other in itertools.combinations(table.systems, 2):
        rows = table.pair(one, other)
        if not len(rows):
            continue
        gained = points(rows, margin=margin)
        columns = {
            "win/ratio": gained,
            "win/ties": (gained == 0.5) * 1.0,
            "win/consistency": consistent(rows) * 1.0,
        }
        found[f"{one} vs {other}"] = {
            name: clustered_mean(values, rows.prompts, resamples=resamples, seed=seed)
            for name, values in columns.items()
        }
    return found


def _members(table: Comparisons) -> np.ndarray:
    """`[rows, systems]` 1 where a system takes part."""
    systems = np.arange(len(table.systems))
    return ((table.one[:, None] == systems) | (table.other[:, None] == systems)) * 1.0


def _shares(table: Comparisons, gained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    systems = np.arange(len(table.systems))
    one, other = ((place[:, None] == systems) * 1.0 for place in (table.one, table.other))
    return one * gained[:, None] + other * (1.0 - gained)[:, None], one + other
