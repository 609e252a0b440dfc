"""Finds and opens the files of a data config, one function a format."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.readers import atomic, delimited, exact, options, parquet, tables, vectors
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import events as readers
from xrec_jax.data.readers.columns import Roles

_SUFFIXES = {"csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"), "parquet": (".parquet",)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Events and descriptions read from files.

    Attributes:
      name: name of the data set.
      events: events in file order by split, as `readers` return them; the only key is "" without a
        given split.
      users: descriptions of users, or None.
      items: descriptions of items, or None.
    """

    name: str
    events: dict[str, pl.DataFrame]
    users: tables.Table | None
    items: tables.Table | None


def atomic_source(config: object) -> Source:
    """Reads atomic files; `config.path` is their directory."""
    paths = atomic.find_files(_path(config), options.option(config, "name", ""))
    opened = {split: atomic.open_atomic(path) for split, path in paths.events.items()}
    first, *others = opened.values()
    defaults = {role: names[:1] for role, names in readers.DEFAULT_COLUMNS.items()}
    roles = columns_lib.resolve_roles(
        config, first.file.names, defaults=defaults, path=first.file.path
    )
    for file in (first, *others):
        _require_columns(file.file.path, file.file.names, roles, first.file.path)
        atomic.require_types(file, roles)
    return Source(
        name=paths.name,
        events=_read(
            {split: file.file.path for split, file in opened.items()},
            lambda split, _: readers.read_delimited_events(opened[split].file, roles),
        ),
        users=atomic.read_optional_table(paths.users, roles.user, "columns.user"),
        items=atomic.read_optional_table(paths.items, roles.item, "columns.item"),
    )


def csv_source(config: object) -> Source:
    """Reads comma- or tab-separated files; `config.path` is one, or a directory with splits."""
    paths = _event_paths(_path(config), "csv")
    opened = {split: readers.open_csv(path) for split, path in paths.items()}
    names = {split: file.names for split, file in opened.items()}
    roles = _shared_roles(config, paths, names)
    events = _read(paths, lambda split, _: readers.read_delimited_events(opened[split], roles))
    return _with_tables(config, events, roles)


def parquet_source(config: object) -> Source:
    """Reads Parquet files; `config.path` is one, or a directory with splits."""
    paths = _event_paths(_path(config), "parquet")
    names = {split: parquet.parquet_names(path) for split, path in paths.items()}
    roles = _shared_roles(config, paths, names)
    events = _read(paths, lambda _, path: parquet.read_parquet_events(path, roles))
    return _with_tables(config, events, roles)


def data_files(config: object) -> dict[str, pathlib.Path]:
    """Finds the files of a data config, without opening them.

    Returns:
      File by role: "events", or "events.SPLIT" for each given split; "users" and "items" if there
      are tables. Empty for formats that read no file.

    Raises:
      UserError: if files are missing or ambiguous.
    """
    format = options.option(config, "format", "")
    path = options.option(config, "item_vectors", "")
    described = {"item_vectors": delimited.require_file(pathlib.Path(path))} if path else {}
    if format == "atomic":
        paths = atomic.find_files(_path(config), options.option(config, "name", ""))
        events = paths.events
        tables_found = {"users": paths.users, "items": paths.items}
    elif format in _SUFFIXES:
        events = _event_paths(_path(config), format)
        named = {key: options.option(config, key, "") for key in ("users", "items")}
        tables_found = {
            key: delimited.require_file(pathlib.Path(path)) if path else None
            for key, path in named.items()
        }
    else:
        return described
    files = {f"events.{split}" if split else "events": path for split, path in events.items()}
    found = {key: path for key, path in tables_found.items() if path is not None}
    return files | found | described


def item_vectors(config: object, ids: np.ndarray) -> vectors.ItemVectors | None:
    """Reads the file that `item_vectors` of a data config names; None if it names none.

    Args:
      config: data config.
      ids: `[num_items]` ids of the catalogue.

    Raises:
      UserError: see `vectors.read_vectors`.
    """
    path = options.option(config, "item_vectors", "")
    if not path:
        return None
    configured = options.option(options.option(config, "columns", {}), "item", "")
    names = (configured,) if configured else ()
    return vectors.read_vectors(pathlib.Path(path), ids, (*names, *readers.DEFAULT_COLUMNS["item"]))


def _path(config: object) -> pathlib.Path:
    path = options.option(config, "path", "")
    if not path:
        raise UserError("path is not set; it names the file or directory of the interactions")
    return pathlib.Path(path)


def _event_paths(path: pathlib.Path, format: str) -> dict[str, pathlib.Path]:
    """Returns {"": file}, or the file of each split for a directory."""
    if not path.is_dir():
        return {"": delimited.require_file(path)}
    paths = {}
    for split in atomic.SPLITS:
        existing = [
            path / (split + end) for end in _SUFFIXES[format] if (path / (split + end)).exists()
        ]
        if len(existing) > 1:
            raise UserError(f"{path}: both {existing[0].name} and {existing[1].name}; keep one")
        if existing:
            paths[split] = existing[0]
    if not paths:
        wanted = f"train{_SUFFIXES[format][0]}"
        near = did_you_mean(wanted, sorted(file.name for file in path.iterdir()))
        raise UserError(f"{path}: the directory has no {wanted}, valid or test file{near}")
    ends = tuple(end for suffixes in _SUFFIXES.values() for end in suffixes)
    others = {
        file.name[: -len(end)]: file.name
        for file in sorted(path.iterdir())
        for end in ends
        if file.name.lower().endswith(end)
    }
    atomic.refuse_other_names(path, paths, others, " or ".join(_SUFFIXES[format]))
    return paths


def _shared_roles(
    config: object, paths: Mapping[str, pathlib.Path], names: Mapping[str, Sequence[str]]
) -> Roles:
    """Resolves the roles on the first file; the other splits must have the same columns."""
    first = next(iter(paths))
    roles = columns_lib.resolve_roles(
        config, names[first], defaults=readers.DEFAULT_COLUMNS, path=paths[first]
    )
    for split, path in paths.items():
        _require_columns(path, names[split], roles, paths[first])
    return roles


def _require_columns(
    path: pathlib.Path, names: Sequence[str], roles: Roles, first: pathlib.Path
) -> None:
    for name in roles.named().values():
        if name not in names:
            near = did_you_mean(name, names)
            raise UserError(f"{path}: no column {name!r}, which {first.name} has{near}")


def _read(
    paths: Mapping[str, pathlib.Path], read: Callable[[str, pathlib.Path], pl.DataFrame]
) -> dict[str, pl.DataFrame]:
    """Reads every split; their timestamps must all be numbers or all be dates."""
    events: dict[str, pl.DataFrame] = {}
    for split, path in paths.items():
        events[split] = frame = read(split, path)
        if "timestamp" not in frame.columns:
            continue
        # The times of a split without events have no type, so it is not compared.
        first = next((split for split, frame in events.items() if len(frame)), split)
        kinds = [events[p]["timestamp"].dtype.is_temporal() for p in (first, split)]
        if kinds[0] != kinds[1] and len(frame):
            raise UserError(
                f"{path}: timestamps are numbers or dates, but not as in {paths[first].name}"
            )
    if all("timestamp" in frame.columns for frame in events.values()):
        filled = [frame for frame in events.values() if len(frame)]
        kind = filled[0]["timestamp"].dtype if filled else pl.Int64()
        for split, frame in events.items():
            if not len(frame):
                events[split] = frame.with_columns(pl.col("timestamp").cast(kind))
        # One type for all splits: times are compared across them.
        times = exact.one_type([frame["timestamp"] for frame in events.values()])
        for (split, path), column in zip(paths.items(), times, strict=True):
            if column.null_count():
                raise UserError(
                    f"{path}: timestamps that cannot be kept exactly beside those of the other "
                    "files; write all in one unit"
                )
            events[split] = events[split].with_columns(column)
    return events


def _with_tables(config: object, events: dict[str, pl.DataFrame], roles: Roles) -> Source:
    described = {}
    for key, role, id_name in (("users", "user", roles.user), ("items", "item", roles.item)):
        configured = options.option(options.option(config, "columns", {}), role, "")
        # Without a configured name the table may use another default name than the events.
        id_names = (id_name,) if configured else (id_name, *readers.DEFAULT_COLUMNS[role])
        path = options.option(config, key, "")
        if path:
            path = pathlib.Path(path)
            format = "parquet" if path.suffix.lower() == ".parquet" else "csv"
            described[key] = tables.read_table(path, format, id_names, f"columns.{role}")
    path = _path(config)
    return Source(
        name=options.option(config, "name", "") or path.resolve().name.split(".")[0],
        events=events,
        users=described.get("users"),
        items=described.get("items"),
    )
