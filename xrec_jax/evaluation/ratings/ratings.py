"""Human ratings of explanations, and reading them from tables."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.evaluation.ratings.rows import read_rows

PREFERENCE = "preference"
_LONG = ("item", "system", "question", "value")


class Rating(NamedTuple):
    """Rating of a text on one question.

    Attributes:
      rater: name of the rater; "" if the file does not tell.
      item: recommendation that the text is about.
      system: writer of the text.
      question: name of the question.
      value: value on the question's scale.
      group: data set; items of different groups are different.
    """

    rater: str
    item: str
    system: str
    question: str
    value: float
    group: str = ""


class Preference(NamedTuple):
    """Comparison of two systems' texts about the same item.

    Attributes:
      rater: name of the rater.
      item: see `Rating`.
      first: a system.
      second: another system.
      share: 1 if the first is better, 0 if the second, 0.5 for a tie.
      group: see `Rating`.
    """

    rater: str
    item: str
    first: str
    second: str
    share: float
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of raters.

    Attributes:
      ratings: ratings on scales.
      preferences: comparisons; may be empty.
      notes: messages about skipped columns of a file.
    """

    ratings: tuple[Rating, ...]
    preferences: tuple[Preference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Data sets in the order of their first rating."""
        rated, compared = self.ratings, self.preferences
        return _distinct([*(r.group for r in rated), *(p.group for p in compared)])

    @property
    def raters(self) -> tuple[str, ...]:
        """Raters in the order of their first answer."""
        rated, compared = self.ratings, self.preferences
        return _distinct([*(r.rater for r in rated), *(p.rater for p in compared)])

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems in the order of their first answer."""
        compared = ((p.first, p.second) for p in self.preferences)
        return _distinct([*(r.system for r in self.ratings), *(s for two in compared for s in two)])

    @property
    def questions(self) -> tuple[str, ...]:
        """Questions with a scale in the order of their first answer."""
        return _distinct(rating.question for rating in self.ratings)

    def only(self, *, group: str | None = None, without: Sequence[str] = ()) -> Answers:
        """Selects the answers of a group (None: all groups), without some raters."""
        keep = lambda a: (group is None or a.group == group) and a.rater not in without  # noqa: E731
        return Answers(tuple(filter(keep, self.ratings)), tuple(filter(keep, self.preferences)))


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def read_ratings(path: epath.PathLike) -> Answers:
    """Reads a table of ratings from CSV or JSON lines, optionally gzipped.

    Long form: `rater,item,system,question,value`, one line per rating. A line with the question
    "preference" compares `system` with the one in a column `versus`; its value is 1, 0.5 or 0 as in
    `Preference`. Wide form, as published by LLMXRec: `item,system` and one column per question.
    Both may have `dataset` and `rater`. `pair` is an alias of item, `model` and `explainer` of
    system. Empty cells are missing answers; a column of row numbers is skipped with a note.

    Raises:
      UserError: names the file, the line and the problem.
    """
    parsed = read_rows(path)
    present = parsed.names
    long = "question" in present and "value" in present
    for name in _LONG if long else _LONG[:2]:
        if name not in present:
            raise UserError(f"{path}: it has no column {name!r}{did_you_mean(name, present)}")
    questions = [name for name in present if name not in ("rater", "item", "system", "group")]
    if not long and not questions:
        raise UserError(f"{path}: it has no column with ratings beside {', '.join(present)}")
    # Keyed by what was rated, so that a second answer to the same question is noticed.
    spelt: dict[tuple[str, str], str] = {}
    ratings: dict[tuple[str, ...], Rating] = {}
    preferences: dict[tuple[str, ...], Preference] = {}
    for line, row in parsed.rows:
        where = f"{path}, line {line}"
        _check_names(row, spelt, where)
        # A line of the wide form becomes one answer for each of its questions.
        single = [(str(row.get("question") or ""), row.get("value"))] if long else []
        for question, raw in single or [(name, row.get(name)) for name in questions]:
            if raw is None or raw == "":
                continue
            value = _number(raw, f"{where}: {question or 'value'}")
            rater, item, system, group = (
                _named(row, name, where) for name in ("rater", "item", "system", "group")
            )
            if question == PREFERENCE:
                other = _named(row, "versus", where)
                if value not in (0, 0.5, 1):
                    raise UserError(f"{where}: a preference is 1, 0.5 or 0, not {value:g}")
                # In either order it is the same comparison.
                key = (rater, group, item, *sorted((system, other)))
                new = Preference(rater, item, system, other, value, group)
                _add(preferences, key, new, where)
                continue
            if long and not question:
                raise UserError(f"{where}: the question is empty")
            rating = Rating(rater, item, system, question, value, group)
            _add(ratings, (rater, group, item, system, question), rating, where)
    if not ratings and not preferences:
        raise UserError(f"{path}: no rating in it")
    return Answers(tuple(ratings.values()), tuple(preferences.values()), parsed.notes)


def _add(into: dict, key: tuple[str, ...], answer: Rating | Preference, where: str) -> None:
    """Adds an answer; a second one with the same key is an error."""
    if key in into:
        who = (
            f"rater {answer.rater!r}" if answer.rater else "one rater (there is no column 'rater')"
        )
        raise UserError(f"{where}: {who} answers the same about item {answer.item!r} again")
    into[key] = answer


def _check_names(row: Mapping[str, Any], spelt: dict[tuple[str, str], str], where: str) -> None:
    """Rejects names that would split one into two: "base" and "base ", 7 and 7.0."""
    for column in ("rater", "item", "system", "group", "question", "versus"):
        value = row.get(column)
        if isinstance(value, float):
            raise UserError(f"{where}: {column} is {value}; write it as text or a whole number")
        # `versus` holds systems too, so both columns share one list of spellings.
        name, kind = str(value or ""), "system" if column == "versus" else column
        first = spelt.setdefault((kind, name.strip()), name)
        if first != name:
            raise UserError(
                f"{where}: {column} is {name!r}, elsewhere {first!r}; they differ in blanks alone"
            )


def _named(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        if name in ("rater", "group"):
            return ""
        raise UserError(f"{where}: {name} is empty")
    return str(value)


def _number(raw: Any, where: str) -> float:
    try:
        value = float(raw)
    except (TypeError, ValueError):
        value = math.nan
    # Python reads "1_0" as ten.
    if isinstance(raw, bool) or "_" in str(raw) or not math.isfinite(value):
        raise UserError(f"{where} is {raw!r}, not a number")
    return value


def table(
    ratings: Iterable[Rating], *, rows: Callable[[Rating], Hashable]
) -> tuple[list[Any], list[tuple[str, str, str]], np.ndarray]:
    """Arranges the ratings of one question in a matrix.

    Args:
      ratings: ratings, at most one for each row and unit.
      rows: function from a rating to its row, such as the rater.

    Returns:
      Names of the rows, the units (group, item, system), and values `[rows, units]` with NaN for
      missing ones.
    """
    cells: dict[Hashable, dict[tuple[str, str, str], float]] = defaultdict(dict)
    units: dict[tuple[str, str, str], int] = {}
    for rating in ratings:
        unit = (rating.group, rating.item, rating.system)
        units.setdefault(unit, len(units))
        cells[rows(rating)][unit] = rating.value
    matrix = np.full((len(cells), len(units)), np.nan)
    for number, row in enumerate(cells.values()):
        for unit, value in row.items():
            matrix[number, units[unit]] = value
    return list(cells), list(units), matrix
