"""Small text layouts: literal text, `{field}` and `[[optional parts]]`.

A part in double square brackets is dropped if a field in it has no value, so that one layout serves
rows with missing values. Values are inserted verbatim: braces in a title are harmless.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean

_OPTIONAL = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Field:
    """A placeholder in a layout for the value of a column."""

    name: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a layout: literal texts and fields in order.

    Attributes:
      pieces: texts and fields.
      optional: drop the part if a field has no value.
    """

    pieces: tuple[str | Field, ...]
    optional: bool


@functools.lru_cache(maxsize=512)
def parse_layout(layout: str) -> tuple[Part, ...]:
    """Parses a layout into parts.

    Raises:
      UserError: for unbalanced braces, a field without a name or with a format, or a lone "[[".
    """
    # `split` keeps the groups, so the odd elements are the optional parts.
    texts = _OPTIONAL.split(layout)
    if any("[[" in text for text in texts):
        raise UserError(f'"[[" without its own "]]" in the layout {_short(layout)}')
    parts = []
    for index, text in enumerate(texts):
        pieces: list[str | Field] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if literal:
                    pieces.append(literal)
                if name is None:
                    continue
                if not name or spec or conversion:
                    raise ValueError("a field is a plain column name in braces")
                pieces.append(Field(name))
        except ValueError as error:
            raise UserError(f"wrong layout {_short(layout)}: {error}") from error
        if pieces:
            parts.append(Part(tuple(pieces), optional=index % 2 == 1))
    return tuple(parts)


def fields_of(layout: str) -> tuple[str, ...]:
    """Names of the fields of a layout, in order, without repetition."""
    pieces = [piece for part in parse_layout(layout) for piece in part.pieces]
    return tuple(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Field)))


def render(layout: str, value_of: Callable[[str], str | None], *, unknown: str) -> str:
    """Fills a layout.

    Args:
      layout: the layout.
      value_of: returns the text of a field, or None if it has no value.
      unknown: replaces a missing value outside an optional part.
    """
    texts = []
    for part in parse_layout(layout):
        values = [
            piece if isinstance(piece, str) else value_of(piece.name) for piece in part.pieces
        ]
        if part.optional and None in values:
            continue
        texts += [unknown if value is None else value for value in values]
    return "".join(texts)


def text_value(
    row: Mapping[str, Any],
    column: str,
    *,
    joiner: str = ", ",
    listed: str = "{list}",
    absent: Sequence[str] = (),
) -> str | None:
    """Text of a table cell.

    Args:
      row: a row of a table.
      column: name of the column.
      joiner: separator of the elements of a list.
      listed: layout of a list, with the field `list`.
      absent: texts that mean "no value".

    Returns:
      The text on one line; None for None, NaN, a blank text, an empty list, or one of `absent`.

    Raises:
        UserError: if the row has no such column.
    """
    if column not in row:
        raise UserError(f"no column {column!r}{did_you_mean(column, row)}")
    value = row[column]
    if value is None:
        return None
    if not isinstance(value, str):
        # Lists come as Python lists, NumPy arrays or polars Series, depending on who made the row.
        if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
            value = value.tolist()
        elif hasattr(value, "to_list"):
            value = value.to_list()
        if isinstance(value, (list, tuple)):
            members = [text for text in map(_scalar_text, value) if text and text.strip()]
            joined = joiner.join(members)
            value = render(listed, {"list": joined}.__getitem__, unknown="") if members else None
        else:
            value = _scalar_text(value)
    # A line break inside a title would look like the next line of the layout.
    value = None if value is None else re.sub(r"\s*[\r\n]+\s*", " ", value)
    return None if not value or not value.strip() or value in absent else value


def _scalar_text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "__float__") and hasattr(value, "is_integer"):  # Python and NumPy numbers
        if isinstance(value, numbers.Integral):  # a float could not hold all of its digits
            return str(int(value))
        number = float(value)
        if math.isnan(number):
            return None
        if math.isfinite(number) and number.is_integer():
            return str(int(number))
    return str(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
