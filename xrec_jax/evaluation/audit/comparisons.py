"""Structure of judgement files: groups of rows, and the systems that they compare."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.audit.contents import PromptContent, level

_SHARED = 0.5  # share of the smaller side's texts from which two sides are one system


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Comparison of two texts.

    Attributes:
      prompt: prompt that both answer.
      first: text shown first.
      second: text shown second.
      better: 1 or 2.
      systems: writers of the two texts; "" if the record does not name them.
      group: group of the record, or "".
    """

    prompt: PromptContent
    first: str
    second: str
    better: int
    systems: tuple[str, str] = ("", "")
    group: str = ""

    @property
    def dataset(self) -> str:
        """Data set of the record."""
        return self.prompt.dataset

    @property
    def pair(self) -> tuple[str, frozenset[str]]:
        """Prompt and texts, regardless of their order."""
        return self.prompt.text, frozenset((self.first, self.second))

    @property
    def winner(self) -> str:
        """Text of the winner."""
        return self.first if self.better == 1 else self.second


def read_judgements(
    records: Sequence[Mapping[str, Any]], prompts: Sequence[PromptContent]
) -> list[Judgement]:
    """Reads records with prompt, first, second and better; white space is normalised.

    `first_system`, `second_system` and `group` are optional.
    """
    return [
        Judgement(
            prompt,
            level(str(record["first"])),
            level(str(record["second"])),
            int(record["better"]),
            (str(record.get("first_system") or ""), str(record.get("second_system") or "")),
            str(record.get("group") or ""),
        )
        for record, prompt in zip(records, prompts, strict=True)
    ]


def groups_of(judgements: Sequence[Judgement]) -> list[list[int]]:
    """Groups the rows that belong together.

    These are the rows of one `group` or of one ordered pair of systems if the records name them.
    Otherwise groups are runs of rows: a new run begins when the data set changes or a prompt is
    repeated.
    """
    if all(judgement.group or all(judgement.systems) for judgement in judgements):
        named: dict[Any, list[int]] = defaultdict(list)
        for row, judgement in enumerate(judgements):
            named[judgement.dataset, judgement.group or judgement.systems].append(row)
        return list(named.values())
    groups: list[list[int]] = []
    seen: set[str] = set()
    for row, judgement in enumerate(judgements):
        changed = row and judgement.dataset != judgements[row - 1].dataset
        if not groups or changed or judgement.prompt.text in seen:
            groups.append([])
            seen = set()
        seen.add(judgement.prompt.text)
        groups[-1].append(row)
    return groups


def systems_of(
    judgements: Sequence[Judgement],
    groups: Sequence[Sequence[int]],
    written: Mapping[tuple[str, str], str] | None = None,
) -> list[tuple[str, str] | None]:
    """Infers the writers of the two texts of each group's rows.

    Unless records name them, a side of one group and a side of another are the same system if they
    share most of their texts on the same prompts.

    Args:
      judgements: all judgements.
      groups: result of `groups_of`.
      written: system known to have written a text, by (prompt, text) with normalised white space.

    Returns:
      Two names per group; None if the file does not tell, or contradicts itself.
    """
    if all(all(judgement.systems) for judgement in judgements):
        return [judgements[rows[0]].systems for rows in groups]
    texts = [
        {
            (judgements[row].prompt.text, (judgements[row].first, judgements[row].second)[side])
            for row in rows
        }
        for rows in groups
        for side in (0, 1)
    ]
    # Sides are nodes 2 * group and 2 * group + 1 of a union-find, linked by texts in common.
    parent = list(range(len(texts)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    # Only sides that hold a text in common are compared: all pairs of sides would be many.
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
        # Relative to the smaller side, as groups of one system may cover unequal parts of prompts.
        if count >= _SHARED * min(len(texts[node]), len(texts[other])):
            parent[root(other)] = root(node)
            linked |= {node, other}
    # A system gets the name of its known texts, or a number within its data set.
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
        # A few known texts prove no writer, as two systems may write the same short text.
        known = best and votes[best] >= _SHARED * len(own)
        names[top] = best if known else f"{dataset} system {numbers[dataset]}".strip()
    # A group is left out if nothing links it to others, or both its sides seem to be one system.
    systems: list[tuple[str, str] | None] = []
    for place in range(len(groups)):
        first, second = 2 * place, 2 * place + 1
        identified = first in linked or second in linked
        pair = names[root(first)], names[root(second)]
        systems.append(pair if identified and pair[0] != pair[1] else None)
    return systems
