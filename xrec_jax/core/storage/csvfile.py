"""Reader of user-written CSV files: rows with the number of the line on which each begins."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files, jsonl

MOST_CHARACTERS = 1 << 16  # of a row; below what the parser itself bounds a cell by


def csv_rows(path: epath.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Yields line number (from 1) and cells of every row that is not blank, the header included.

    A quoted cell may hold line ends. Memory is that of the longest row, which is bounded. Files
    named ".gz" are decompressed.

    Raises:
      UserError: names file and line of invalid CSV: a quote that is never closed or stands inside a
        cell, a cell that is too long, a NUL, bytes that are not UTF-8.
    """
    with files.opened(path) as file:
        lines = _Lines(file, path)
        reader = csv.reader(lines, strict=True)
        while True:
            line = reader.line_num + 1
            lines.row = line, 0
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path}, line {line}: not valid CSV ({_reason(error)})") from error
            if row:
                yield line, row


def other_separator(header: Sequence[str]) -> str:
    """Advice for a header that is not separated by commas; "" if it is."""
    if header and header[0].lower().startswith("sep="):
        return "a separator instead of a header; delete this line and separate columns with commas"
    if len(header) == 1:
        for character, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
            if character in header[0]:
                return f"columns separated by {name}; save the file with commas"
    return ""


class _Lines:
    """Lines of a file, with a bound on the characters of a row that spans several lines.

    Attributes:
      row: first line of the current row, and its number of characters so far.
    """

    def __init__(self, file: files.Bytes, path: epath.PathLike):
        self._lines, self._path = jsonl.bounded_lines(file, path), path
        self.row = 1, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, data = next(self._lines)
        text = jsonl.decode(data, self._path, number)
        where, what = f"{self._path}, line {number}", ""
        first, length = self.row[0], self.row[1] + len(text)
        self.row = first, length
        if "\0" in text:
            what = "NUL is no character of a text"
        elif length > MOST_CHARACTERS:
            where = f"{self._path}, line {first}"
            what = f"a row of more than {MOST_CHARACTERS:,} characters; is a quote never closed?"
        if what:
            raise UserError(f"{where}: not valid CSV ({what})")
        return text


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote that opens in this row is never closed"
    if "new-line character" in text:
        return "lines end in carriage returns alone; save it with line feeds"
    if "expected after" in text:
        return "text stands behind a closing quote; double a quote that belongs to a cell"
    return text
