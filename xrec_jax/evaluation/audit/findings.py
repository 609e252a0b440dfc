"""Findings of an audit, the protocol of the split, and the collection of findings.

A check is a pure function that returns a `Finding`, or None if it does not apply (no timestamps, no
ratings). A finding with count 0 is a passed check.
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
    """Result of a check.

    Attributes:
      code: stable name of the check, for scripts.
      severity: "error": results from these data are wrong; "warning": they need a remark or a
        decision; "info": a property worth knowing.
      count: number of cases; 0 for a passed check.
      total: number of possible cases.
      message: meaning of the count.
      advice: recommended action.
      examples: at most `MAX_EXAMPLES` cases, with ids of the data.
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
    """Protocol of the split.

    Attributes:
      kind: "leave_one_out", "ratio", "time" or "given".
      order: order of the events for "ratio", "time" or "random".
      repeats: whether an item that a user knows is a candidate again, so that a repeated pair is a
        new choice and no leak.
    """

    kind: str
    order: str = "time"
    repeats: bool = False

    @property
    def by_time(self) -> bool:
        """True if the held-out events of each user are their latest ones."""
        always = self.kind in ("leave_one_out", "time")
        return always or (self.kind == "ratio" and self.order == "time")

    def __str__(self) -> str:
        """Formats as `ratio by time`."""
        if self.kind == "time":
            return "one moment for all users"
        if self.kind == "given":
            return self.kind
        return f"{self.kind} {'by time' if self.by_time else 'at random'}"


@dataclasses.dataclass(frozen=True)
class Audit:
    """Results of all checks.

    Attributes:
      findings: findings with cases: errors, then warnings, then information.
      passed: codes of the checks without cases.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """Converts the audit to JSON values."""
        return {
            "count": {severity: self.count(severity) for severity in SEVERITIES},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "passed": list(self.passed),
        }


def collect(outcomes: Iterable[Finding | None]) -> Audit:
    """Sorts the results of checks by severity, the most severe first."""
    results = [outcome for outcome in outcomes if outcome is not None]
    findings = [finding for finding in results if finding.count]
    # A stable sort: within a severity the checks keep their order.
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(tuple(findings), tuple(finding.code for finding in results if not finding.count))


@dataclasses.dataclass(frozen=True)
class Names:
    """Readable names of the users and items of a data set.

    Attributes:
      dataset: the data; titles are in the column that the data set declares, or else in the first
        column of text or of words whose name ends in "title" or "name".
    """

    dataset: Dataset

    @functools.cached_property
    def _titles(self) -> pl.Series | None:
        known = self.dataset.title
        # A declared column is the only candidate; otherwise its name has to tell.
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
        """Formats as `user 13`."""
        return f"user {self.dataset.user_ids[row]}"

    def item(self, row: Row) -> str:
        """Formats as `item 'Toy Story' (1)`; without a title as `item 1`."""
        title = None if self._titles is None else self._titles[int(row)]
        name = self.dataset.item_ids[row]
        return f"item {name}" if not title or not title.strip() else f"item {title!r} ({name})"

    def pair(self, user: Row, item: Row) -> str:
        """Formats as `user 13, item 'Toy Story' (1)`."""
        return f"{self.user(user)}, {self.item(item)}"


def largest(values: np.ndarray) -> list[int]:
    """Indices of the largest positive values, at most `MAX_EXAMPLES`, earlier ones first in ties.

    Args:
      values: `[n]`, not negative.
    """
    if len(values) > MAX_EXAMPLES:
        # A partition instead of a sort: there may be millions of values for a few examples.
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
    """Formats as `1 user` or `1,682 users`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """Formats a share as `44 %` or `0.25 %`; a share of nothing as `0 %`."""
    return f"{100 * part / whole if whole else 0:.3g} %"


def listing(texts: Sequence[str], conjunction: str = "and") -> str:
    """Formats as `a, b and c`."""
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {conjunction} {texts[-1]}"
