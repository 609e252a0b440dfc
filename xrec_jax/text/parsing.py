"""Prompts of published files read back into fields: the inverse of rendering."""

from __future__ import annotations

import dataclasses
import functools
import re

from xrec_jax.core.errors import UserError
from xrec_jax.text import layout as layouts
from xrec_jax.text.templates import Template


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The fields of a prompt, read back from its text; an absent optional field is None."""

    user: dict[str, str | None]
    item: dict[str, str | None]
    history: tuple[dict[str, str | None], ...]


def parse_prompt(template: Template, prompt: str) -> Parsed:
    """Reads a prompt back into fields: the inverse of rendering, for files of others' prompts.

    Raises:
      UserError: where the prompt does not follow the template.
    """
    slots = {
        # Whatever stands there: one pattern for all entries would take time exponential in their
        # number where a prompt does not match.
        "history": "(?P<history>(?s:.*?))",
        "item": f"(?P<item>{_renumber(layouts.pattern_of(template.item), 'item')})",
        "user": f"(?P<user>{_renumber(layouts.pattern_of(template.user), 'user')})",
    }
    whole = ""
    for part in layouts.parse_layout(template.body):
        for piece in part.pieces:
            whole += re.escape(piece) if isinstance(piece, str) else slots[piece.name]
    match = re.fullmatch(whole, prompt)
    if match is None:
        raise UserError(f"the prompt does not follow template {template.name!r}: {prompt[:60]!r}")

    def fields(text: str, slot: str) -> dict[str, str | None]:
        names = layouts.fields_of(text)
        return {name: match.group(f"{slot}{place}") for place, name in enumerate(names)}

    history: list[dict[str, str | None]] = []
    # Entry after entry, so that an entry's end is looked for from its own beginning.
    text, position = match.group("history"), 0
    while position < len(text) and text != template.no_history:
        pattern, names = _entry_pattern(template.entry, template.separator, len(history) + 1)
        found = pattern.match(text, position)
        if found is None or found.end() == position:
            raise UserError(f"the history does not follow {template.name!r}: {text[:60]!r}")
        history.append({name: found.group(f"f{place}") for place, name in enumerate(names)})
        position = found.end() + len(template.separator)
    return Parsed(
        user=fields(template.user, "user"),
        item=fields(template.item, "item"),
        history=tuple(history),
    )


@functools.lru_cache(maxsize=1024)
def _entry_pattern(
    entry: str, separator: str, index: int
) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern of the entry with a number, up to the next one, and its other fields."""
    own, following = (entry.replace("{index}", str(number)) for number in (index, index + 1))
    pattern = layouts.pattern_of(own)
    if separator:
        pattern += f"(?={re.escape(separator)}{_renumber(layouts.pattern_of(following), 'n')}|\\Z)"
    return re.compile(pattern), layouts.fields_of(own)


def _renumber(pattern: str, prefix: str) -> str:
    pattern = re.sub(r"\(\?P<f(\d+)>", rf"(?P<{prefix}\1>", pattern)
    return re.sub(r"\(\?P=f(\d+)\)", rf"(?P={prefix}\1)", pattern)
