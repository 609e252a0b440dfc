"""Column roles, encoding of ids as rows, and detection of faulty values."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.runtime import memory
from xrec_jax.data.readers import exact, options

ROLES = ("user", "item", "timestamp", "rating")
REQUIRED = ("user", "item")

# Kinds of values: a non-empty id, a number that float32 or float64 holds exactly, an ISO time.
Kind = Literal["id", "float32", "float64", "datetime"]


@dataclasses.dataclass(frozen=True)
class Roles:
    """Column names by role; None for optional columns that the file lacks."""

    user: str
    item: str
    timestamp: str | None = None
    rating: str | None = None

    def named(self) -> dict[str, str]:
        """Returns role -> column for the roles that are present."""
        values = {role: getattr(self, role) for role in ROLES}
        return {role: name for role, name in values.items() if name is not None}


def resolve_roles(
    config: object,
    names: Sequence[str],
    *,
    defaults: Mapping[str, Sequence[str]],
    path: pathlib.Path,
) -> Roles:
    """Chooses the column of each role.

    Args:
      config: the data config; `config.columns[role]` names a column, "" selects the first default
        that the file has.
      names: columns of the file.
      defaults: names tried in order, by role.
      path: path of the file, for messages.

    Raises:
      UserError: if a named column is absent, a required role has none, or two roles share one.
    """
    columns = options.section(config, "columns", (*ROLES, "title"))
    chosen: dict[str, str] = {}
    for role in ROLES:
        configured = options.option(columns, role, "")
        if configured and configured not in names:
            raise UserError(
                f"{path}: no column {configured!r} (columns.{role})"
                f"{did_you_mean(configured, names)}"
            )
        # A configured name must exist; defaults are tried in order, and only ids are required.
        name = configured or next((name for name in defaults[role] if name in names), None)
        if name is None and role in REQUIRED:
            tried = " or ".join(map(repr, defaults[role]))
            raise UserError(
                f"{path}: no column {tried}, set columns.{role}"
                f"{did_you_mean(defaults[role][0], names)}"
            )
        if name is None:
            continue
        for other, taken in chosen.items():
            if taken == name:
                raise UserError(f"{path}: columns.{other} and columns.{role} both name {name!r}")
        chosen[role] = name
    return Roles(**chosen)


def order_ids(ids: pl.Series) -> pl.Series:
    """Sorts distinct ids: by number if each is a canonical integer, else by code point.

    Canonical means that the text equals the printed integer: "7", "-3", not "007" or "+7". The
    order depends on the set of ids alone, so rows do not depend on the order of events.
    """
    if not ids.str.contains("^(0|-?[1-9][0-9]*)$").all():
        return ids.sort()
    # Without leading zeros the longer number is the larger, whatever its size.
    frame = pl.DataFrame({"id": ids, "length": ids.str.len_bytes()}).sort("length", "id")
    # Among negative numbers the longer text is the smaller number, hence the reversal.
    negative = frame["id"].str.starts_with("-")
    return pl.concat([frame["id"].filter(negative).reverse(), frame["id"].filter(~negative)])


def encode_ids(ids: pl.Series, path: object) -> tuple[np.ndarray, np.ndarray]:
    """Maps ids to rows.

    Args:
      ids: `[n]` String without nulls.
      path: source file, for messages.

    Returns:
      Distinct ids in the order of `order_ids`, `[num]` unicode, and `[n]` int32 rows into them.

    Raises:
      UserError: if one long id would make the array exceed the memory.
    """
    distinct = order_ids(ids.unique())
    longest = cast(int, distinct.str.len_chars().max() or 0)
    # NumPy reserves the length of the longest id, 4 bytes a character, for every entry.
    what = f"{path}: {len(distinct):,} ids of up to {longest:,} characters"
    memory.require(4 * longest * len(distinct), what)
    rows = ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)
    return np.array(distinct.to_list(), dtype=np.str_), rows


def first_fault(texts: pl.Series, kind: Kind) -> int | None:
    """Returns the row of the first text that is not of `kind`, or None."""
    if kind == "id":
        faulty = texts.is_null() | ~is_id(texts)
    elif kind == "datetime":
        faulty = exact.parse_datetimes(texts).is_null()
    elif kind == "float64":
        faulty = exact.parse_numbers(texts).is_null()
    else:
        numbers = texts.str.strip_chars_start(" ").cast(pl.Float64, strict=False)
        faulty = exact.as_rating(numbers).is_null()
    row = faulty.arg_max()
    return row if row is not None and faulty[row] else None


def is_id(texts: pl.Series) -> pl.Series:
    """Marks valid ids: not blank, and without NUL, which NumPy would cut off."""
    return (texts.str.strip_chars() != "") & ~texts.str.contains("\0", literal=True)


def first_gap(values: pl.Series) -> int | None:
    """Returns the first row without a value, finite number or valid id, or None."""
    faulty = values.is_null()
    if values.dtype == pl.String:
        faulty |= ~is_id(values.fill_null(""))
    elif values.dtype.is_float():
        faulty |= ~values.is_finite().fill_null(False)
    row = faulty.arg_max()
    return row if row is not None and faulty[row] else None


def describe_fault(text: str | None, kind: Kind) -> str:
    """Describes a fault found by `first_fault`."""
    if kind == "id":
        return "the id holds a NUL character" if text and text.strip() else "the id is empty"
    if not text:
        return "the value is missing"
    shown = repr(text if len(text) <= 60 else text[:60] + "...")
    if kind == "datetime":
        # If the time parses without its fraction, precision or range is at fault.
        coarse = pl.Series([re.sub(exact.FRACTION, r"\1", text)])
        if not exact.parse_datetimes(coarse).null_count():
            return f"{shown} cannot be kept to the nanosecond (9 digits, years 1678 to 2261)"
        return f"{shown} is not an ISO date and time"
    if _is_finite(text):
        bits = 32 if kind == "float32" else 64
        way_out = "write whole numbers or fewer digits"
        return f"{shown} would become another number as a {bits}-bit float; {way_out}"
    return f"{shown} is not a finite number"


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text and text == text.rstrip()
    except ValueError:
        return False
