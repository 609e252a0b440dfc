"""What an audit reports: findings, the protocol they are judged by, and their collection.

A check is a pure function that returns a `Finding`, or None where it does not apply (no timestamps,
no ratings). A finding that counts nothing is a check that passed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from xrec_jax.data.dataset import Dataset

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
MAX_EXAMPLES = 5

Row = int | np.integer[Any]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
      code: names the check; stable, for scripts.
      severity: "error": figures made from these data are wrong; "warning": they need a remark or a
        decision; "info": a property worth knowing.
      count: how many cases there are; 0 for a check that passed.
      total: how many there could be.
      message: what is counted and why it matters.
      advice: what to do about it.
      examples: at most `MAX_EXAMPLES` cases, in the ids of the data.
    """

    code: str
    severity: Severity
    count: int
    total: int
    message: str
    advice: str
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the split was made.

    Attributes:
      kind: "leave_one_out", "ratio" or "given".
      order: of "ratio", "time" or "random".
    """

    kind: str
    order: str = "time"

    @property
    def by_time(self) -> bool:
        """Whether each user's held-out events are chosen as their latest."""
        return self.kind == "leave_one_out" or (self.kind == "ratio" and self.order == "time")

    def __str__(self) -> str:
        """Such as `ratio by time`."""
        if self.kind == "given":
            return self.kind
        return f"{self.kind} {'by time' if self.by_time else 'at random'}"


@dataclasses.dataclass(frozen=True)
class Audit:
    """Outcomes of all checks.

    Attributes:
      findings: what was found, errors first, then warnings, then the rest.
      passed: codes of the checks that found nothing.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The audit as JSON-ready values."""
        return {
            "count": {severity: self.count(severity) for severity in SEVERITIES},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "passed": list(self.passed),
        }


def collect(outcomes: Iterable[Finding | None]) -> Audit:
    """Sorts what checks returned: the most severe first, else in the order given."""
    ran = [outcome for outcome in outcomes if outcome is not None]
    found = [finding for finding in ran if finding.count]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(tuple(found), tuple(finding.code for finding in ran if not finding.count))


@dataclasses.dataclass(frozen=True)
class Names:
    """Readable names of the users and items of a data set.

    Attributes:
      dataset: the data; an item's title is the column that the data set knows as such, or else the
        first of text, or of words, whose name ends in "title" or "name".
    """

    dataset: Dataset

    @functools.cached_property
    def _titles(self) -> pl.Series | None:
        known = self.dataset.title
        for column in () if self.dataset.items is None else self.dataset.items.iter_columns():
            if known not in (None, column.name):
                continue
            if known is None and not column.name.lower().endswith(("title", "name")):
                continue
            if column.dtype == pl.List(pl.String):
                return column.list.join(" ")
            if column.dtype == pl.String:
                return column
        return None

    def user(self, row: Row) -> str:
        """Such as `user 13`."""
        return f"user {self.dataset.user_ids[row]}"

    def item(self, row: Row) -> str:
        """Such as `item 'Toy Story' (1)`, without a title `item 1`."""
        title = None if self._titles is None else self._titles[int(row)]
        name = self.dataset.item_ids[row]
        return f"item {name}" if not title or not title.strip() else f"item {title!r} ({name})"

    def pair(self, user: Row, item: Row) -> str:
        """Such as `user 13, item 'Toy Story' (1)`."""
        return f"{self.user(user)}, {self.item(item)}"


def largest(values: np.ndarray) -> list[int]:
    """Indices of the largest positive values, at most `MAX_EXAMPLES`, earlier ones first in ties.

    Args:
      values: `[n]`, not negative.
    """
    if len(values) > MAX_EXAMPLES:
        bound = np.partition(values, -MAX_EXAMPLES)[-MAX_EXAMPLES]
        above, at = np.flatnonzero(values > bound), np.flatnonzero(values == bound)
        candidates = np.sort(np.concatenate([above, at[: MAX_EXAMPLES - len(above)]]))
    else:
        candidates = np.arange(len(values))
    candidates = candidates[values[candidates] > 0]
    return candidates[np.argsort(-values[candidates], kind="stable")].tolist()


def first_rows(mask: np.ndarray) -> list[int]:
    """Indices of the first true entries of a `[n]` mask, at most `MAX_EXAMPLES`."""
    return np.flatnonzero(mask)[:MAX_EXAMPLES].tolist()


def plural(count: Row, noun: str) -> str:
    """Such as `1 user` and `1,682 users`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """Such as `44 %` and `0.25 %`; of nothing `0 %`."""
    return f"{100 * part / whole if whole else 0:.3g} %"


def listing(texts: Sequence[str], conjunction: str = "and") -> str:
    """Such as `a, b and c`."""
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {conjunction} {texts[-1]}"
