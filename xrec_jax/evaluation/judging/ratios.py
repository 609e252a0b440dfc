"""Win ratios from both presentation orders, with ties, for any number of systems."""

from __future__ import annotations

import itertools

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.comparisons import Comparisons
from xrec_jax.evaluation.judging.resampling import clustered_mean, clustered_ratios
from xrec_jax.evaluation.statistics.intervals import Estimate


def points(table: Comparisons, *, margin: float = 0.0, soft: bool = False) -> np.ndarray:
    """Points of `one` in each comparison: 1 for a win, 1/2 for a tie, 0 for a loss.

    A tie is a pair whose orders have different winners (or one of them none), or whose mean
    probability is closer to 1/2 than `margin`.

    Args:
      table: the comparisons.
      margin: from 0 to below 1/2.
      soft: whether to return the mean probability instead.

    Returns:
      `[rows]` float64; `other` has the complement to 1.

    Raises:
      UserError: on a margin out of range.
    """
    if not 0.0 <= margin < 0.5:
        raise UserError(f"margin={margin} must be at least 0 and below 0.5")
    if soft:
        return table.probability
    # A win needs both orders; a text that wins only where it stands first shows position bias.
    won = (table.forward > 0.5) & (table.backward < 0.5)
    lost = (table.forward < 0.5) & (table.backward > 0.5)
    clear = np.abs(table.probability - 0.5) >= margin
    return 0.5 + 0.5 * ((won & clear) * 1.0 - (lost & clear) * 1.0)


def consistent(table: Comparisons) -> np.ndarray:
    """Mask `[rows]` of the comparisons with the same winner in both orders, or none in both."""
    return np.sign(table.forward - 0.5) == -np.sign(table.backward - 0.5)


def position_bias(table: Comparisons) -> np.ndarray:
    """Share of the two orders won by the text shown first, minus 1/2, `[rows]`.

    On average 0 for a judge without a position bias, 1/2 for one that always prefers the first, and
    -1/2 for one that always prefers the second. Undecided orders count as half a win.
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
    """Mean points of each system over its comparisons with all others; 1/2 is average.

    Args:
      table: the comparisons.
      margin: see `points`.
      soft: see `points`.
      resamples: bootstrap samples over prompts; 0 for no intervals.
      seed: seed of the resamples.

    Raises:
      UserError: if there is no comparison.
    """
    # A ratio of sums, since systems may take part in different numbers of comparisons.
    gained, played = _shares(table, points(table, margin=margin, soft=soft))
    ratios = clustered_ratios(gained, played, table.prompts, resamples=resamples, seed=seed)
    return dict(zip(table.systems, ratios, strict=True))


def tie_rates(
    table: Comparisons, *, margin: float = 0.0, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Share of each system's comparisons that are ties."""
    tied = (points(table, margin=margin) == 0.5) * 1.0
    members = _members(table)
    rates = clustered_ratios(
        tied[:, None] * members, members, table.prompts, resamples=resamples, seed=seed
    )
    return dict(zip(table.systems, rates, strict=True))


def win_matrix(table: Comparisons, *, margin: float = 0.0, soft: bool = False) -> np.ndarray:
    """Points `[systems, systems]` of the row's system over the column's; ties are half a win.

    Entries `[i, j]` and `[j, i]` add up to the number of comparisons of the two.
    """
    count = len(table.systems)
    gained = points(table, margin=margin, soft=soft)
    # Unbuffered addition: the same two systems occur in many rows.
    wins = np.zeros((count, count))
    np.add.at(wins, (table.one, table.other), gained)
    np.add.at(wins, (table.other, table.one), 1.0 - gained)
    return wins


def pair_figures(
    table: Comparisons, *, margin: float = 0.0, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """Computes `win/ratio` of the first, `win/ties` and `win/consistency` of each "A vs B"."""
    figures = {}
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
        figures[f"{one} vs {other}"] = {
            name: clustered_mean(values, rows.prompts, resamples=resamples, seed=seed)
            for name, values in columns.items()
        }
    return figures


def _members(table: Comparisons) -> np.ndarray:
    """Indicator `[rows, systems]` of the systems in each comparison."""
    systems = np.arange(len(table.systems))
    return ((table.one[:, None] == systems) | (table.other[:, None] == systems)) * 1.0


def _shares(table: Comparisons, gained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and participation of each system in each comparison, `[rows, systems]`."""
    systems = np.arange(len(table.systems))
    one, other = ((place[:, None] == systems) * 1.0 for place in (table.one, table.other))
    return one * gained[:, None] + other * (1.0 - gained)[:, None], one + other
