"""Highlighted phrases of the texts on the page, and the true reasons that a text gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.data.readers.tables import TITLES, plain_name
from xrec_jax.evaluation.faithfulness.planted import agrees, planted_claims, world_vocabulary
from xrec_jax.evaluation.texts.grounding import Grounder, cell_values
from xrec_jax.text.claims.reader import read_claims

# Kinds of highlights; the seven kinds of grounding are merged to these.
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
_MOST_NUMBERS = 20  # distinct ones; more are measurements, not values that a text names


class Marker:
    """Finds mentions in texts; built once for a page.

    Args:
      pairs: all pairs of the page, whose items and histories form the catalogue.
      titles: further titles of the catalogue, if known.
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
        # A column of titles names items, whatever it is called, and would hide their mentions.
        values = {column: own for column, own in values.items() if not known.keys() >= {*own}}
        self._grounder = Grounder(known, values)
        self._world = world_vocabulary() if any(p.get("planted") for p in pairs) else None

    def spans(self, text: str, pair: Mapping[str, Any]) -> list[tuple[int, int, str]]:
        """Mentions as (start, end, kind of `KINDS`), in order and without overlaps."""
        history = pair.get("history")
        if history is None:  # the record does not say what the prompt showed
            return []
        grounding = self._grounder.ground(
            text,
            item=str(pair.get("title") or ""),
            history=[e["title"] for e in history],
            item_attributes=pair.get("attributes") or {},
            history_attributes=[e.get("attributes") or {} for e in history],
        )
        return [(start, end, _SHOWN[kind]) for start, end, kind in grounding.highlights()]

    def named(self, text: str, pair: Mapping[str, Any]) -> list[int]:
        """Indices of the planted reasons that a text gives, counting "for" before "against"."""
        planted = pair.get("planted")
        if not planted or self._world is None:
            return []
        claims = read_claims(text, self._world)
        sides = [(side, reason) for side in ("for", "against") for reason in planted[side]]
        named = []
        for place, (side, reason) in enumerate(sides):
            # One reason at a time: the set of all claims does not tell which reason each one is of.
            alone = {"for": [], "against": [], side: [reason]}
            [true] = planted_claims(alone)
            if any(agrees(claim, true) for claim in claims):
                named.append(place)
        return named


def vocabulary(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Values that a text may name, by column: short words, and numbers with few distinct values."""
    by_column: dict[str, dict[str, None]] = {}
    numbers = set()
    for row in rows:
        for column, cell in row.items():
            if plain_name(column) in TITLES or column.endswith("_text"):
                continue
            # One number makes the whole column numeric: many distinct ones are measurements.
            if isinstance(cell, (int, float)):
                numbers.add(column)
            values = [value for value in cell_values(cell) if len(value) <= _LONGEST]
            by_column.setdefault(column, {}).update(dict.fromkeys(values))
    return {
        column: tuple(values)
        for column, values in by_column.items()
        if values and (column not in numbers or len(values) <= _MOST_NUMBERS)
    }
