"""Reader of delimited text, plain or gzip: header, check of every record, typed columns.

Polars reads the columns. It pads short records, truncates long ones if only some columns are
requested, and splits records differently if quotes are misplaced. So every record is checked here
first, and Polars must return as many as were counted.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

import polars as pl

from xrec_jax.core.errors import UserError, did_you_mean, one_line
from xrec_jax.core.runtime import memory, quiet
from xrec_jax.data.readers.records import Block, blocks

_MOST_COLUMNS = 1 << 16


@dataclasses.dataclass(frozen=True)
class DelimitedFile:
    """A text table with its header read and its records checked.

    Attributes:
      path: path of the file, plain or gzip.
      separator: one character.
      quote: the quoting character; None if quotes are literal.
      names: column names of the header.
      records: number of records after the header.
      size: bytes of the uncompressed text.
    """

    path: pathlib.Path
    separator: str
    quote: str | None
    names: tuple[str, ...]
    records: int
    size: int


def require_file(path: pathlib.Path) -> pathlib.Path:
    """Returns `path`.

    Raises:
      UserError: if it is not a file; the message names the most similar file of its directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory, a file is needed")
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path} is a pipe or a device, a file is needed: it is read more than once"
        )
    if not path.exists():
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, siblings)}")
    return path


def read_header(path: pathlib.Path, separator: str, quote: str | None) -> list[str]:
    """Returns the fields of the first record.

    Raises:
      UserError: if the file is missing, empty or not text, or the header has no end.
    """
    block = next(blocks(require_file(path), separator, quote), None)
    if block is not None and not len(block.ends):
        _raise_fault(path, block)
    if block is None or block.fields(0, quote) == [b""]:
        raise UserError(f"{path}: the file is empty, a header line is needed")
    if (width := block.ends[0] + 1) > _MOST_COLUMNS:
        raise UserError(f"{path}: line 1: {width:,} columns; no more than {_MOST_COLUMNS:,}")
    try:
        return [field.decode() for field in block.fields(0, quote)]
    except UnicodeDecodeError:
        _raise_not_utf8(path, separator, quote)


def with_names(
    path: pathlib.Path, separator: str, quote: str | None, names: Sequence[str]
) -> DelimitedFile:
    """Opens the file with the column names `names` and checks every record.

    Raises:
      UserError: if a name is repeated, a record has more or fewer fields than the header, or its
        text has a `records.Fault`; names the line.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: line 1: column {one_line(name)!r} stands twice in the header")
    count = size = 0
    for block in blocks(path, separator, quote):
        wrong = block.widths() != len(names)
        if wrong.any():
            _raise_ragged(path, block, int(wrong.argmax()), names)
        _raise_fault(path, block)
        count += len(block.ends)
        size += len(block.data)
    return DelimitedFile(path, separator, quote, tuple(names), count - 1, size)


def read_columns(file: DelimitedFile, dtypes: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Reads the columns in `dtypes`; an empty field is "" in a String column, null elsewhere.

    Raises:
      UserError: if the text is not UTF-8, memory does not suffice, or Polars finds another number
        of records.
      pl.exceptions.PolarsError: if a field does not parse as its column's type, other than String.
    """
    # Polars keeps 16 bytes for a text and 8 for a number, and longer texts beside them.
    memory.require(16 * file.records * len(dtypes), f"{file.path}: {file.records:,} records")
    try:
        with quiet.standard_error(unless=pl.exceptions.PanicException):
            frame = _scan(file, dtypes).select(list(dtypes)).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if "utf-8" in str(error).lower():
            _raise_not_utf8(file.path, file.separator, file.quote)
        # The caller of a typed read finds the faulty value itself; for texts there is none to find.
        typed = any(dtype != pl.String for dtype in dtypes.values())
        if typed and isinstance(error, pl.exceptions.PolarsError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{file.path}: cannot be read as a table ({reason})") from error
    if len(frame) != file.records:
        raise UserError(
            f"{file.path}: {file.records:,} records follow the header, but {len(frame):,} were "
            "read; check its quotes and line ends"
        )
    return frame


def _scan(file: DelimitedFile, dtypes: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    return pl.scan_csv(
        file.path,
        has_header=False,
        skip_rows=1,
        schema={name: dtypes.get(name, pl.String) for name in file.names},
        separator=file.separator,
        quote_char=file.quote,
        empty_string_is_null=False,
        glob=False,
    )


def first_record(file: DelimitedFile) -> list[str] | None:
    """Returns the fields of the first record after the header; None if there is none."""
    row = 1
    for block in blocks(file.path, file.separator, file.quote):
        if row < len(block.ends):
            return [field.decode(errors="replace") for field in block.fields(row, file.quote)]
        row -= len(block.ends)
    return None


def line_of(file: DelimitedFile, row: int) -> int:
    """Returns the 1-based line on which record `row` (0 is the first after the header) starts."""
    before, row = 0, row + 1
    for block in blocks(file.path, file.separator, file.quote):
        if row < before + len(block.ends):
            return block.line_of(row - before)
        before += len(block.ends)
    raise IndexError(f"{file.path} has no record {row}")


def _raise_fault(path: pathlib.Path, block: Block) -> None:
    if block.fault is not None:
        raise UserError(f"{path}: line {block.fault.line}: {block.fault.reason}")


def _raise_not_utf8(path: pathlib.Path, separator: str, quote: str | None) -> NoReturn:
    for block in blocks(path, separator, quote):
        try:
            block.data.decode()
        except UnicodeDecodeError as error:
            line = block.line + block.data.count(b"\n", 0, error.start)
            byte = block.data[error.start]
            raise UserError(f"{path}: line {line}: not UTF-8 text (byte 0x{byte:02x})") from None
    raise UserError(f"{path}: not UTF-8 text")


def _raise_ragged(path: pathlib.Path, block: Block, record: int, names: Sequence[str]) -> NoReturn:
    width, line = int(block.widths()[record]), block.line_of(record)
    if width == 1 and block.fields(record, None) == [b""]:
        raise UserError(f"{path}: line {line} is blank, {len(names)} fields are needed")
    listed = ", ".join(map(one_line, names[:8])) + (", ..." if len(names) > 8 else "")
    raise UserError(
        f"{path}: line {line} has {width} fields, the header has {len(names)} ({listed})"
    )
