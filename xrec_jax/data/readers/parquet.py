"""Reader of Parquet files: events by role, and whole tables."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory, quiet
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import delimited, exact, pages
from xrec_jax.data.readers.columns import Kind, Roles


def read_parquet_events(path: pathlib.Path, roles: Roles) -> pl.DataFrame:
    """Reads the columns of `roles` from a Parquet file, in the form of `read_delimited_events`.

    Raises:
      UserError: if a column's type does not fit its role, or a value is missing or not finite;
        names the row, counted from 1.
    """
    frame = _scan_parquet(path, list(roles.named().values()))
    series = []
    for role, name in roles.named().items():
        values = frame[name]
        typed = _typed(path, values, role).alias(role)
        row = columns_lib.first_gap(typed)
        if row is not None:
            raise UserError(f"{path}: row {row + 1}, column {name!r}: {_fault(values, row, role)}")
        series.append(typed)
    return pl.DataFrame(series)


def _typed(path: pathlib.Path, values: pl.Series, role: str) -> pl.Series:
    """Converts a column to the type of its role; null if a value does not fit.

    Raises:
      UserError: if the column's type does not fit the role.
    """
    dtype = values.dtype
    if role in columns_lib.REQUIRED:
        return id_strings(values, path)
    if not len(values):  # a table without a row often has columns without a type
        return pl.Series(values.name, [], pl.Float32 if role == "rating" else pl.Int64)
    if role == "timestamp" and dtype == pl.String:
        return exact.parse_datetimes(values)
    if role == "timestamp" and dtype in (pl.Date, pl.Datetime):
        return exact.finest_unit(values)
    if not dtype.is_numeric():
        raise UserError(f"{path}: column {values.name!r} holds {dtype}, not numbers")
    if role == "rating":
        return exact.as_rating(values.cast(pl.Float64, strict=False))
    if dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    if dtype.is_decimal():
        # Decimals go through their text, so that no digit is rounded on the way.
        texts = values.cast(pl.String)
        integers = texts.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        return exact.parse_numbers(texts) if integers.null_count() else integers
    return values.cast(pl.Float64)


def _fault(values: pl.Series, row: int, role: str) -> str:
    """Describes a value that `_typed` made null or left infinite."""
    if values.is_null()[row]:
        return "the id is empty" if role in columns_lib.REQUIRED else "the value is missing"
    if values.dtype.is_temporal():
        return "the time is beyond what int64 reaches in microseconds"
    text = values.slice(row, 1).cast(pl.String)[0]
    if role == "timestamp" and values.dtype.is_integer():
        return f"{text} does not fit int64"
    kind: Kind = "id" if role in columns_lib.REQUIRED else "float64"
    if role == "rating":
        kind = "float32"
    elif values.dtype == pl.String and role == "timestamp":
        kind = "datetime"
    return columns_lib.describe_fault(text, kind)


def parquet_names(path: pathlib.Path) -> list[str]:
    """Returns the column names of a Parquet file.

    Raises:
      UserError: if the file is missing or not Parquet.
    """
    delimited.require_file(path)
    with readable(path):
        return list(pl.read_parquet_schema(path))


def id_strings(values: pl.Series, path: pathlib.Path) -> pl.Series:
    """Converts an id column to text.

    Raises:
      UserError: if it holds neither text nor integers; a float such as 7.0 has no unique text.
    """
    dtype = values.dtype
    if len(values) and not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise UserError(f"{path}: column {values.name!r} holds {dtype}, not ids (text or integers)")
    return values.cast(pl.String)


def read_parquet_table(path: pathlib.Path) -> pl.DataFrame:
    """Reads every column of a Parquet file.

    Raises:
      UserError: if the file is missing or corrupt.
    """
    return _scan_parquet(path, parquet_names(path))


def read_parquet_columns(path: pathlib.Path, names: Sequence[str]) -> pl.DataFrame:
    """Reads some columns of a Parquet file.

    Raises:
      UserError: if the file is missing or corrupt.
    """
    return _scan_parquet(path, names)


def _scan_parquet(path: pathlib.Path, names: Sequence[str]) -> pl.DataFrame:
    with readable(path):
        # Before Polars, which would end the process on a damaged page header.
        pages.check_pages(path, names)
        lazy = pl.scan_parquet(path, glob=False)
        rows = lazy.select(pl.len()).collect().item()
        # Polars keeps 16 bytes for a text and 8 for a number, and longer texts beside them.
        memory.require(8 * rows * len(names), f"{path}: {rows:,} rows")
        return lazy.select(names).collect()


@contextlib.contextmanager
def readable(path: object) -> Iterator[None]:
    """Turns Polars' errors and panics over a damaged file into one line.

    Raises:
      UserError: names the file and the reason.
    """
    try:
        with quiet.standard_error(unless=pl.exceptions.PanicException):
            yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from error
    except pl.exceptions.PanicException as error:
        raise UserError(f"{path}: not a readable Parquet file (its pages are damaged)") from error
