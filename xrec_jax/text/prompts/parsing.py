"""Parser of prompts back into fields: the inverse of rendering."""

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
    """Fields of a prompt, parsed from its text; an absent optional field is None."""

    user: dict[str, str | None]
    item: dict[str, str | None]
    history: tuple[dict[str, str | None], ...]


def parse_prompt(template: Template, prompt: str) -> Parsed:
    """Parses a prompt into its fields: the inverse of rendering, for published files of prompts.

    White space at both ends is ignored, since files trim it. Time is linear in the length of the
    prompt.

    Raises:
      UserError: if the prompt does not follow the template.
    """
    parsed = _parsed(template, prompt)
    if parsed is None:
        # The trimmed white space may be the line end of the last entry.
        bare = dataclasses.replace(template, body=template.body.strip())
        text = prompt.strip()
        parsed = next(filter(None, (_parsed(bare, text + end) for end in ("", "\n"))), None)
    if parsed is None:
        raise UserError(f"the prompt does not follow template {template.name!r}: {prompt[:60]!r}")
    return parsed


def read_prompt(prompt: str) -> tuple[Template, Parsed] | None:
    """Finds the registered template of a prompt, and its fields; None if there is none."""
    for name in templates.names():
        try:
            return templates.get(name), parse_prompt(templates.get(name), prompt)
        except UserError:
            continue
    return None


def _parsed(template: Template, prompt: str) -> Parsed | None:
    spans = _prompt_pattern(template.body, template.item, template.user).match(prompt)
    if spans is None:
        return None
    history = _entries(template, prompt[slice(*spans["history"])])
    if history is None:
        return None

    def fields(layout: str, slot: str) -> dict[str, str | None]:
        return _texts(prompt, spans, layout, f"{slot} ")

    return Parsed(fields(template.user, "user"), fields(template.item, "item"), history)


def _entries(template: Template, text: str) -> tuple[dict[str, str | None], ...] | None:
    """Parses the entries of a history; None if it does not follow the template."""
    history: list[dict[str, str | None]] = []
    position = 0
    # Entry by entry, so that the search for the end of an entry begins at its own start.
    while position < len(text) and text != template.no_history:
        pattern = _entry_pattern(template.entry, template.separator, len(history) + 1)
        spans = pattern.match(text, position)
        if spans is None or spans["behind"][0] == position:
            return None
        layout = template.entry.replace("{index}", "")
        history.append(_texts(text, spans, layout, ""))
        position = spans["behind"][0] + len(template.separator)
    return tuple(history)


def _texts(text: str, spans: Mapping[str, Span], layout: str, prefix: str) -> dict[str, str | None]:
    names = layouts.fields_of(layout)
    return {
        name: text[slice(*spans[prefix + name])] if prefix + name in spans else None
        for name in names
    }


@functools.lru_cache(maxsize=256)
def _prompt_pattern(body: str, item: str, user: str) -> Pattern:
    pieces: list[Piece] = []
    for part in layouts.parse_layout(body):
        for piece in part.pieces:
            if isinstance(piece, str):
                pieces.append(Piece("text", piece))
            elif piece.name == "history":
                # Any text: its entries are parsed one by one afterwards.
                pieces.append(Piece("lines", group="history"))
            else:
                layout = {"item": item, "user": user}[piece.name]
                pieces += pieces_of(layout, f"{piece.name} ", first=len(pieces))
    return Pattern([*pieces, Piece("end")])


@functools.lru_cache(maxsize=1024)
def _entry_pattern(entry: str, separator: str, index: int) -> Pattern:
    """Pattern of a numbered entry, up to the next one or the end if there is a separator."""
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
