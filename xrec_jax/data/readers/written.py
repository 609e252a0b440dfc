"""Column types of user and item tables: texts, integers, floats and lists of them.

Other Parquet types become text once, on reading, so that prompts, records and reports need no
special case for dates or decimals.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.data.readers import exact

# A CSV column of only these is numeric. A number that would not print as it is written, such as
# "007" or "1.50", keeps its column a text.
_INTEGER = "^(0|-?[1-9][0-9]*)$"
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.0|\.[0-9]*[1-9])?$"


def infer(texts: pl.Series) -> pl.Series:
    """Infers the type of a CSV column: Int64 or Float64 if that keeps every value, else String.

    An empty text is null.
    """
    values = texts.replace("", None)
    if values.null_count() == len(values):
        return values
    if values.str.contains(_INTEGER).all():
        numbers = values.cast(pl.Int64, strict=False)
    elif values.str.contains(_DECIMAL).all():
        numbers = exact.parse_numbers(values)
    else:
        return values
    return values if numbers.null_count() > values.null_count() else numbers


def as_written(values: pl.Series, path: pathlib.Path) -> pl.Series:
    """Converts a Parquet column to String, Boolean, an integer, Float64 or a list of them.

    A date becomes "2024-01-31", a time "10:30" or "10:30:05", both with a blank between, in the
    wall clock of the column's zone; of a column that is midnight throughout only the date stays. A
    decimal keeps its digits, a duration becomes "1h 30m". Bytes are text if they are UTF-8. Nulls
    stay null, and leave lists.

    Args:
      values: `[n]` column.
      path: path of the file, for messages.

    Raises:
      UserError: if the column nests deeper, or a value has no text; names the column and the row.
    """
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    nested = isinstance(values.dtype, pl.List)
    # Lists are judged by all their elements: the format of times must fit every one.
    flat = values.explode() if nested else values
    write = _writer(flat)
    if write is None:
        raise UserError(
            f"{path}: column {values.name!r} holds {values.dtype}, which no text can show; write "
            "texts, numbers, dates or lists of them, or leave the column out"
        )
    frame, column = values.to_frame(), pl.col(values.name)
    place = f"column {values.name!r}"
    if flat.dtype in (pl.Date, pl.Datetime):
        beyond = column.list.eval(_beyond(pl.element())).list.any() if nested else _beyond(column)
        row = frame.select(beyond.fill_null(False).arg_true().first()).item()
        if row is not None:
            raise UserError(f"{path}: row {row + 1}, {place}: a date outside the years 1 to 9999")
    text = column.list.eval(write(pl.element())).list.drop_nulls() if nested else write(column)
    try:
        return frame.select(text).to_series()
    # The whole column fails at once: look for the first row that cannot be converted.
    except pl.exceptions.PolarsError:
        row = next(row for row in range(len(frame)) if not _has_text(frame[row], text))
        where = f"{path}: row {row + 1}, {place}"
        raise UserError(f"{where}: bytes that are not UTF-8 text") from None


def _writer(flat: pl.Series) -> Callable[[pl.Expr], pl.Expr] | None:
    """Returns an expression that writes a value as text or number; None if there is no text."""
    dtype = flat.dtype
    if dtype in (pl.String, pl.Boolean, pl.Float64) or dtype.is_integer():
        return lambda value: value
    if dtype.is_float():  # the shortest text that means it: 0.1, not 0.10000000149011612
        return lambda value: value.cast(pl.String).cast(pl.Float64)
    if dtype.is_decimal() or dtype in (pl.Categorical, pl.Enum, pl.Binary, pl.Null):
        return lambda value: value.cast(pl.String)
    if dtype == pl.Duration:
        return lambda value: value.dt.to_string("polars")
    if dtype in (pl.Date, pl.Datetime, pl.Time):
        form = _time_format(flat)
        return lambda value: value.dt.strftime(form)
    return None


def _beyond(value: pl.Expr) -> pl.Expr:
    """True for dates that Polars cannot format."""
    return value.is_not_null() & ~value.dt.year().is_between(1, 9999).fill_null(False)


def _time_format(flat: pl.Series) -> str:
    """Shortest time format that keeps every value of a column of dates or times."""
    if flat.dtype == pl.Date:
        return "%Y-%m-%d"
    clock = flat.cast(pl.Time).to_physical()  # nanoseconds since midnight
    if flat.dtype == pl.Datetime and not (clock != 0).any():
        return "%Y-%m-%d"
    form = "%H:%M" if not (clock % 60_000_000_000 != 0).any() else "%H:%M:%S%.f"
    return form if flat.dtype == pl.Time else f"%Y-%m-%d {form}"


def _has_text(frame: pl.DataFrame, text: pl.Expr) -> bool:
    try:
        frame.select(text)
    except pl.exceptions.PolarsError:
        return False
    return True
