"""Judgements put in order: which rows belong together, and which systems they compare."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.audit.cases import Case, level

_SHARED = 0.5  # of the texts of a smaller side, from which two sides are one system


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A comparison of two texts.

    Attributes:
      case: the prompt that both answer.
      first: the text shown first.
      second: the text shown second.
      better: 1 or 2.
      systems: who wrote the two; "" where the record does not say.
      group: the record's own group, "" without.
    """

    case: Case
    first: str
    second: str
    better: int
    systems: tuple[str, str] = ("", "")
    group: str = ""

    @property
    def dataset(self) -> str:
        """The data set that the record names."""
        return self.case.dataset

    @property
    def pair(self) -> tuple[str, frozenset[str]]:
        """What is compared, in whichever order."""
        return self.case.text, frozenset((self.first, self.second))

    @property
    def winner(self) -> str:
        """The better text."""
        return self.first if self.better == 1 else self.second


def read_judgements(records: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> list[Judgement]:
    """Judgements from records with prompt, first, second and better; texts are levelled.

    `first_system`, `second_system` and `group` are read where a record has them.
    """
    return [
        Judgement(
            case,
            level(str(record["first"])),
            level(str(record["second"])),
            int(record["better"]),
            (str(record.get("first_system") or ""), str(record.get("second_system") or "")),
            str(record.get("group") or ""),
        )
        for record, case in zip(records, cases, strict=True)
    ]


def groups_of(judgements: Sequence[Judgement]) -> list[list[int]]:
    """Rows that belong together.

    Those of one `group` or of one ordered pair of systems where the records say it. Else runs of
    rows: a new one begins where the data set changes or a prompt comes again.
    """
    if all(one.group or all(one.systems) for one in judgements):
        named: dict[Any, list[int]] = defaultdict(list)
        for row, one in enumerate(judgements):
            named[one.dataset, one.group or one.systems].append(row)
        return list(named.values())
    groups: list[list[int]] = []
    seen: set[str] = set()
    for row, one in enumerate(judgements):
        changed = row and one.dataset != judgements[row - 1].dataset
        if not groups or changed or one.case.text in seen:
            groups.append([])
            seen = set()
        seen.add(one.case.text)
        groups[-1].append(row)
    return groups


def systems_of(
    judgements: Sequence[Judgement],
    groups: Sequence[Sequence[int]],
    written: Mapping[tuple[str, str], str] | None = None,
) -> list[tuple[str, str] | None]:
    """Who wrote the two texts of every group's rows.

    Where records do not say it, a side of a group is the same system as a side of another group
    when they share most of their texts on the same prompts.

    Args:
      judgements: all of them.
      groups: from `groups_of`.
      written: (prompt, text), both levelled, to the system known to have written it.

    Returns:
      Two names a group; None where the file does not tell, or contradicts itself.
    """
    if all(all(one.systems) for one in judgements):
        return [judgements[rows[0]].systems for rows in groups]
    texts = [
        {
            (judgements[row].case.text, (judgements[row].first, judgements[row].second)[side])
            for row in rows
        }
        for rows in groups
        for side in (0, 1)
    ]
    parent = list(range(len(texts)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for node, own in enumerate(texts):
        for text in own:
            holders[text].append(node)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for nodes in holders.values():
        for place, node in enumerate(nodes):
            for other in nodes[place + 1 :]:
                shared[node, other] += 1
    linked = set()
    for (node, other), count in shared.items():
        if count >= _SHARED * min(len(texts[node]), len(texts[other])):
            parent[root(other)] = root(node)
            linked |= {node, other}
    names: dict[int, str] = {}
    numbers: dict[str, int] = defaultdict(int)
    for node, own in enumerate(texts):
        top = root(node)
        if top in names:
            continue
        members = [other for other in range(len(texts)) if root(other) == top]
        votes: dict[str, int] = defaultdict(int)
        for text in set().union(*(texts[member] for member in members)):
            if written and text in written:
                votes[written[text]] += 1
        dataset = judgements[groups[node // 2][0]].dataset
        numbers[dataset] += 1
        best = max(votes, key=lambda name: votes[name], default="")
        known = best and votes[best] >= _SHARED * len(own)
        names[top] = best if known else f"{dataset} system {numbers[dataset]}".strip()
    found: list[tuple[str, str] | None] = []
    for place in range(len(groups)):
        first, second = 2 * place, 2 * place + 1
        telling = first in linked or second in linked
        pair = names[root(first)], names[root(second)]
        found.append(pair if telling and pair[0] != pair[1] else None)
    return found
