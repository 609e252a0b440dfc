"""Differences of explanations between groups of users, with multiple-testing correction.

LLMXRec's open question 1. A column with two groups gives one comparison, first group minus second
in order of their names. A column with more gives one for each group, against all others together.
Groups with fewer than `least` users are excluded on both sides; numbers with many values are binned
into thirds. A user with several explanations counts once, with their mean. Holm's correction is
over the whole family: all columns, groups, metrics and explainers of one call.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.statistics.significance import Effect, group_effect, holm
from xrec_jax.evaluation.texts.grounding import Grounding, grounding_metrics
from xrec_jax.evaluation.texts.sentiment import sentiment as word_list_sentiment
from xrec_jax.text.words import word_count

LEAST = 10  # users of a group
MOST_NUMBERS = 8  # distinct numbers that are groups of their own
REST = "all others"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a metric between two groups of users.

    Attributes:
      explainer: name of the explainer; "A vs B" for differences of A's and B's metrics.
      column: column of the user table.
      first: a group.
      second: the other group, or `REST`.
      metric: name of the metric.
      effect: effect of first minus second.
      p: p-value of the effect, corrected for the family.
      means: means of both groups.
    """

    explainer: str
    column: str
    first: str
    second: str
    metric: str
    effect: Effect
    p: float
    means: tuple[float, float]

    @property
    def name(self) -> str:
        """Name as COLUMN/METRIC, or COLUMN=GROUP/METRIC for a group against all others."""
        group = f"={self.first}" if self.second == REST else ""
        return f"{self.column}{group}/{self.metric}"

    def __str__(self) -> str:
        effect = self.effect
        return (
            f"{self.explainer}, {self.metric}, {self.column}: {self.first} {self.means[0]:.3g} "
            f"({effect.counts[0]}), {self.second} {self.means[1]:.3g} ({effect.counts[1]}); "
            f"g {effect.size:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}], p {self.p:.2g}"
        )


def explanation_figures(
    texts: Sequence[str],
    groundings: Sequence[Grounding] | None = None,
    *,
    sentiment: Callable[[str], float] = word_list_sentiment,
) -> dict[str, np.ndarray]:
    """Metrics of each text that are compared between groups.

    Args:
      texts: texts of one explainer.
      groundings: groundings of the texts; without them only `words` and `sentiment` are returned.
      sentiment: scores a text.

    Returns:
      Values `[texts]` by name; NaN if undefined for a text, such as the share of hallucinated
      titles of a text without titles.
    """
    figures = {
        "words": np.array([word_count(text) for text in texts], np.float64),
        "sentiment": np.array([sentiment(text) for text in texts], np.float64),
    }
    if groundings:
        per_text = grounding_metrics(groundings, resamples=0).per_text
        names = (
            "item_named",
            "history_cited",
            "hallucinated_titles",
            "attributes",
            "attributes_precision",
        )
        figures |= {name: per_text[f"grounding/{name}"] for name in names}
    return figures


def thirds(cells: Iterable[Any]) -> list[str | None]:
    """Groups of a column's cells, where numbers with many values become thirds as "30 to 43".

    Equal numbers stay in one third; an empty cell belongs to no group.
    """
    cells = list(cells)
    numbers = [_number(cell) for cell in cells]
    known = [number for cell, number in zip(cells, numbers, strict=True) if not _empty(cell)]
    values = np.array([number for number in known if number is not None], np.float64)
    # A column with a text, or with few distinct numbers such as marks, has its groups already.
    if len(values) < len(known) or len(np.unique(values)) <= MOST_NUMBERS:
        return [None if _empty(cell) else str(cell) for cell in cells]
    cuts = np.quantile(values, [1 / 3, 2 / 3])
    # A number equal to a cut belongs to the lower third, here and in the lookup of labels below.
    place = np.searchsorted(cuts, values, side="left")
    labels = {
        third: f"{values[place == third].min():g} to {values[place == third].max():g}"
        for third in np.unique(place)
    }
    return [
        None if number is None else labels[np.searchsorted(cuts, number, side="left")]
        for number in numbers
    ]


def compare_groups(
    figures: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, Iterable[Any]],
    *,
    users: Sequence[Hashable] | None = None,
    changes: Iterable[tuple[str, str]] = (("tuned", "base"),),
    least: int = LEAST,
) -> list[Comparison]:
    """Compares the texts of groups of users.

    Args:
      figures: `explanation_figures` of each explainer, all of the same cases.
      groups: cells of each case, by column of the user table.
      users: user of each case; by default each case is a user of its own.
      changes: pairs (A, B) of explainers; if both exist, their differences case by case are
        compared between groups like any metric: does A widen B's gap?
      least: smallest number of users of a group; smaller groups are not compared.

    Raises:
      UserError: if lengths differ.
    """
    if not figures:
        return []
    lengths = {len(values) for named in figures.values() for values in named.values()}
    columns = {column: thirds(cells) for column, cells in groups.items()}
    lengths |= {len(cells) for cells in columns.values()}
    lengths |= set() if users is None else {len(users)}
    if len(lengths) > 1:
        raise UserError(f"bias: figures, groups and users differ in length: {sorted(lengths)}")
    # Differences of two explainers are treated as one more explainer.
    place = _places(users if users is not None else range(*lengths))
    compared = {name: dict(named) for name, named in figures.items()}
    for first, second in changes:
        if first in figures and second in figures:
            compared[f"{first} vs {second}"] = {
                metric: values - figures[second][metric]
                for metric, values in figures[first].items()
                if metric in figures[second]
            }
    # A user is the unit of every test, whatever the number of their explanations.
    comparisons: list[Comparison] = []
    for explainer, named in compared.items():
        for metric, values in named.items():
            mean = _per_user(values, place)
            for column, cells in columns.items():
                group = dict(zip(place.tolist(), cells, strict=True))
                labels = np.array([group[user] or "" for user in range(len(mean))])
                comparisons += _column(explainer, column, metric, mean, labels, least)
    # One family for all: the more is compared, the more differences arise by chance.
    adjusted = holm(
        {str(place): comparison.effect.p for place, comparison in enumerate(comparisons)}
    )
    return [
        dataclasses.replace(comparison, p=adjusted[str(i)])
        for i, comparison in enumerate(comparisons)
    ]


def bias_estimates(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Estimate]]:
    """Comparisons as entries of `evaluation.json`.

    Returns:
      For each explainer, `COLUMN/METRIC` with Hedges' g and its interval, `_difference` in the unit
      of the metric and the corrected p-value `_p`. Groups that differ without any spread have no
      g, as it is in units of the spread, but the other two.
    """
    table: dict[str, dict[str, Estimate]] = {}
    for comparison in comparisons:
        effect, count = comparison.effect, sum(comparison.effect.counts)
        row = table.setdefault(comparison.explainer, {})
        if math.isfinite(effect.size):
            row[comparison.name] = {
                "value": effect.size,
                "low": effect.low,
                "high": effect.high,
                "count": count,
            }
        row[f"{comparison.name}_difference"] = exact(effect.difference, count)
        row[f"{comparison.name}_p"] = exact(comparison.p, count)
    return table


def _column(
    explainer: str, column: str, metric: str, values: np.ndarray, labels: np.ndarray, least: int
) -> list[Comparison]:
    """Compares a metric between the groups of a column; values and labels are of users."""
    present = ~np.isnan(values) & (labels != "")
    values, labels = values[present], labels[present]
    names, counts = np.unique(labels, return_counts=True)
    # Two users at least, whatever `least` says: one alone has no variance.
    names_kept = [str(name) for name in names[counts >= max(least, 2)]]
    inside = np.isin(labels, names_kept)
    values, labels = values[inside], labels[inside]
    if len(names_kept) < 2:
        return []
    sides = (
        [(names_kept[0], names_kept[1])]
        if len(names_kept) == 2
        else [(name, REST) for name in names_kept]
    )
    comparisons = []
    for first, second in sides:
        group, rest = values[labels == first], values[labels != first]
        means = (float(group.mean()), float(rest.mean()))
        # Means of equal values differ by rounding alone, which must not become an effect.
        if not np.ptp(group) and not np.ptp(rest):
            if np.isclose(group[0], rest[0], rtol=1e-12, atol=0):
                group, rest = np.zeros_like(group), np.zeros_like(rest)
            else:
                group, rest = np.full_like(group, group[0]), np.full_like(rest, rest[0])
        with warnings.catch_warnings():  # scipy's on values that hardly differ
            warnings.simplefilter("ignore", RuntimeWarning)
            effect = group_effect(group, rest)
        comparisons.append(
            Comparison(explainer, column, first, second, metric, effect, effect.p, means)
        )
    return comparisons


def _places(users: Iterable[Hashable]) -> np.ndarray:
    """Numbers users from 0 in order of first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(user, len(known)) for user in users], np.int64)


def _per_user(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Mean over each user's cases that have a value; NaN if none has."""
    present = ~np.isnan(values)
    count = np.bincount(place[present], minlength=place.max() + 1)
    total = np.bincount(place[present], values[present], minlength=place.max() + 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _number(cell: Any) -> float | None:
    try:
        return None if _empty(cell) else float(cell)
    except (TypeError, ValueError):
        return None
