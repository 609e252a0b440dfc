"""From files to a `Dataset`, and from a `Dataset` to a `Split`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.data import filters
from xrec_jax.data.dataset import Dataset, Interactions
from xrec_jax.data.readers import columns, exact, options, sources, tables
from xrec_jax.data.splits import split

__all__ = ["load", "split"]

_SOURCES = {
    "atomic": sources.atomic_source,
    "csv": sources.csv_source,
    "parquet": sources.parquet_source,
}


def load(config: Any) -> Dataset:
    """Reads, filters and indexes a data set.

    Rows of users and items follow `columns.order_ids` over the ids that stay after filtering,
    whatever the order of the events. Descriptions of other users and items are counted and left
    out.

    Args:
      config: attributes or keys, all but `format` and `path` optional:
        format: "atomic", "csv" or "parquet".
        path: a directory of atomic files; or a CSV or Parquet file, or a directory that holds a
          given split as train, valid and test files.
        name: of the data set; chooses among several atomic ones in a directory.
        columns: `user`, `item`, `timestamp`, `rating` -> column name; "" takes the usual name if
          present. `title` -> the column of the item table that names items, see
          `tables.title_column`.
        users, items: paths of CSV or Parquet tables; the id column is that of `columns`.
        filters: see `filters.select`.

    Returns:
      The data set. Its notes hold the counts of `filters.select` and `tables.align`; where the
      filters left no event of some, `users_dropped` and `items_dropped`; and, with a given split,
      `pairs_in_several_parts`: distinct user-item pairs that stand in more than one part.

    Raises:
      UserError: a file, a column, a value or a key of the config is wrong.
    """
    read = _SOURCES[options.choice(config, "format", "", _SOURCES)]
    source = read(config)
    settings = options.section(config, "filters", filters.KEYS)
    sizes = {part: len(frame) for part, frame in source.events.items()}
    if not sum(sizes.values()):
        raise UserError(f"{options.option(config, 'path', '')}: the files hold no events")
    events, user_ids, item_ids = _index(list(source.events.values()), config)
    source.events.clear()  # the text of the ids is no longer needed
    part = np.repeat(np.arange(len(sizes), dtype=np.int8), list(sizes.values()))

    rows, notes = filters.select(events, part, settings)
    if len(rows) < len(events):
        events, part = events.take(rows), part[rows]
    user, kept_users = _compact(events.user, user_ids)
    item, kept_items = _compact(events.item, item_ids)
    for kind, before, after in (("user", user_ids, kept_users), ("item", item_ids, kept_items)):
        if len(after) < len(before):
            notes[f"{kind}s_dropped"] = len(before) - len(after)
    events = dataclasses.replace(events, user=user, item=item)

    aligned: dict[str, pl.DataFrame | None] = {"user": None, "item": None}
    for kind, table, kept, known in (
        ("user", source.users, kept_users, user_ids),
        ("item", source.items, kept_items, item_ids),
    ):
        if table is not None:
            aligned[kind], counts = tables.align(table, kept, known, kind)
            notes |= counts
    parts = None
    if "" not in sizes:
        bounds = np.searchsorted(part, np.arange(len(sizes) + 1))
        parts = {
            name: _view(events, start, stop)
            for name, start, stop in zip(sizes, bounds[:-1], bounds[1:], strict=True)
        }
        notes["pairs_in_several_parts"] = _shared_pairs(events, part)
    asked = options.option(options.option(config, "columns", {}), "title", "")
    described = aligned["item"]
    if asked and described is None:
        raise UserError(f"columns.title={asked!r} needs an item table, and there is none")
    return Dataset(
        name=source.name,
        interactions=events,
        user_ids=kept_users,
        item_ids=kept_items,
        users=aligned["user"],
        items=aligned["item"],
        parts=parts,
        title=None if described is None else tables.title_column(described.columns, asked),
        notes=notes,
    )


def _index(frames: list[pl.DataFrame], config: Any) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Turns the columns of `readers` into arrays; empties `frames` to free their text early."""
    frame = pl.concat(frames, how="vertical_relaxed")
    frames.clear()
    path = options.option(config, "path", "")
    user_ids, user = columns.encode_ids(frame["user"], path)
    item_ids, item = columns.encode_ids(frame["item"], path)
    timestamp = rating = None
    if "timestamp" in frame.columns:
        timestamp = exact.exact_timestamps(frame["timestamp"])
    if "rating" in frame.columns:
        rating = frame["rating"].to_numpy()
    return Interactions(user, item, timestamp, rating), user_ids, item_ids


def _view(events: Interactions, start: int, stop: int) -> Interactions:
    """Returns a range of events without copying them."""
    timestamp, rating = events.timestamp, events.rating
    return Interactions(
        user=events.user[start:stop],
        item=events.item[start:stop],
        timestamp=None if timestamp is None else timestamp[start:stop],
        rating=None if rating is None else rating[start:stop],
    )


def _compact(rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumbers rows so that only the ids in use remain, in the same order."""
    used = np.bincount(rows, minlength=len(ids)) > 0
    if used.all():
        return rows, ids
    return (np.cumsum(used) - 1).astype(np.int32)[rows], ids[used]


def _shared_pairs(events: Interactions, part: np.ndarray) -> int:
    """Counts the distinct user-item pairs that occur in more than one part."""
    pair = events.user.astype(np.int64) * (int(events.item.max()) + 1) + events.item
    distinct = [np.unique(pair[part == which]) for which in np.unique(part)]
    _, occurrences = np.unique(np.concatenate(distinct), return_counts=True)
    return int((occurrences > 1).sum())
