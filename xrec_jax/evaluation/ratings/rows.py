"""Rows of people's tables of ratings, with columns under one name each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.csvfile import csv_rows, other_separator
from xrec_jax.core.storage.files import numbered_records

# Names that other people's files use for our columns.
ALIASES = {
    "pair": "item",
    "prompt_id": "item",
    "model": "system",
    "explainer": "system",
    "annotator": "rater",
    "rater_id": "rater",
    "dataset": "group",
}
# Names under which pandas, R and spreadsheets write the numbers of rows.
_INDEX = re.compile(r"(unnamed: ?\d+|index|level_0|row|rownames?|no\.?|nr\.?|#)?", re.IGNORECASE)


class RatingRows(NamedTuple):
    """A table of ratings.

    Attributes:
      names: columns, under our names.
      rows: line and cells by column.
      notes: what was left out, to be said.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, Any]], ...]
    notes: tuple[str, ...] = ()


def read_rows(path: epath.PathLike) -> RatingRows:
    """Reads CSV or JSON lines, perhaps gzipped.

    A column that numbers the rows, as pandas writes it, is no question and is left out.

    Raises:
      UserError: names file and line of what is wrong: columns without a name or with the same one,
        two that mean the same thing, a row of another length, no row.
    """
    plain = str(path).removesuffix(".gz")
    if plain.endswith(".csv"):
        found = _of_csv(path)
    elif plain.endswith(".jsonl"):
        found = _of_records(path)
    else:
        raise UserError(f"{path}: ratings are read from .csv or .jsonl files, perhaps with .gz")
    if not found.rows:
        raise UserError(f"{path}: no rating in it")
    return found


def _of_csv(path: epath.PathLike) -> RatingRows:
    lines = csv_rows(path)
    first, header = next(lines, (1, []))
    if way_out := other_separator(header):
        raise UserError(f"{path}, line {first}: {way_out}")
    rows = []
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}"
            )
        rows.append((line, cells))
    names, notes = _named([name.strip() for name in header], rows, f"{path}, line {first}")
    kept = tuple((line, {names[place]: cells[place] for place in names}) for line, cells in rows)
    return RatingRows(tuple(names.values()), kept, tuple(f"{path}: {note}" for note in notes))


def _named(
    header: Sequence[str], rows: Sequence[tuple[int, list[str]]], where: str
) -> tuple[dict[int, str], list[str]]:
    """Place and name of every column that counts, and what is said of the others."""
    names: dict[int, str] = {}
    notes = []
    for place, name in enumerate(header):
        cells = [cells[place] for _, cells in rows]
        if _INDEX.fullmatch(name) and _numbers_rows(cells, nameless=not name):
            notes.append(f"column {place + 1} ({name!r}) numbers the rows and is left out")
        elif name:
            names[place] = name
        elif any(cells):  # a comma at the end of every line makes an empty column
            raise UserError(f"{where}: column {place + 1} has no name; name it or delete it")
    return _distinct(names, where), notes


def _numbers_rows(cells: Sequence[str], *, nameless: bool) -> bool:
    """Whether cells count up from 0 or 1; a nameless column need only tell the rows apart."""
    if not cells or not all(cell.isdecimal() and len(cell) < 16 for cell in cells):
        return False
    numbers = list(map(int, cells))
    if nameless:
        return len(set(numbers)) == len(numbers)
    return numbers[0] in (0, 1) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]


def _distinct(names: Mapping[int, str], where: str) -> dict[int, str]:
    """The columns under our names.

    Raises:
      UserError: if two of them have one name, or mean the same thing.
    """
    found: dict[str, int] = {}
    for place, name in names.items():
        ours = ALIASES.get(name, name)
        if ours in found:
            other = names[found[ours]]
            if other == name:
                raise UserError(
                    f"{where}: column {name!r} stands twice (columns {found[ours] + 1} and "
                    f"{place + 1}); rename or delete one"
                )
            raise UserError(
                f"{where}: {other!r} and {name!r} both name the {ours}; rename or delete one"
            )
        found[ours] = place
    return {place: name for name, place in found.items()}


def _of_records(path: epath.PathLike) -> RatingRows:
    rows = []
    for line, record in numbered_records(path):
        where = f"{path}, line {line}"
        names = _distinct(dict(enumerate(record)), where)
        rows.append((line, dict(zip(names.values(), _plain(record, where), strict=True))))
    return RatingRows(tuple(dict.fromkeys(name for _, row in rows for name in row)), tuple(rows))


def _plain(record: Mapping[str, Any], where: str) -> Iterator[Any]:
    for name, value in record.items():
        if isinstance(value, (dict, list, bool)):
            raise UserError(f"{where}: {name} is {str(value)[:40]}, not a number or text")
        yield value


def joined(tables: Iterable[RatingRows]) -> RatingRows:
    """Rows of several tables, one below the other."""
    tables = list(tables)
    return RatingRows(
        tuple(dict.fromkeys(name for table in tables for name in table.names)),
        tuple(row for table in tables for row in table.rows),
        tuple(note for table in tables for note in table.notes),
    )
