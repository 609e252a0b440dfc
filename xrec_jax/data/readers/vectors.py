"""Reader of vectors of items, one a row, such as encodings of their texts."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory
from xrec_jax.data.readers import parquet, tables

COLUMN = "vector"


class ItemVectors(NamedTuple):
    """Vectors of the items of a data set.

    Attributes:
      values: `[num_items, width]` float32, zeros where the file has none.
      present: `[num_items]` bool, whether the file has one.
    """

    values: np.ndarray
    present: np.ndarray


def read_vectors(path: pathlib.Path, ids: np.ndarray, id_names: Sequence[str]) -> ItemVectors:
    """Reads a Parquet file with an id column and `vector`, lists of numbers of one length.

    Args:
      path: path of the file.
      ids: `[num_items]` ids of the catalogue.
      id_names: candidate names of the id column, in order.

    Raises:
      UserError: if the file cannot be read, a column is missing, an id is empty or repeated, no id
        is in the catalogue, or a vector is missing, of another length or not finite; names the row.
    """
    names = parquet.parquet_names(path)
    if COLUMN not in names:
        raise UserError(f"{path}: no column {COLUMN!r} (it has {', '.join(names)})")
    id_name = tables.id_column(path, names, id_names, "columns.item")
    frame = parquet.read_parquet_columns(path, [id_name, COLUMN])
    both = pl.DataFrame([parquet.id_strings(frame[id_name], path), frame[COLUMN]])
    identifiers = tables.make_table(path, both, id_name, lambda row: f"row {row + 1}").ids
    matrix = _matrix(path, frame[COLUMN])

    # To the rows of the catalogue.
    wanted = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
    known = pl.DataFrame({"id": identifiers, "row": np.arange(len(identifiers))})
    found = wanted.join(known, on="id", how="left", maintain_order="left")["row"]
    present = found.is_not_null().to_numpy()
    if not present.any():
        raise UserError(
            f"{path}: no item id is that of the data (here {identifiers[0]!r}, in the data "
            f"{str(ids[0])!r}); wrong id column or another data set"
        )
    values = matrix[found.fill_null(0).to_numpy()]
    values[~present] = 0.0
    return ItemVectors(values, present)


def _matrix(path: pathlib.Path, vectors: pl.Series) -> np.ndarray:
    """The vectors as float32 `[rows, width]`."""
    inner = getattr(vectors.dtype, "inner", None)
    if inner is None or not inner.is_numeric():
        raise UserError(f"{path}: column {COLUMN!r} holds {vectors.dtype}, not lists of numbers")
    if not len(vectors):
        raise UserError(f"{path}: holds no vector")
    lists = vectors.cast(pl.List(pl.Float32))
    lengths = lists.list.len().fill_null(0).to_numpy()
    width = int(lengths[0])
    if not width:
        raise UserError(f"{path}: row 1: no vector; leave out items that have none")
    # Gathered, whitened in float64 and twice copied on the way.
    memory.require(32 * len(vectors) * width, f"{path}: {len(vectors):,} vectors of {width}")
    wrong = np.flatnonzero(lengths != width)
    if len(wrong):
        raise UserError(
            f"{path}: row {wrong[0] + 1}: a vector of {lengths[wrong[0]]} numbers, but that of row "
            f"1 has {width}; all must have the same number"
        )
    matrix = lists.explode().to_numpy().reshape(-1, width)
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise UserError(f"{path}: row {broken[0] + 1}: a vector with NaN, infinity or a gap")
    return matrix
