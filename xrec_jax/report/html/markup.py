"""Markup that is safe by construction: text is escaped unless it is `Html` already.

All content from a run (names, titles, texts, numbers) passes through `tag`, so a title such as
`<script>` can never become an element.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"br", "hr", "input", "link", "meta"})


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Converts a value to markup: `Html` is unchanged, other text gets `&<>"'` escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Joins parts, each escaped unless it is markup; None is skipped."""
    return Html(separator.join(escape(part) for part in parts if part is not None))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Builds an element.

    Args:
      name: name of the element.
      *children: text or markup; None is skipped.
      **attributes: a trailing underscore is dropped, others become hyphens (`class_`,
        `aria_label`); None and False omit an attribute, True gives it no value.
    """
    written = []
    for key, value in attributes.items():
        # False leaves the attribute out: `hidden="False"` would still hide the element.
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Html(start if name in _VOID else f"{start}{join(children)}</{name}>")


def table(
    header: Iterable[object], rows: Iterable[Iterable[object]], *, caption: str, class_: str = ""
) -> Html:
    """Builds a table with row headers, in a box that scrolls sideways.

    Args:
      header: cells of the head.
      rows: cells of each row, of which the first is its header.
      caption: caption for screen readers.
      class_: further classes of the table.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = []
    for row in rows:
        first, *rest = row
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="hidden"),
            tag("thead", head),
            tag("tbody", *body),
            class_=class_ or None,
        ),
        class_="scroll",
        # A box that scrolls must take the focus, or it cannot be scrolled by keyboard.
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def embedded_json(value: Any) -> Html:
    """JSON for a `<script>` element, which no text in it can end.

    `<`, `>` and `&` are written as escapes, which JSON reads back as the same characters; so are
    the two line separators that older scripts reject inside a string.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)
