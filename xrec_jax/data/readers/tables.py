"""Tables of users and items: read from CSV or Parquet, checked, aligned with the ids."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import delimited, events, parquet, written

# Column names taken as titles, in order of preference.
TITLES = ("name", "title", "movie_title")


@dataclasses.dataclass(frozen=True)
class Table:
    """Descriptions of users or items, one row each.

    Attributes:
      path: path of the file.
      ids: `[n]` String, distinct.
      features: `[n]` rows of all columns but the id.
    """

    path: pathlib.Path
    ids: pl.Series
    features: pl.DataFrame


def make_table(
    path: pathlib.Path, frame: pl.DataFrame, id_name: str, place: Callable[[int], str]
) -> Table:
    """Separates the id column from the features.

    Args:
      path: path of the file, for messages.
      frame: the whole table, with a String id column.
      id_name: name of the id column.
      place: maps a row to its place in the file, such as "line 7".

    Raises:
      UserError: if an id is empty, holds a NUL or is repeated.
    """
    ids = frame[id_name]
    row = columns_lib.first_fault(ids, "id")
    if row is not None:
        fault = columns_lib.describe_fault(ids[row], "id")
        raise UserError(f"{path}: {place(row)}, column {id_name!r}: {fault}")
    repeated = ~ids.is_first_distinct()
    if repeated.any():
        row = int(repeated.arg_max() or 0)
        first = int((ids == ids[row]).arg_max() or 0)
        raise UserError(
            f"{path}: {place(row)}, column {id_name!r}: {ids[row]!r} stands twice, "
            f"first on {place(first)}"
        )
    return Table(path, ids, frame.drop(id_name))


def read_table(path: pathlib.Path, format: str, id_names: Sequence[str], key: str) -> Table:
    """Reads a CSV or Parquet table.

    A CSV column becomes Int64 or Float64 if every non-empty value is a canonical number that the
    type holds, so "007", "1e3", "1.50" or 20 digits keep a column String; an empty value is null. A
    Parquet column is converted by `written.as_written`.

    Args:
      path: path of the file.
      format: "csv" or "parquet".
      id_names: candidate names of the id column, in order.
      key: config key of the id column, for messages.

    Raises:
      UserError: if the file is missing or corrupt, has no id column, or as `make_table` and
        `written.as_written`.
    """
    if format == "parquet":
        frame = parquet.read_parquet_table(path)
        id_name = id_column(path, frame.columns, id_names, key)
        ids = parquet.id_strings(frame[id_name], path)
        others = [
            written.as_written(frame[name], path) for name in frame.columns if name != id_name
        ]
        frame = pl.DataFrame([ids, *others])
        return make_table(path, frame, id_name, lambda row: f"row {row + 1}")
    file = events.open_csv(path)
    id_name = id_column(path, file.names, id_names, key)
    frame = read_texts(file)
    frame = frame.with_columns(
        written.infer(frame[name]) for name in frame.columns if name != id_name
    )
    return make_table(path, frame, id_name, lambda row: f"line {delimited.line_of(file, row)}")


def id_column(path: pathlib.Path, names: Sequence[str], tried: Sequence[str], key: str) -> str:
    """Returns the first of `tried` among `names`.

    Raises:
      UserError: if there is none.
    """
    for name in tried:
        if name in names:
            return name
    wanted = " or ".join(map(repr, tried))
    raise UserError(f"{path}: no column {wanted} ({key}){did_you_mean(tried[0], names)}")


def plain_name(column: str) -> str:
    """Normalised name of a column: "Movie Title" becomes "movie_title"."""
    return "_".join(column.lower().replace("-", " ").replace("_", " ").split())


def title_column(names: Sequence[str], configured: str = "") -> str | None:
    """Name of the title column of an item table.

    Args:
      names: columns of the table without its id.
      configured: the config's `columns.title`; "" selects the first of `TITLES`, ignoring case,
        with a preference for lower case.

    Returns:
      The name, or None if there is none.
    """
    if configured:
        if configured not in names:
            raise UserError(
                f"columns.title={configured!r} is no column of the item table beside its id"
                f"{did_you_mean(configured, names)}"
            )
        return configured
    for title in TITLES:
        alike = [name for name in names if plain_name(name) == title]
        if alike:
            return title if title in alike else alike[0]
    return None


def read_texts(file: delimited.DelimitedFile) -> pl.DataFrame:
    """Reads every column as String.

    Raises:
      UserError: as `delimited.read_columns`.
    """
    return delimited.read_columns(file, dict.fromkeys(file.names, pl.String))


def align(
    table: Table, ids: np.ndarray, known: np.ndarray, kind: str
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Reorders the rows of a table to those of the catalogue.

    Args:
      table: descriptions in file order.
      ids: `[n]` ids of the catalogue, after filtering.
      known: ids of all interactions, before filtering.
      kind: "user" or "item".

    Returns:
      `[n]` rows, null where the table has none, and the counts
      `{kind}s_without_interactions` (described, but not in the catalogue) and
      `{kind}s_without_description` (in the catalogue, but not described).

    Raises:
      UserError: if the table and the interactions have no id in common.
    """
    if not table.ids.is_in(pl.Series(known, dtype=pl.String).implode()).any():
        example = repr(table.ids[0]) if len(table.ids) else "none"
        raise UserError(
            f"{table.path}: no {kind} id is that of an interaction (here {example}, in the "
            f"interactions {str(known[0])!r}); wrong id column or another data set"
        )
    wanted = pl.Series(ids, dtype=pl.String)
    rows = pl.DataFrame({"id": table.ids, "row": np.arange(len(table.ids))})
    joined = pl.DataFrame({"id": wanted}).join(rows, on="id", how="left", maintain_order="left")
    described = len(ids) - joined["row"].null_count()
    counts = {
        f"{kind}s_without_interactions": len(table.ids) - described,
        f"{kind}s_without_description": len(ids) - described,
    }
    return table.features.select(pl.all().gather(joined["row"])), counts
