"""Finds and opens the files that a data config names, one function a format."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.readers import atomic, delimited, exact, options, parquet, tables
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import events as readers
from xrec_jax.data.readers.columns import Roles

_SUFFIXES = {"csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"), "parquet": (".parquet",)}


@dataclasses.dataclass(frozen=True)
class Source:
    """What the files hold.

    Attributes:
      name: of the data set.
      events: part -> events in file order, as `readers` return them; the one key is "" without a
        given split.
      users: descriptions, or None.
      items: likewise.
    """

    name: str
    events: dict[str, pl.DataFrame]
    users: tables.Table | None
    items: tables.Table | None


def atomic_source(config: Any) -> Source:
    """Reads atomic files; `config.path` is their directory."""
    found = atomic.find_files(_path(config), options.option(config, "name", ""))
    opened = {part: atomic.open_atomic(path) for part, path in found.events.items()}
    first, *others = opened.values()
    defaults = {role: names[:1] for role, names in readers.DEFAULT_COLUMNS.items()}
    roles = columns_lib.resolve_roles(
        config, first.file.names, defaults=defaults, path=first.file.path
    )
    for file in (first, *others):
        _require_columns(file.file.path, file.file.names, roles, first.file.path)
        atomic.require_types(file, roles)
    return Source(
        name=found.name,
        events=_read(
            {part: file.file.path for part, file in opened.items()},
            lambda part, _: readers.read_delimited_events(opened[part].file, roles),
        ),
        users=atomic.read_optional_table(found.users, roles.user, "columns.user"),
        items=atomic.read_optional_table(found.items, roles.item, "columns.item"),
    )


def csv_source(config: Any) -> Source:
    """Reads comma- or tab-separated files; `config.path` is one, or a directory with its parts."""
    paths = _event_paths(_path(config), "csv")
    opened = {part: readers.open_csv(path) for part, path in paths.items()}
    names = {part: file.names for part, file in opened.items()}
    roles = _shared_roles(config, paths, names)
    events = _read(paths, lambda part, _: readers.read_delimited_events(opened[part], roles))
    return _with_tables(config, events, roles)


def parquet_source(config: Any) -> Source:
    """Reads Parquet files; `config.path` is one, or a directory with its parts."""
    paths = _event_paths(_path(config), "parquet")
    names = {part: parquet.parquet_names(path) for part, path in paths.items()}
    roles = _shared_roles(config, paths, names)
    events = _read(paths, lambda _, path: parquet.read_parquet_events(path, roles))
    return _with_tables(config, events, roles)


def data_files(config: Any) -> dict[str, pathlib.Path]:
    """Finds the files that a data config names, without opening them.

    Returns:
      Role -> file: "events", or "events.PART" for each part of a given split; "users" and "items"
      where there are tables. Empty for formats that read no file.

    Raises:
      UserError: there are none.
    """
    format = options.option(config, "format", "")
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
        return {}
    files = {f"events.{part}" if part else "events": path for part, path in events.items()}
    return files | {key: path for key, path in tables_found.items() if path is not None}


def _path(config: Any) -> pathlib.Path:
    path = options.option(config, "path", "")
    if not path:
        raise UserError("path is not set; it names the file or directory of the interactions")
    return pathlib.Path(path)


def _event_paths(path: pathlib.Path, format: str) -> dict[str, pathlib.Path]:
    """Returns {"": file}, or part -> file for a directory."""
    if not path.is_dir():
        return {"": delimited.require_file(path)}
    paths = {}
    for part in atomic.PARTS:
        found = [path / (part + end) for end in _SUFFIXES[format] if (path / (part + end)).exists()]
        if len(found) > 1:
            raise UserError(f"{path}: both {found[0].name} and {found[1].name}; keep one")
        if found:
            paths[part] = found[0]
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
    config: Any, paths: Mapping[str, pathlib.Path], names: Mapping[str, Sequence[str]]
) -> Roles:
    """Resolves the roles on the first file; the other parts must have the same columns."""
    first = next(iter(paths))
    roles = columns_lib.resolve_roles(
        config, names[first], defaults=readers.DEFAULT_COLUMNS, path=paths[first]
    )
    for part, path in paths.items():
        _require_columns(path, names[part], roles, paths[first])
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
    """Reads every part; their timestamps must all be numbers or all be dates."""
    events: dict[str, pl.DataFrame] = {}
    for part, path in paths.items():
        events[part] = frame = read(part, path)
        if "timestamp" not in frame.columns:
            continue
        # A part without an event has times of no type.
        first = next((part for part, frame in events.items() if len(frame)), part)
        kinds = [events[p]["timestamp"].dtype.is_temporal() for p in (first, part)]
        if kinds[0] != kinds[1] and len(frame):
            raise UserError(
                f"{path}: timestamps are numbers or dates, but not as in {paths[first].name}"
            )
    if all("timestamp" in frame.columns for frame in events.values()):
        filled = [frame for frame in events.values() if len(frame)]
        kind = filled[0]["timestamp"].dtype if filled else pl.Int64()
        for part, frame in events.items():
            if not len(frame):
                events[part] = frame.with_columns(pl.col("timestamp").cast(kind))
        times = exact.one_type([frame["timestamp"] for frame in events.values()])
        for (part, path), column in zip(paths.items(), times, strict=True):
            if column.null_count():
                raise UserError(
                    f"{path}: timestamps that cannot be kept exactly beside those of the other "
                    "files; write all in one unit"
                )
            events[part] = events[part].with_columns(column)
    return events


def _with_tables(config: Any, events: dict[str, pl.DataFrame], roles: Roles) -> Source:
    found = {}
    for key, role, id_name in (("users", "user", roles.user), ("items", "item", roles.item)):
        asked = options.option(options.option(config, "columns", {}), role, "")
        id_names = (id_name,) if asked else (id_name, *readers.DEFAULT_COLUMNS[role])
        path = options.option(config, key, "")
        if path:
            path = pathlib.Path(path)
            format = "parquet" if path.suffix.lower() == ".parquet" else "csv"
            found[key] = tables.read_table(path, format, id_names, f"columns.{role}")
    path = _path(config)
    return Source(
        name=options.option(config, "name", "") or path.resolve().name.split(".")[0],
        events=events,
        users=found.get("users"),
        items=found.get("items"),
    )
