"""Reader of the events of one delimited file, as columns named after their roles."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.csvfile import other_separator
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import delimited, exact
from xrec_jax.data.readers.columns import Kind, Roles
from xrec_jax.data.readers.delimited import DelimitedFile

DEFAULT_COLUMNS: Mapping[str, Sequence[str]] = {
    "user": ("user_id", "user"),
    "item": ("item_id", "item"),
    "timestamp": ("timestamp",),
    "rating": ("rating",),
}

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DATE = re.compile(r"\s*[0-9]{4}-[0-9]")


def open_csv(path: pathlib.Path) -> DelimitedFile:
    """Opens a comma- or tab-separated file with a header, quotes as in RFC 4180.

    Raises:
      UserError: if another character separates the columns, or as `delimited.read_header` and
        `delimited.with_names`.
    """
    separator = ","
    names = delimited.read_header(path, separator, '"')
    if len(names) == 1 and "\t" in names[0]:
        separator = "\t"
        names = delimited.read_header(path, separator, '"')
    elif way_out := other_separator(names):
        raise UserError(f"{path}: line 1: {way_out}")
    return delimited.with_names(path, separator, '"', names)


def read_delimited_events(file: DelimitedFile, roles: Roles) -> pl.DataFrame:
    """Reads the columns of `roles` from a delimited file.

    Returns:
      Columns "user" and "item" (String) and, where present, "rating" (Float32) and "timestamp"
      (Int64, Float64 or Datetime).

    Raises:
      UserError: if a value is empty, not a number, not finite or not a time; names line and column.
    """
    dtypes: dict[str, type[pl.DataType]] = {roles.user: pl.String, roles.item: pl.String}
    kinds: dict[str, Kind] = {roles.user: "id", roles.item: "id"}
    if roles.rating:
        dtypes[roles.rating], kinds[roles.rating] = pl.Float64, "float32"
    # Fast typed reads first; only if none fits are the values read as text, to name the fault.
    failure = ""
    for kind, time_type in _timestamp_types(file, roles.timestamp):
        if roles.timestamp:
            dtypes[roles.timestamp], kinds[roles.timestamp] = time_type, kind
        try:
            frame = delimited.read_columns(file, dtypes)
        except pl.exceptions.PolarsError as error:
            failure = str(error).splitlines()[0]
            continue
        frame = frame.rename({name: role for role, name in roles.named().items()})
        if "rating" in frame.columns:
            frame = frame.with_columns(exact.as_rating(frame["rating"]))
        if "timestamp" in frame.columns and time_type == pl.String:
            # Times read as text are parsed here, without rounding.
            parse = exact.parse_datetimes if kind == "datetime" else exact.parse_numbers
            frame = frame.with_columns(parse(frame["timestamp"]))
        if all(columns_lib.first_gap(column) is None for column in frame.iter_columns()):
            return frame
    _raise_fault(file, kinds, failure)


def _timestamp_types(
    file: DelimitedFile, name: str | None
) -> Iterator[tuple[Kind, type[pl.DataType]]]:
    """Yields candidate types of the times, most exact first, judged by the first record."""
    first = delimited.first_record(file)
    if name is None or first is None:
        yield "float64", pl.Int64
        return
    text = first[file.names.index(name)]
    if _DATE.match(text):
        yield "datetime", pl.String
        return
    if _INTEGER.fullmatch(text):
        yield "float64", pl.Int64
    yield "float64", pl.String  # not Float64: Polars would round numbers that it cannot hold


def _raise_fault(file: DelimitedFile, kinds: Mapping[str, Kind], failure: str) -> NoReturn:
    texts = delimited.read_columns(file, dict.fromkeys(kinds, pl.String))
    faults = [(columns_lib.first_fault(texts[name], kind), name) for name, kind in kinds.items()]
    present = [(row, name) for row, name in faults if row is not None]
    if not present:
        raise UserError(f"{file.path}: cannot be read as a table ({failure})")
    row, name = min(present, key=lambda fault: fault[0])
    fault = columns_lib.describe_fault(texts[name][row], kinds[name])
    line = delimited.line_of(file, row)
    raise UserError(f"{file.path}: line {line}, column {name!r}: {fault}")
