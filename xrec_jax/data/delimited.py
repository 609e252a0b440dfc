"""Delimited text, plain or gzip: the header, a check of every record's width, typed columns.

Polars reads the columns. It fills short records and, where only some columns are asked for, cuts
long ones, so the number of fields is checked here first, a chunk of bytes at a time. What is wrong
is found by a slower second pass that knows lines.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NoReturn, cast

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean

_GZIP_MAGIC = b"\x1f\x8b"
_NEWLINE = ord("\n")
_CHUNK = 1 << 22
_LONGEST_RECORD = 1 << 26


@dataclasses.dataclass(frozen=True)
class DelimitedFile:
    """A text table whose header has been read.

    Attributes:
      path: the file, plain or gzip.
      separator: one character.
      quote: the quoting character, None where quotes are literal.
      names: the header's column names.
    """

    path: pathlib.Path
    separator: str
    quote: str | None
    names: tuple[str, ...]


def require_file(path: pathlib.Path) -> pathlib.Path:
    """Returns `path`.

    Raises:
      UserError: it is not a file; the message names the nearest file of its directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory, a file is needed")
    if not path.exists():
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, siblings)}")
    return path


def read_header(path: pathlib.Path, separator: str, quote: str | None) -> list[str]:
    """Returns the fields of the first record.

    Raises:
      UserError: the file is missing, empty or not text.
    """
    with _open_text(require_file(path)) as text:
        fields = next(_split(text, separator, quote), None)
    if not fields or fields == [""]:
        raise UserError(f"{path}: the file is empty, a header line is needed")
    return fields


def with_names(
    path: pathlib.Path, separator: str, quote: str | None, names: Sequence[str]
) -> DelimitedFile:
    """Returns the file, its header reduced to `names` and every record checked for its width.

    Raises:
      UserError: a name stands twice, or a record has more or fewer fields than the header.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: line 1: column {name!r} stands twice in the header")
    file = DelimitedFile(path, separator, quote, tuple(names))
    if not _has_equal_widths(file):
        _raise_ragged(file)
    return file


def read_columns(file: DelimitedFile, dtypes: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Reads the columns named in `dtypes`; an empty field is "" in a String column, null elsewhere.

    Raises:
      UserError: the text is not UTF-8.
      pl.exceptions.PolarsError: a field does not parse as its column's type.
    """
    schema = {name: dtypes.get(name, pl.String) for name in file.names}
    try:
        return (
            pl.scan_csv(
                file.path,
                has_header=False,
                skip_rows=1,
                schema=schema,
                separator=file.separator,
                quote_char=file.quote,
                empty_string_is_null=False,
                glob=False,
            )
            .select(list(dtypes))
            .collect()
        )
    except pl.exceptions.PolarsError as error:
        if "utf-8" in str(error).lower():
            _raise_not_utf8(file.path)
        raise


def records(file: DelimitedFile) -> Iterator[tuple[int, list[str]]]:
    """Yields each record after the header with the line it starts on; slow, for errors only."""
    with _open_text(file.path) as text:
        yield from itertools.islice(_numbered(file, text), 1, None)


def line_of(file: DelimitedFile, row: int) -> int:
    """Returns the 1-based line on which record `row` (0 is the first after the header) starts."""
    return next(itertools.islice(records(file), row, None))[0]


def _numbered(file: DelimitedFile, text: io.TextIOBase) -> Iterator[tuple[int, list[str]]]:
    if file.quote is None:
        yield from enumerate(_split(text, file.separator, None), start=1)
        return
    reader = csv.reader(text, delimiter=file.separator, quotechar=file.quote, strict=True)
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{file.path}: line {start}: {error}") from error
        yield start, fields
        start = reader.line_num + 1


def _split(text: io.TextIOBase, separator: str, quote: str | None) -> Iterator[list[str]]:
    if quote is not None:
        return csv.reader(text, delimiter=separator, quotechar=quote)
    return (line.rstrip("\r\n").split(separator) for line in text)


@contextlib.contextmanager
def _open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzip file; a corrupt or unreadable one ends in a UserError."""
    try:
        with open(path, "rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if compressed else plain
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: corrupt gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _open_text(path: pathlib.Path) -> Iterator[io.TextIOBase]:
    with _open_bytes(path) as stream:
        # Only "\n" ends a line, as it does for the reader of the columns.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
        try:
            yield text
        except UnicodeDecodeError:
            _raise_not_utf8(path)
        finally:
            with contextlib.suppress(ValueError):
                text.detach()


def _raise_not_utf8(path: pathlib.Path) -> NoReturn:
    with _open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise UserError(
                    f"{path}: line {number}: not UTF-8 text (byte 0x{byte:02x})"
                ) from None
    raise UserError(f"{path}: not UTF-8 text")


def _has_equal_widths(file: DelimitedFile) -> bool:
    """Whether every record has the header's number of fields; False also where that is unclear."""
    separator, width = ord(file.separator), len(file.names)
    quote = None if file.quote is None else ord(file.quote)
    rest = b""
    with _open_bytes(file.path) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            if not chunk and not rest:
                return True
            block = rest + (chunk or b"\n")
            data = np.frombuffer(block, np.uint8)
            is_mark = (data == separator) | (data == _NEWLINE)
            if quote is not None and chr(quote).encode() in block:
                # Between an odd and an even quote, separators and newlines are text.
                is_mark &= ~np.logical_xor.accumulate(data == quote)
            where = np.flatnonzero(is_mark)
            marks = data[where]
            ends = np.flatnonzero(marks == _NEWLINE)
            if not len(ends):
                if not chunk or len(block) > _LONGEST_RECORD:
                    return False
                rest = block
                continue
            marks = marks[: ends[-1] + 1]
            if len(marks) % width:
                return False
            rows = marks.reshape(-1, width)
            if (rows[:, -1] != _NEWLINE).any() or (rows[:, :-1] != separator).any():
                return False
            rest = block[where[ends[-1]] + 1 :]


def _raise_ragged(file: DelimitedFile) -> None:
    """Raises for the first record of another width; returns if quotes only confused the check."""
    width = len(file.names)
    for line, fields in records(file):
        if len(fields) == width:
            continue
        if fields in ([], [""]):
            raise UserError(f"{file.path}: line {line} is blank, {width} fields are needed")
        raise UserError(
            f"{file.path}: line {line} has {len(fields)} fields, the header has {width} "
            f"({', '.join(file.names)})"
        )
