"""Items whose whole row of marks is that of another item: answers that were copied, not given.

An item's row is every mark that it got: of each rater, for each system, on each question. Two items
may have equal rows by chance, where there are few marks or few values. What chance gives is counted
with each text's marks moved to other items: that keeps what raters say of a text and how often, and
breaks only what makes a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from xrec_jax.evaluation.ratings.ratings import PREFERENCE, Answers

Item = tuple[str, str]  # group and item
_SHUFFLES = 20
_LEAST = 2  # rows; fewer copies are never held against a table
_TIMES = 3  # as many as by chance: items of one quality get equal marks more often than random ones
# Who gave it, on which text, to which question; and the mark.
Mark = tuple[tuple[str, str, str], Hashable]
Row = tuple[Mark, ...]


class Copies(NamedTuple):
    """How often items of a group have one and the same row.

    Attributes:
      items: how many there are.
      distinct: different rows among them.
      marks: of an item, at most.
      most: the items that share the most frequent row.
      chance: items with the row of an earlier one, on average, where marks are moved.
    """

    items: int
    distinct: int
    marks: int
    most: tuple[str, ...]
    chance: float

    @property
    def repeated(self) -> int:
        """Items that have the row of an earlier one."""
        return self.items - self.distinct

    @property
    def copied(self) -> bool:
        """Whether that is clearly more than chance."""
        return self.repeated > _LEAST + _TIMES * self.chance

    def __str__(self) -> str:
        chance = f"{self.chance:.1f}".removesuffix(".0")
        return (
            f"{self.items:,} items with {self.distinct:,} distinct rows of {self.marks} marks, one "
            f"of them {len(self.most):,} times; {self.repeated:,} copies, {chance} by chance"
        )


def rows_of(marks: Iterable[tuple[Item, Mark]]) -> dict[Item, Row]:
    """Every mark of each item, in an order that does not depend on that of the marks."""
    found: dict[Item, list[Mark]] = defaultdict(list)
    for item, mark in marks:
        found[item].append(mark)
    return {item: tuple(sorted(given, key=repr)) for item, given in found.items()}


def rows_of_answers(answers: Answers) -> dict[Item, Row]:
    """`rows_of` of what raters said; a comparison is a mark of its two texts."""
    marks: list[tuple[Item, Mark]] = [
        ((one.group, one.item), ((one.rater, one.system, one.question), one.value))
        for one in answers.ratings
    ]
    for one in answers.preferences:
        turned = one.first > one.second
        text = f"{one.second}\t{one.first}" if turned else f"{one.first}\t{one.second}"
        share = 1 - one.share if turned else one.share
        marks.append(((one.group, one.item), ((one.rater, text, PREFERENCE), share)))
    return rows_of(marks)


def copies(rows: Mapping[Item, Row], *, seed: int = 0) -> dict[str, Copies]:
    """Counts equal rows, group by group.

    Args:
      rows: from `rows_of`.
      seed: of the moves that tell what chance gives.
    """
    by_group: dict[str, dict[str, Row]] = defaultdict(dict)
    for (group, item), row in rows.items():
        by_group[group][item] = row
    found = {}
    for group, own in by_group.items():
        places: dict[Row, list[str]] = defaultdict(list)
        for item, row in own.items():
            places[row].append(item)
        most = max(places.values(), key=len)
        found[group] = Copies(
            len(own),
            len(places),
            max(map(len, own.values())),
            tuple(most),
            _by_chance(list(own.values()), seed) if len(places) < len(own) else 0.0,
        )
    return found


def _by_chance(rows: list[Row], seed: int) -> float:
    """Mean number of items with an earlier one's row where each text's marks are moved."""
    # A text's marks stay together; of a single text those of each question.
    texts = {(key[0], key[1]) for row in rows for key, _ in row}
    parts = 2 if len(texts) > 1 else 3
    columns: dict[Hashable, list[Row]] = {}
    for place, row in enumerate(rows):
        for mark in row:
            column = columns.setdefault(mark[0][:parts], [()] * len(rows))
            column[place] = (*column[place], mark)
    # Numbers instead of marks: rows are then compared as arrays.
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


def clusters(rows: Mapping[Item, Row], found: Mapping[str, Copies]) -> dict[Item, int]:
    """What a bootstrap draws as one: items of one row where rows are copied, else every item."""
    known: dict[Hashable, int] = {}
    return {
        item: known.setdefault((item[0], row if found[item[0]].copied else item), len(known))
        for item, row in rows.items()
    }
