"""Columns as numbers: which one plays which role, ids to rows, exact timestamps, faulty values."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data import options

ROLES = ("user", "item", "timestamp", "rating")
REQUIRED = ("user", "item")

# What a value must be: a non-empty id, a number finite as float32 or as float64, an ISO time.
Kind = Literal["id", "float32", "float64", "datetime"]

_DATETIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_LARGEST_EXACT_FLOAT = 2**53


@dataclasses.dataclass(frozen=True)
class Roles:
    """Names of the columns that hold the events; None where the file has no such column."""

    user: str
    item: str
    timestamp: str | None = None
    rating: str | None = None

    def named(self) -> dict[str, str]:
        """Returns role -> column for the roles that are present."""
        values = {role: getattr(self, role) for role in ROLES}
        return {role: name for role, name in values.items() if name is not None}


def resolve_roles(
    config: Any,
    names: Sequence[str],
    *,
    defaults: Mapping[str, Sequence[str]],
    path: pathlib.Path,
) -> Roles:
    """Chooses the column of each role.

    Args:
      config: the data config; `config.columns[role]` names a column, "" takes the first default
        that the file has.
      names: the file's columns.
      defaults: role -> names tried in order.
      path: the file, for messages.

    Raises:
      UserError: a named column is absent, a required role has none, or two roles share one.
    """
    columns = options.section(config, "columns", ROLES)
    chosen: dict[str, str] = {}
    for role in ROLES:
        asked = options.option(columns, role, "")
        if asked and asked not in names:
            raise UserError(
                f"{path}: no column {asked!r} (columns.{role}){did_you_mean(asked, names)}"
            )
        name = asked or next((name for name in defaults[role] if name in names), None)
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

    Canonical means that the text is what the integer prints as: "7", "-3", not "007" or "+7". The
    order depends on the set of ids alone, so rows are the same whatever the order of the events.
    """
    if not ids.str.contains("^(0|-?[1-9][0-9]*)$").all():
        return ids.sort()
    # Without leading zeros the longer number is the larger, whatever its size.
    frame = pl.DataFrame({"id": ids, "length": ids.str.len_bytes()}).sort("length", "id")
    negative = frame["id"].str.starts_with("-")
    return pl.concat([frame["id"].filter(negative).reverse(), frame["id"].filter(~negative)])


def encode_ids(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Maps ids to rows.

    Args:
      ids: `[n]` String without nulls.

    Returns:
      The distinct ids in the order of `order_ids`, `[num]` unicode, and `[n]` int32 rows into them.
    """
    distinct = order_ids(ids.unique())
    rows = ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)
    return np.array(distinct.to_list(), dtype=np.str_), rows


def exact_timestamps(values: pl.Series) -> np.ndarray:
    """Returns numbers or datetimes without loss: int64 if every one is an integer, else float64.

    Datetimes become microseconds since 1970 (UTC, also for those without a zone).

    Raises:
      pl.exceptions.PolarsError: an unsigned value exceeds int64.
    """
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")).to_physical().to_numpy()
    if values.dtype.is_integer():
        return values.cast(pl.Int64).to_numpy()
    numbers = values.cast(pl.Float64).to_numpy()
    exact = (np.trunc(numbers) == numbers) & (np.abs(numbers) <= _LARGEST_EXACT_FLOAT)
    return numbers.astype(np.int64) if exact.all() else numbers


def parse_datetimes(texts: pl.Series) -> pl.Series:
    """Reads ISO 8601 dates and times, with or without an offset from UTC; null where not one."""
    texts = texts.str.replace("T", " ", literal=True)
    parsed = pl.Series(texts.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(texts))
    for form in _DATETIME_FORMATS:
        for offset in ("", "%#z") if "%H" in form else ("",):
            if not parsed.null_count():
                return parsed
            zone = "UTC" if offset else None
            found = texts.str.strptime(pl.Datetime("us", zone), form + offset, strict=False)
            parsed = parsed.fill_null(found.dt.replace_time_zone(None))
    return parsed


def first_fault(texts: pl.Series, kind: Kind) -> int | None:
    """Returns the row of the first text that is not of `kind`, or None."""
    if kind == "id":
        faulty = texts.is_null() | (texts.str.strip_chars() == "")
    elif kind == "datetime":
        faulty = parse_datetimes(texts).is_null()
    else:
        dtype = pl.Float32 if kind == "float32" else pl.Float64
        values = texts.str.strip_chars_start().cast(dtype, strict=False)
        faulty = ~values.is_finite().fill_null(False)
    row = faulty.arg_max()
    return row if row is not None and faulty[row] else None


def has_faults(frame: pl.DataFrame) -> bool:
    """Whether any id is blank or any value missing or not finite."""
    checks = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        checks.append(column.is_null().any())
        if dtype == pl.String:
            checks.append((column.str.strip_chars() == "").any())
        elif dtype.is_float():
            checks.append((~column.is_finite()).any())
    return frame.select(pl.any_horizontal(checks)).item()


def describe_fault(text: str | None, kind: Kind) -> str:
    """Returns what is wrong with a value that `first_fault` found."""
    if kind == "id":
        return "the id is empty"
    if not text:
        return "the value is missing"
    shown = repr(text if len(text) <= 60 else text[:60] + "...")
    wanted = "an ISO date and time" if kind == "datetime" else "a finite number"
    return f"{shown} is not {wanted}"
