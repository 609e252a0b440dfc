"""Prompts of published files read back into fields: the inverse of rendering."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import layout as layouts
from xrec_jax.text.prompts import templates
from xrec_jax.text.prompts.matching import Pattern, Piece, Span, pieces_of
from xrec_jax.text.prompts.templates import Template


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The fields of a prompt, read back from its text; an absent optional field is None."""

    user: dict[str, str | None]
    item: dict[str, str | None]
    history: tuple[dict[str, str | None], ...]


def parse_prompt(template: Template, prompt: str) -> Parsed:
    """Reads a prompt back into fields: the inverse of rendering, for files of others' prompts.

    White space at both ends may be missing, or be more: files trim it. Time is linear in the length
    of the prompt.

    Raises:
      UserError: where the prompt does not follow the template.
    """
    found = _parsed(template, prompt)
    if found is None:
        # An entry's line end may be what was trimmed.
        bare = dataclasses.replace(template, body=template.body.strip())
        text = prompt.strip()
        found = next(filter(None, (_parsed(bare, text + end) for end in ("", "\n"))), None)
    if found is None:
        raise UserError(f"the prompt does not follow template {template.name!r}: {prompt[:60]!r}")
    return found


def read_prompt(prompt: str) -> tuple[Template, Parsed] | None:
    """The registered template that a prompt follows, and what it was filled with; None for none."""
    for name in templates.names():
        try:
            return templates.get(name), parse_prompt(templates.get(name), prompt)
        except UserError:
            continue
    return None


def _parsed(template: Template, prompt: str) -> Parsed | None:
    found = _whole_pattern(template.body, template.item, template.user).match(prompt)
    if found is None:
        return None
    history = _entries(template, prompt[slice(*found["history"])])
    if history is None:
        return None

    def fields(layout: str, slot: str) -> dict[str, str | None]:
        return _texts(prompt, found, layout, f"{slot} ")

    return Parsed(fields(template.user, "user"), fields(template.item, "item"), history)


def _entries(template: Template, text: str) -> tuple[dict[str, str | None], ...] | None:
    """The entries of a history; None where it does not follow the template."""
    history: list[dict[str, str | None]] = []
    position = 0
    # Entry after entry, so that an entry's end is looked for from its own beginning.
    while position < len(text) and text != template.no_history:
        pattern = _entry_pattern(template.entry, template.separator, len(history) + 1)
        found = pattern.match(text, position)
        if found is None or found["behind"][0] == position:
            return None
        layout = template.entry.replace("{index}", "")
        history.append(_texts(text, found, layout, ""))
        position = found["behind"][0] + len(template.separator)
    return tuple(history)


def _texts(text: str, found: Mapping[str, Span], layout: str, prefix: str) -> dict[str, str | None]:
    names = layouts.fields_of(layout)
    return {
        name: text[slice(*found[prefix + name])] if prefix + name in found else None
        for name in names
    }


@functools.lru_cache(maxsize=256)
def _whole_pattern(body: str, item: str, user: str) -> Pattern:
    pieces: list[Piece] = []
    for part in layouts.parse_layout(body):
        for piece in part.pieces:
            if isinstance(piece, str):
                pieces.append(Piece("text", piece))
            elif piece.name == "history":
                # Whatever stands there: its entries are read one by one.
                pieces.append(Piece("lines", group="history"))
            else:
                layout = {"item": item, "user": user}[piece.name]
                pieces += pieces_of(layout, f"{piece.name} ", first=len(pieces))
    return Pattern([*pieces, Piece("end")])


@functools.lru_cache(maxsize=1024)
def _entry_pattern(entry: str, separator: str, index: int) -> Pattern:
    """The entry with a number, up to the next one or the end where something separates them."""
    own, following = (entry.replace("{index}", str(number)) for number in (index, index + 1))
    pieces = (*pieces_of(own), Piece("mark", group="behind"))
    if not separator:
        return Pattern(pieces)
    start = len(pieces) + 2
    following_pieces = pieces_of(following, "next ", first=start)
    behind = start + len(following_pieces) + 1
    return Pattern(
        [
            *pieces,
            Piece("optional", skip=behind),
            Piece("text", separator),
            *following_pieces,
            Piece("stop"),
            Piece("end"),
        ]
    )
