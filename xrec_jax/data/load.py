"""Loads a `Dataset` from the files of a data config."""

from __future__ import annotations

import dataclasses

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


def load(config: object) -> Dataset:
    """Reads, filters and indexes a data set.

    Rows of users and items follow `columns.order_ids` over the ids that remain after filtering,
    independent of the order of events. Descriptions of other users and items are counted and
    dropped.

    Args:
      config: attributes or keys, all but `format` and `path` optional:
        format: "atomic", "csv" or "parquet".
        path: a directory of atomic files; or a CSV or Parquet file, or a directory with a given
          split as train, valid and test files.
        name: name of the data set; chooses among several atomic ones in a directory.
        columns: `user`, `item`, `timestamp`, `rating` -> column name; "" for the default name if
          present. `title` -> the column of the item table with titles, see `tables.title_column`.
        users, items: paths of CSV or Parquet tables; the id column is that of `columns`.
        filters: see `filters.select`.

    Returns:
      The data set. Its notes hold the counts of `filters.select` and `tables.align`;
      `users_dropped` and `items_dropped`, if the filters removed all events of some; and, with a
      given split, `pairs_in_several_parts`: distinct user-item pairs in more than one split.

    Raises:
      UserError: if a file, column, value or config key is invalid.
    """
    read = _SOURCES[options.choice(config, "format", "", _SOURCES)]
    source = read(config)
    settings = options.section(config, "filters", filters.KEYS)
    sizes = {name: len(frame) for name, frame in source.events.items()}
    if not sum(sizes.values()):
        raise UserError(f"{options.option(config, 'path', '')}: the files hold no events")
    events, user_ids, item_ids = _index(list(source.events.values()), config)
    source.events.clear()  # frees the text of the ids
    split_index = np.repeat(np.arange(len(sizes), dtype=np.int8), list(sizes.values()))

    # Filter events, then renumber users and items, so that only ids in use have a row.
    rows, notes = filters.select(events, split_index, settings)
    if len(rows) < len(events):
        events, split_index = events.take(rows), split_index[rows]
    user, kept_users = _compact(events.user, user_ids)
    item, kept_items = _compact(events.item, item_ids)
    for kind, before, after in (("user", user_ids, kept_users), ("item", item_ids, kept_items)):
        if len(after) < len(before):
            notes[f"{kind}s_dropped"] = len(before) - len(after)
    events = dataclasses.replace(events, user=user, item=item)

    # Descriptions are joined after filtering, to the final rows.
    aligned: dict[str, pl.DataFrame | None] = {"user": None, "item": None}
    for kind, table, kept, known in (
        ("user", source.users, kept_users, user_ids),
        ("item", source.items, kept_items, item_ids),
    ):
        if table is not None:
            aligned[kind], counts = tables.align(table, kept, known, kind)
            notes |= counts
    splits = None
    # Events of all splits were concatenated in order, so each split is a range of the filtered
    # rows.
    if "" not in sizes:
        bounds = np.searchsorted(split_index, np.arange(len(sizes) + 1))
        splits = {
            name: _view(events, start, stop)
            for name, start, stop in zip(sizes, bounds[:-1], bounds[1:], strict=True)
        }
        notes["pairs_in_several_parts"] = _shared_pairs(events, split_index)
    title = options.option(options.option(config, "columns", {}), "title", "")
    described = aligned["item"]
    if title and described is None:
        raise UserError(f"columns.title={title!r} needs an item table, and there is none")
    return Dataset(
        name=source.name,
        interactions=events,
        user_ids=kept_users,
        item_ids=kept_items,
        users=aligned["user"],
        items=aligned["item"],
        splits=splits,
        title=None if described is None else tables.title_column(described.columns, title),
        notes=notes,
    )


def _index(
    frames: list[pl.DataFrame], config: object
) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Converts event columns to arrays; empties `frames` to free their text early."""
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


def _shared_pairs(events: Interactions, split: np.ndarray) -> int:
    """Counts the distinct user-item pairs that occur in more than one split."""
    pair = events.user.astype(np.int64) * (int(events.item.max()) + 1) + events.item
    distinct = [np.unique(pair[split == which]) for which in np.unique(split)]
    _, occurrences = np.unique(np.concatenate(distinct), return_counts=True)
    return int((occurrences > 1).sum())
