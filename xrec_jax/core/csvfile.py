"""CSV files that people give beside the data: rows with the line on which each begins."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from etils import epath

from xrec_jax.core import files, jsonl
from xrec_jax.core.errors import UserError


def csv_rows(path: epath.PathLike) -> Iterator[tuple[int, list[str]]]:
    """Line (from 1) and cells of every row that is not blank, the header's among them.

    A cell in quotes may hold line ends. Memory is that of the longest row, which is bounded. A name
    that ends in ".gz" is unzipped.

    Raises:
      UserError: names file and line of what is no CSV: a quote that is never closed, or within a
        cell, a cell that is too long, a NUL, bytes that are no UTF-8.
    """
    with files.opened(path) as file:
        reader = csv.reader(_lines(file, path), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path}, line {line}: not valid CSV ({_reason(error)})") from error
            if row:
                yield line, row


def _lines(file: files.Bytes, path: epath.PathLike) -> Iterator[str]:
    for number, data in jsonl.bounded_lines(file, path):
        text = jsonl.decode(data, path, number)
        if "\0" in text:
            raise UserError(f"{path}, line {number}: not valid CSV (NUL is no character of a text)")
        yield text


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote that opens in this row is never closed"
    if "new-line character" in text:
        return "lines end in carriage returns alone; save it with line feeds"
    if "expected after" in text:
        return "text stands behind a closing quote; double a quote that belongs to a cell"
    return text
