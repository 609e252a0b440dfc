"""Rows of rating tables, with canonical names of the columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.csvfile import csv_rows, other_separator
from xrec_jax.core.storage.files import numbered_records

# Canonical name of each alias that files may use.
ALIASES = {
    "pair": "item",
    "prompt_id": "item",
    "model": "system",
    "explainer": "system",
    "annotator": "rater",
    "rater_id": "rater",
    "dataset": "group",
}
# Names that pandas, R and spreadsheets give to a column of row numbers.
_INDEX = re.compile(r"(unnamed: ?\d+|index|level_0|row|rownames?|no\.?|nr\.?|#)?", re.IGNORECASE)


class RatingRows(NamedTuple):
    """Rows of a table of ratings.

    Attributes:
      names: canonical names of the columns.
      rows: line number and cells by column.
      notes: messages about skipped columns.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, Any]], ...]
    notes: tuple[str, ...] = ()


def read_rows(path: epath.PathLike) -> RatingRows:
    """Reads CSV or JSON lines, optionally gzipped.

    A column of row numbers, as pandas writes it, is skipped.

    Raises:
      UserError: names file and line of a problem: columns without a name, repeated columns or
        aliases, a row of another length, no row.
    """
    plain = str(path).removesuffix(".gz")
    if plain.endswith(".csv"):
        parsed = _of_csv(path)
    elif plain.endswith(".jsonl"):
        parsed = _of_records(path)
    else:
        raise UserError(f"{path}: ratings are read from .csv or .jsonl files, perhaps with .gz")
    if not parsed.rows:
        raise UserError(f"{path}: no rating in it")
    return parsed


def _of_csv(path: epath.PathLike) -> RatingRows:
    lines = csv_rows(path)
    first, header = next(lines, (1, []))
    if advice := other_separator(header):
        raise UserError(f"{path}, line {first}: {advice}")
    rows = []
    for line, cells in lines:
        # A line of another length has shifted cells: marks would go to other questions.
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
    """Index and name of every column to keep, and notes about the others."""
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
    """True if cells count up from 0 or 1; without a name, if they are any distinct numbers."""
    if not cells or not all(cell.isdecimal() and len(cell) < 16 for cell in cells):
        return False
    numbers = list(map(int, cells))
    # The index of a filtered table has gaps, and pandas writes it under an empty name.
    if nameless:
        return len(set(numbers)) == len(numbers)
    return numbers[0] in (0, 1) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]


def _distinct(names: Mapping[int, str], where: str) -> dict[int, str]:
    """Canonical names of the columns.

    Raises:
      UserError: if two columns have the same name or are aliases.
    """
    place_of: dict[str, int] = {}
    for place, name in names.items():
        ours = ALIASES.get(name, name)
        if ours in place_of:
            other = names[place_of[ours]]
            if other == name:
                raise UserError(
                    f"{where}: column {name!r} stands twice (columns {place_of[ours] + 1} and "
                    f"{place + 1}); rename or delete one"
                )
            raise UserError(
                f"{where}: {other!r} and {name!r} both name the {ours}; rename or delete one"
            )
        place_of[ours] = place
    return {place: name for name, place in place_of.items()}


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
    """Concatenates the rows of several tables."""
    tables = list(tables)
    return RatingRows(
        tuple(dict.fromkeys(name for table in tables for name in table.names)),
        tuple(row for table in tables for row in table.rows),
        tuple(note for table in tables for note in table.notes),
    )
