"""Detection of copied ratings: items whose whole row of marks equals that of another item.

The row of an item consists of all its marks: of each rater, for each system, on each question. With
few marks or few values, rows may be equal by chance. Chance is estimated by permuting each text's
marks over the items, which keeps the distribution of its marks and breaks the rows only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from xrec_jax.evaluation.ratings.ratings import PREFERENCE, Answers

Item = tuple[str, str]  # group and item
_SHUFFLES = 20
_LEAST = 2  # copies that are always tolerated
_TIMES = 3  # tolerated multiple of chance, as items of one quality get equal marks more often
# (rater, text, question) and the mark.
Mark = tuple[tuple[str, str, str], Hashable]
Row = tuple[Mark, ...]


class Copies(NamedTuple):
    """Equal rows among the items of a group.

    Attributes:
      items: number of items.
      distinct: number of distinct rows.
      marks: largest number of marks of an item.
      most: items that share the most frequent row.
      chance: mean number of items with the row of an earlier one after permuting the marks.
    """

    items: int
    distinct: int
    marks: int
    most: tuple[str, ...]
    chance: float

    @property
    def repeated(self) -> int:
        """Number of items with the row of an earlier one."""
        return self.items - self.distinct

    @property
    def copied(self) -> bool:
        """True if repeated rows are clearly more frequent than by chance."""
        return self.repeated > _LEAST + _TIMES * self.chance

    def __str__(self) -> str:
        chance = f"{self.chance:.1f}".removesuffix(".0")
        return (
            f"{self.items:,} items with {self.distinct:,} distinct rows of {self.marks} marks, one "
            f"of them {len(self.most):,} times; {self.repeated:,} copies, {chance} by chance"
        )


def rows_of(marks: Iterable[tuple[Item, Mark]]) -> dict[Item, Row]:
    """Collects the marks of each item, in an order independent of the input's."""
    marks_of: dict[Item, list[Mark]] = defaultdict(list)
    for item, mark in marks:
        marks_of[item].append(mark)
    return {item: tuple(sorted(own_marks, key=repr)) for item, own_marks in marks_of.items()}


def rows_of_answers(answers: Answers) -> dict[Item, Row]:
    """Collects the marks of each item from answers; a preference is a mark of its two texts."""
    marks: list[tuple[Item, Mark]] = [
        (
            (answer.group, answer.item),
            ((answer.rater, answer.system, answer.question), answer.value),
        )
        for answer in answers.ratings
    ]
    for answer in answers.preferences:
        turned = answer.first > answer.second
        text = f"{answer.second}\t{answer.first}" if turned else f"{answer.first}\t{answer.second}"
        share = 1 - answer.share if turned else answer.share
        marks.append(((answer.group, answer.item), ((answer.rater, text, PREFERENCE), share)))
    return rows_of(marks)


def copies(rows: Mapping[Item, Row], *, seed: int = 0) -> dict[str, Copies]:
    """Counts equal rows of each group.

    Args:
      rows: result of `rows_of`.
      seed: seed of the permutations that estimate chance.
    """
    by_group: dict[str, dict[str, Row]] = defaultdict(dict)
    for (group, item), row in rows.items():
        by_group[group][item] = row
    result = {}
    for group, own in by_group.items():
        places: dict[Row, list[str]] = defaultdict(list)
        for item, row in own.items():
            places[row].append(item)
        most = max(places.values(), key=len)
        result[group] = Copies(
            len(own),
            len(places),
            max(map(len, own.values())),
            tuple(most),
            _by_chance(list(own.values()), seed) if len(places) < len(own) else 0.0,
        )
    return result


def _by_chance(rows: list[Row], seed: int) -> float:
    """Mean number of items with an earlier one's row after permuting each text's marks."""
    # The marks of a text are moved together; with a single text, those of each question.
    texts = {(key[0], key[1]) for row in rows for key, _ in row}
    parts = 2 if len(texts) > 1 else 3
    columns: dict[Hashable, list[Row]] = {}
    for place, row in enumerate(rows):
        for mark in row:
            column = columns.setdefault(mark[0][:parts], [()] * len(rows))
            column[place] = (*column[place], mark)
    # Marks are numbered, so that rows can be compared as bytes.
    table = np.stack([_numbered(column) for column in columns.values()], axis=1)
    rng = np.random.default_rng(seed)
    repeated = []
    for _ in range(_SHUFFLES):
        moved = rng.permuted(table, axis=0)
        repeated.append(len(rows) - len(Counter(map(bytes, moved))))
    return float(np.mean(repeated))


def _numbered(column: list[Row]) -> np.ndarray:
    known: dict[Row, int] = {}
    return np.array([known.setdefault(cell, len(known)) for cell in column], np.int64)


def clusters(rows: Mapping[Item, Row], copies_of: Mapping[str, Copies]) -> dict[Item, int]:
    """Bootstrap clusters: items with equal rows in groups with copies, otherwise single items."""
    known: dict[Hashable, int] = {}
    return {
        item: known.setdefault((item[0], row if copies_of[item[0]].copied else item), len(known))
        for item, row in rows.items()
    }
