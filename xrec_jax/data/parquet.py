"""Parquet files: events by role, whole tables."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.data import columns as columns_lib
from xrec_jax.data import delimited
from xrec_jax.data.columns import Kind, Roles


def read_parquet_events(path: pathlib.Path, roles: Roles) -> pl.DataFrame:
    """Reads the columns of `roles` from a Parquet file; returns what `read_delimited_events` does.

    Raises:
      UserError: a column has a type that cannot play its role, or a value is missing or not finite;
        names the row, counted from 1.
    """
    frame = _scan_parquet(path, list(roles.named().values()))
    series = []
    for role, name in roles.named().items():
        values = frame[name]
        if role in columns_lib.REQUIRED:
            values = id_strings(values, path)
            kind: Kind = "id"
        elif role == "timestamp" and values.dtype == pl.String:
            kind = "datetime"
        elif values.dtype.is_numeric() or (role == "timestamp" and _is_moment(values.dtype)):
            kind = "float32" if role == "rating" else "float64"
        else:
            raise UserError(f"{path}: column {name!r} holds {values.dtype}, not numbers")
        typed = values
        if kind == "datetime":
            typed = columns_lib.parse_datetimes(values)
        elif kind == "float32":
            typed = values.cast(pl.Float32)
        elif values.dtype.is_temporal():
            # The physical value is UTC; without its zone it compares with a part that has none.
            typed = values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None)))
            typed = typed.to_physical().cast(pl.Datetime("us"))
        elif values.dtype.is_integer():
            typed = values.cast(pl.Int64, strict=False)
        typed = typed.alias(role)
        if columns_lib.has_faults(typed.to_frame()):
            texts = values.cast(pl.String)
            row = columns_lib.first_fault(texts, kind)
            if row is None:
                raise UserError(f"{path}: column {name!r} has a value that does not fit int64")
            fault = columns_lib.describe_fault(texts[row], kind)
            raise UserError(f"{path}: row {row + 1}, column {name!r}: {fault}")
        series.append(typed)
    return pl.DataFrame(series)


def parquet_names(path: pathlib.Path) -> list[str]:
    """Returns the column names of a Parquet file.

    Raises:
      UserError: the file is missing or not Parquet.
    """
    delimited.require_file(path)
    try:
        return list(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _corrupt(path, error) from error


def id_strings(values: pl.Series, path: pathlib.Path) -> pl.Series:
    """Returns an id column as text.

    Raises:
      UserError: it holds neither text nor integers; a float such as 7.0 has no one spelling.
    """
    dtype = values.dtype
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise UserError(f"{path}: column {values.name!r} holds {dtype}, not ids (text or integers)")
    return values.cast(pl.String)


def read_parquet_table(path: pathlib.Path) -> pl.DataFrame:
    """Reads every column of a Parquet file.

    Raises:
      UserError: the file is missing or corrupt.
    """
    return _scan_parquet(path, parquet_names(path))


def _scan_parquet(path: pathlib.Path, names: Sequence[str]) -> pl.DataFrame:
    try:
        return pl.scan_parquet(path, glob=False).select(names).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0]
    return UserError(f"{path}: not a readable Parquet file ({reason})")


def _is_moment(dtype: pl.DataType) -> bool:
    return dtype in (pl.Date, pl.Datetime)
