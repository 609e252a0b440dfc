"""Marked phrases of the texts on the page, and the true reasons that a text gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.data.readers.tables import TITLES, plain_name
from xrec_jax.evaluation.faithfulness.planted import agrees, planted_claims, world_vocabulary
from xrec_jax.evaluation.texts.grounding import Grounder, cell_values
from xrec_jax.text.claims.reader import read_claims

# What the page shows of the seven kinds that grounding tells apart.
KINDS = ("item", "history", "attribute", "past", "unsupported")
_SHOWN = {
    "item": "item",
    "history": "history",
    "history_attribute": "past",
    "item_attribute": "attribute",
    "catalogue": "unsupported",
    "unknown": "unsupported",
    "absent_attribute": "unsupported",
}
_LONGEST = 40  # characters; longer cells are descriptions, not values
_MOST_NUMBERS = 20  # different ones; more are measurements, not values that a text names


class Marker:
    """Marks what texts mention; built once for a page.

    Args:
      pairs: all of the page; their items and histories are the catalogue.
      titles: further titles of the catalogue, where they are known.
      rows: further rows of the item table.
    """

    def __init__(
        self,
        pairs: Sequence[Mapping[str, Any]],
        *,
        titles: Iterable[str] = (),
        rows: Iterable[Mapping[str, Any]] = (),
    ):
        known, seen = dict.fromkeys(titles), dict[str, Mapping[str, Any]]()
        for pair in pairs:
            known[str(pair.get("title") or pair["item"])] = None
            seen[str(pair["item"])] = pair.get("attributes") or {}
            for entry in pair.get("history") or ():
                known[entry["title"]] = None
                seen[str(entry["item"])] = entry.get("attributes") or {}
        values = vocabulary([*seen.values(), *rows])
        # A column that holds nothing but titles names items, whatever it is called.
        values = {column: own for column, own in values.items() if not known.keys() >= {*own}}
        self._grounder = Grounder(known, values)
        self._world = world_vocabulary() if any(p.get("planted") for p in pairs) else None

    def spans(self, text: str, pair: Mapping[str, Any]) -> list[tuple[int, int, str]]:
        """Start, end and kind (of `KINDS`) of every mention, in order, without overlaps."""
        history = pair.get("history")
        if history is None:  # nothing is known of what the prompt showed
            return []
        found = self._grounder.ground(
            text,
            item=str(pair.get("title") or ""),
            history=[e["title"] for e in history],
            item_attributes=pair.get("attributes") or {},
            history_attributes=[e.get("attributes") or {} for e in history],
        )
        return [(start, end, _SHOWN[kind]) for start, end, kind in found.highlights()]

    def named(self, text: str, pair: Mapping[str, Any]) -> list[int]:
        """Which of the planted reasons a text gives: places in those for, then those against."""
        planted = pair.get("planted")
        if not planted or self._world is None:
            return []
        claims = read_claims(text, self._world)
        sides = [(side, reason) for side in ("for", "against") for reason in planted[side]]
        given = []
        for place, (side, reason) in enumerate(sides):
            alone = {"for": [], "against": [], side: [reason]}
            [true] = planted_claims(alone)
            if any(agrees(claim, true) for claim in claims):
                given.append(place)
        return given


def vocabulary(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Columns and values that a text may name: short words, and numbers of which there are few."""
    found: dict[str, dict[str, None]] = {}
    numbers = set()
    for row in rows:
        for column, cell in row.items():
            if plain_name(column) in TITLES or column.endswith("_text"):
                continue
            if isinstance(cell, (int, float)):
                numbers.add(column)
            values = [value for value in cell_values(cell) if len(value) <= _LONGEST]
            found.setdefault(column, {}).update(dict.fromkeys(values))
    return {
        column: tuple(values)
        for column, values in found.items()
        if values and (column not in numbers or len(values) <= _MOST_NUMBERS)
    }
