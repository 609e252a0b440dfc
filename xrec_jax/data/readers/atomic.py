"""Atomic files: tab-separated text whose header gives each column as `name:type`.

The layout is RecBole's: NAME.inter with the events, or NAME.SPLIT.inter with those of a given
split, and optionally NAME.user and NAME.item. Types are token, float and the space-separated
token_seq and float_seq. Quotes are literal.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.readers import columns as columns_lib
from xrec_jax.data.readers import delimited, tables
from xrec_jax.data.readers.delimited import DelimitedFile

TYPES = ("token", "float", "token_seq", "float_seq")
SPLITS = ("train", "valid", "test")
# Names of other tools for the splits.
OTHER_NAMES = {
    "training": "train",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class AtomicFile:
    """An opened atomic file; `types` gives each column of `file` its atomic type."""

    file: DelimitedFile
    types: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class AtomicPaths:
    """Paths of one data set's files; `events` has the key "" or the names of given splits."""

    name: str
    events: Mapping[str, pathlib.Path]
    users: pathlib.Path | None
    items: pathlib.Path | None


def find_files(directory: pathlib.Path, name: str) -> AtomicPaths:
    """Finds the files of a data set.

    Args:
      directory: directory of the files.
      name: the data set; "" for the directory's name or else the only one there.

    Raises:
      UserError: if there is no data set, or several, or both forms of the events.
    """
    if not directory.is_dir():
        if directory.exists():
            raise UserError(f"{directory} is a file; path names the directory of atomic files")
        siblings = directory.parent.iterdir() if directory.parent.is_dir() else ()
        near = did_you_mean(directory.name, sorted(p.name for p in siblings))
        raise UserError(f"{directory}: no such directory{near}")
    stems = sorted(path.name.removesuffix(".inter") for path in directory.glob("*.inter"))
    names = sorted({_without_split(stem) for stem in stems})
    # RecBole names the files after their directory; otherwise a single data set is unambiguous.
    if not name:
        own = directory.resolve().name
        if own not in names and len(names) != 1:
            reason = (
                f"several data sets ({', '.join(names)}), set name" if names else "no *.inter file"
            )
            raise UserError(f"{directory}: {reason}")
        name = own if own in names else names[0]
    splits = {split: f"{name}.{split}" for split in SPLITS if f"{name}.{split}" in stems}
    if name not in stems and not splits:
        raise UserError(f"{directory}: no file {name}.inter{did_you_mean(name, names)}")
    if name in stems and splits:
        both = f"{name}.inter and {next(iter(splits.values()))}.inter"
        raise UserError(f"{directory}: both {both}; keep one form of the events")
    # A misnamed split, such as NAME.val.inter, would silently be left out.
    if splits:
        others = {stem.removeprefix(f"{name}."): f"{stem}.inter" for stem in stems}
        refuse_other_names(directory, splits, others, ".inter")
    events = {split: directory / f"{stem}.inter" for split, stem in (splits or {"": name}).items()}
    users, items = directory / f"{name}.user", directory / f"{name}.item"
    return AtomicPaths(
        name, events, users if users.exists() else None, items if items.exists() else None
    )


def refuse_other_names(
    directory: pathlib.Path, splits: Iterable[str], stems: Mapping[str, str], suffix: str
) -> None:
    """Refuses a file that looks like a split but would not be read.

    Args:
      directory: directory of the files.
      splits: the splits that are read.
      stems: file names by their stem, without suffix.
      suffix: suffix of the files that are read, for the message.
    """
    for stem, name in stems.items():
        plain = stem.lower()
        split = OTHER_NAMES.get(plain, plain)
        if split in SPLITS and split not in splits:
            raise UserError(
                f"{directory}: {name} is not read beside {', '.join(splits)}; if it is the "
                f"{split!r} part, it must be called {split} and end in {suffix}"
            )


def open_atomic(path: pathlib.Path) -> AtomicFile:
    """Reads the header and checks the width of every record.

    Raises:
      UserError: if a header entry has no type or an unknown one, or as `delimited.with_names`.
    """
    types: dict[str, str] = {}
    names = []
    header = delimited.read_header(path, "\t", None)
    if len(header) == 1 and header[0].count(":") > 1:
        raise UserError(f"{path}: line 1: one column; atomic files separate columns with tabs")
    for entry in header:
        name, colon, kind = entry.rpartition(":")
        if not colon or not name:
            raise UserError(
                f"{path}: line 1: header entry {entry!r} is not name:type, "
                f"with a type of {', '.join(TYPES)}"
            )
        if kind not in TYPES:
            raise UserError(
                f"{path}: line 1: column {name!r} has the unknown type {kind!r}"
                f"{did_you_mean(kind, TYPES)}"
            )
        types[name] = kind
        names.append(name)
    return AtomicFile(delimited.with_names(path, "\t", None, names), types)


def require_types(file: AtomicFile, roles: columns_lib.Roles) -> None:
    """Checks that ids are tokens and that times and ratings are scalars.

    Raises:
      UserError: if a column's type does not fit its role.
    """
    for role, name in roles.named().items():
        allowed = ("token",) if role in columns_lib.REQUIRED else ("float", "token")
        if file.types[name] not in allowed:
            raise UserError(
                f"{file.file.path}: line 1: column {name!r} is {file.types[name]}, "
                f"the {role} must be {allowed[0]}"
            )


def read_optional_table(path: pathlib.Path | None, id_name: str, key: str) -> tables.Table | None:
    """Reads a .user or .item file; None if there is none.

    token becomes String and float Float64, null where empty; token_seq becomes List(String) and
    float_seq List(Float64), an empty list where empty.

    Args:
      path: the file, or None.
      id_name: its id column.
      key: the config key that names the id column, for messages.

    Raises:
      UserError: if a float is not a finite number, or as `open_atomic` and `tables.make_table`.
    """
    if path is None:
        return None
    atomic = open_atomic(path)
    tables.id_column(path, atomic.file.names, (id_name,), key)
    frame = tables.read_texts(atomic.file)
    columns = [
        _typed(frame[name], kind, atomic.file) if name != id_name else frame[name]
        for name, kind in atomic.types.items()
    ]
    return tables.make_table(
        path,
        pl.DataFrame(columns),
        id_name,
        lambda row: f"line {delimited.line_of(atomic.file, row)}",
    )


def _typed(texts: pl.Series, kind: str, file: DelimitedFile) -> pl.Series:
    if kind == "token":
        return texts.replace("", None)
    if kind == "float":
        present = (texts != "").to_numpy()
        _require_numbers(texts.filter(pl.Series(present)), np.flatnonzero(present), file)
        return texts.replace("", None).str.strip_chars_start(" ").cast(pl.Float64)
    items = texts.str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    if kind == "token_seq":
        return items
    # Row of each list element, to name the line of a fault.
    rows = np.repeat(np.arange(len(texts)), items.list.len().to_numpy())
    _require_numbers(items.explode().drop_nulls(), rows, file)
    return items.list.eval(pl.element().cast(pl.Float64))


def _require_numbers(values: pl.Series, rows: np.ndarray, file: DelimitedFile) -> None:
    """Raises for the first of `values` that is not a finite number; `rows` are their records."""
    fault = columns_lib.first_fault(values, "float64")
    if fault is not None:
        line = delimited.line_of(file, int(rows[fault]))
        what = columns_lib.describe_fault(values[fault], "float64")
        raise UserError(f"{file.path}: line {line}, column {values.name!r}: {what}")


def _without_split(stem: str) -> str:
    name, _, split = stem.rpartition(".")
    return name if split in SPLITS and name else stem
