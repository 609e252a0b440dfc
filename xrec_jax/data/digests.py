"""Digests of files, ids, descriptions and events, independent of how they are stored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions

_BLOCK = 1 << 22


def of_file(path: epath.PathLike) -> str:
    """SHA-256 of a file's bytes.

    Raises:
      UserError: if it cannot be read.
    """
    content = hashlib.sha256()
    try:
        with epath.Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return content.hexdigest()


def of_ids(ids: np.ndarray, table: pl.DataFrame | None) -> dict[str, Any]:
    """`count` and `sha256` of ids in order, and `table`, the digest of their descriptions.

    Args:
      ids: `[n]` unicode.
      table: `[n]` rows, or None, whose digest is None.
    """
    content = hashlib.sha256()
    _update(content, ids)
    described = None if table is None else of_table(table)
    return {"count": len(ids), "sha256": content.hexdigest(), "table": described}


def of_table(table: pl.DataFrame) -> str:
    """SHA-256 of the column names and values of a table, independent of physical types."""
    content = hashlib.sha256()
    for column in table.iter_columns():
        content.update(f"{len(column.name)} {column.name} {len(column)}".encode())
        _update_column(content, column)
    return content.hexdigest()


def of_vectors(values: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    """`width` and `sha256` of vectors `[items, width]`, `present` of which are there."""
    content = hashlib.sha256()
    _update(content, values, present)
    return {"width": values.shape[1], "sha256": content.hexdigest()}


def of_events(events: Interactions) -> dict[str, Any]:
    """Number of `events`, and SHA-256 of their `pairs` of rows and of `values`: times, ratings."""
    pairs, values = hashlib.sha256(), hashlib.sha256()
    _update(pairs, events.user, events.item)
    for array in (events.timestamp, events.rating):
        _update(values, np.zeros(0) if array is None else array)
    return {"events": len(events), "pairs": pairs.hexdigest(), "values": values.hexdigest()}


def _update(content: hashlib._Hash, *arrays: np.ndarray) -> None:
    for array in arrays:
        content.update(f"{array.dtype.str}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())


def _update_column(content: hashlib._Hash, column: pl.Series) -> None:
    """Adds the logical values of a column: nulls, list lengths, numbers, text."""
    dtype = column.dtype
    _update(content, column.is_null().to_numpy())
    if isinstance(dtype, (pl.List, pl.Array)):
        # Lengths keep [[1], [2]] and [[1, 2]] apart, whose exploded values are equal.
        column = column.cast(pl.List(dtype.inner))
        _update(content, column.list.len().fill_null(0).to_numpy())
        _update_column(content, column.explode())
    elif isinstance(dtype, pl.Struct):
        for field in column.struct.fields:
            _update_column(content, column.struct.field(field))
    elif dtype.is_integer() or dtype.is_float():
        _update(content, column.fill_null(0).to_numpy())
    elif dtype.is_temporal():
        _update(content, column.to_physical().fill_null(0).to_numpy())
    else:
        texts = column.bin.encode("hex") if dtype == pl.Binary else column.cast(pl.String)
        texts = texts.fill_null("")
        _update(content, texts.str.len_bytes().to_numpy())
        content.update("".join(texts.to_list()).encode())
