"""Do explanations differ between groups of users: effect sizes, corrected for their number.

LLMXRec's open question 1. A column with two groups gives one comparison, first group minus second
in order of their names. A column with more gives one for each group, against all others together.
Groups with fewer than `least` users are left out on both sides; numbers with many values are cut
into thirds. A user with several explanations counts once, with their mean. Holm's correction is
over the whole family: all columns, groups, figures and explainers of one call.
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
    """A figure of two groups of users.

    Attributes:
      explainer: whose texts; "A vs B" for what A changes in B's figures.
      column: of the user table.
      first: a group.
      second: the other, or `REST`.
      metric: name of the figure.
      effect: first minus second.
      p: of the effect, corrected for the family.
      means: of both groups.
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
        """COLUMN/METRIC, or COLUMN=GROUP/METRIC for a group against all others."""
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
    """What is compared between groups, for each text.

    Args:
      texts: of one explainer.
      groundings: of the texts; without them only `words` and `sentiment`.
      sentiment: from a text to a number.

    Returns:
      Name to `[texts]`; NaN where a text has no such figure, such as the share of hallucinated
      titles of a text that names none.
    """
    figures = {
        "words": np.array([word_count(text) for text in texts], np.float64),
        "sentiment": np.array([sentiment(text) for text in texts], np.float64),
    }
    if groundings:
        found = grounding_metrics(groundings, resamples=0).per_text
        names = (
            "item_named",
            "history_cited",
            "hallucinated_titles",
            "attributes",
            "attributes_precision",
        )
        figures |= {name: found[f"grounding/{name}"] for name in names}
    return figures


def thirds(cells: Iterable[Any]) -> list[str | None]:
    """Groups of a column's cells: numbers with many values as thirds such as "30 to 43".

    Thirds are cut so that equal numbers stay together; an empty cell belongs to no group.
    """
    cells = list(cells)
    numbers = [_number(cell) for cell in cells]
    known = [number for cell, number in zip(cells, numbers, strict=True) if not _empty(cell)]
    values = np.array([number for number in known if number is not None], np.float64)
    if len(values) < len(known) or len(np.unique(values)) <= MOST_NUMBERS:
        return [None if _empty(cell) else str(cell) for cell in cells]
    cuts = np.quantile(values, [1 / 3, 2 / 3])
    place = np.searchsorted(cuts, values, side="left")
    labels = {
        third: f"{values[place == third].min():g} to {values[place == third].max():g}"
        for third in np.unique(place)
    }
    found = [
        None if number is None else labels[np.searchsorted(cuts, number, side="left")]
        for number in numbers
    ]
    return found


def compare_groups(
    figures: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, Iterable[Any]],
    *,
    users: Sequence[Hashable] | None = None,
    changes: Iterable[tuple[str, str]] = (("tuned", "base"),),
    least: int = LEAST,
) -> list[Comparison]:
    """Compares groups of users.

    Args:
      figures: explainer to `explanation_figures`; of the same cases for all explainers.
      groups: column of the user table to its cell for each case.
      users: whose case it is; default: each case is a user of its own.
      changes: pairs (A, B) of explainers, where both are there: does A widen B's gap? The figures
        of A minus those of B, case by case, are compared between groups like any other.
      least: users of a group; figures of smaller groups are not compared.

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
    place = _places(users if users is not None else range(*lengths))
    compared = {name: dict(named) for name, named in figures.items()}
    for first, second in changes:
        if first in figures and second in figures:
            compared[f"{first} vs {second}"] = {
                metric: values - figures[second][metric]
                for metric, values in figures[first].items()
                if metric in figures[second]
            }
    found: list[Comparison] = []
    for explainer, named in compared.items():
        for metric, values in named.items():
            mean = _per_user(values, place)
            for column, cells in columns.items():
                group = dict(zip(place.tolist(), cells, strict=True))
                labels = np.array([group[user] or "" for user in range(len(mean))])
                found += _column(explainer, column, metric, mean, labels, least)
    adjusted = holm({str(place): one.effect.p for place, one in enumerate(found)})
    return [dataclasses.replace(one, p=adjusted[str(i)]) for i, one in enumerate(found)]


def bias_estimates(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Estimate]]:
    """Comparisons as figures of `evaluation.json`.

    Returns:
      Explainer to names: `COLUMN/METRIC` is Hedges' g with its interval, `_difference` behind it
      the difference in the figure's own unit, `_p` the corrected p-value. Groups that are apart
      without any spread have no unit to say how far: they have no g, but the other two.
    """
    table: dict[str, dict[str, Estimate]] = {}
    for one in comparisons:
        effect, count = one.effect, sum(one.effect.counts)
        row = table.setdefault(one.explainer, {})
        if math.isfinite(effect.size):
            row[one.name] = {
                "value": effect.size,
                "low": effect.low,
                "high": effect.high,
                "count": count,
            }
        row[f"{one.name}_difference"] = exact(effect.difference, count)
        row[f"{one.name}_p"] = exact(one.p, count)
    return table


def _column(
    explainer: str, column: str, metric: str, values: np.ndarray, labels: np.ndarray, least: int
) -> list[Comparison]:
    there = ~np.isnan(values) & (labels != "")
    values, labels = values[there], labels[there]
    names, counts = np.unique(labels, return_counts=True)
    kept = [str(name) for name in names[counts >= max(least, 2)]]
    inside = np.isin(labels, kept)
    values, labels = values[inside], labels[inside]
    if len(kept) < 2:
        return []
    sides = [(kept[0], kept[1])] if len(kept) == 2 else [(name, REST) for name in kept]
    found = []
    for first, second in sides:
        one, other = values[labels == first], values[labels != first]
        means = (float(one.mean()), float(other.mean()))
        if not np.ptp(one) and not np.ptp(other):
            if np.isclose(one[0], other[0], rtol=1e-12, atol=0):
                one, other = np.zeros_like(one), np.zeros_like(other)  # equal, to the last bit
            else:  # without what rounding leaves of a mean
                one, other = np.full_like(one, one[0]), np.full_like(other, other[0])
        with warnings.catch_warnings():  # scipy's on values that hardly differ
            warnings.simplefilter("ignore", RuntimeWarning)
            effect = group_effect(one, other)
        found.append(Comparison(explainer, column, first, second, metric, effect, effect.p, means))
    return found


def _places(users: Iterable[Hashable]) -> np.ndarray:
    """Numbers of users from 0, in order of first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(user, len(known)) for user in users], np.int64)


def _per_user(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Mean of each user's cases that have a value; NaN where none has."""
    there = ~np.isnan(values)
    count = np.bincount(place[there], minlength=place.max() + 1)
    total = np.bincount(place[there], values[there], minlength=place.max() + 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _number(cell: Any) -> float | None:
    try:
        return None if _empty(cell) else float(cell)
    except (TypeError, ValueError):
        return None
