"""Splits delimited text, plain or gzip, into records, one block of bytes at a time.

Quotes follow RFC 4180: a field is quoted from its first to its last character, or it holds no
quote. Readers disagree about anything else and may drop whole records, so it is a fault. So are
carriage returns inside a line and NUL bytes. Memory is bounded by the longest record allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np

from xrec_jax.core.errors import UserError

LONGEST = 1 << 24  # bytes of a record

_CHUNK = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_NO_TEXT = {
    b"\xff\xfe": "not UTF-8 text but UTF-16; save the file as UTF-8",
    b"\xfe\xff": "not UTF-8 text but UTF-16; save the file as UTF-8",
    b"PK\x03\x04": "a zip archive (or a workbook); unpack it or save it as CSV",
    b"PAR1\x15": 'a Parquet file; its name ends in .parquet, format="parquet" reads it',
    b"BZh91AY&SY": "a bzip2 file; unpack it, or pack it with gzip",
    b"\xfd7zXZ\0": "an xz file; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; unpack it, or pack it with gzip",
}
_NEWLINE, _RETURN = ord("\n"), ord("\r")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault in the text.

    Attributes:
      at: offset of the fault in the block; records that end before it are intact.
      line: 1-based number of its line.
      reason: description and remedy.
    """

    at: int
    line: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of consecutive records.

    Attributes:
      data: bytes, beginning with a record.
      line: 1-based line of the first byte.
      marks: `[m]` offsets of the unquoted separators and line ends.
      ends: `[r]` indices into `marks` of the ends of complete records.
      fault: the first fault, or None; the last block ends with it.
    """

    data: bytes
    line: int
    marks: np.ndarray
    ends: np.ndarray
    fault: Fault | None

    def start(self, record: int) -> int:
        """Offset of the first byte of a record."""
        return int(self.marks[self.ends[record - 1]]) + 1 if record else 0

    def line_of(self, record: int) -> int:
        """1-based line on which a record starts."""
        return self.line + self.data.count(b"\n", 0, self.start(record))

    def widths(self) -> np.ndarray:
        """`[r]` number of fields of each record."""
        return np.diff(self.ends, prepend=-1)

    def fields(self, record: int, quote: str | None) -> list[bytes]:
        """Returns the fields of a record, unquoted."""
        first = int(self.ends[record - 1]) + 1 if record else 0
        start, fields = self.start(record), []
        for mark in self.marks[first : int(self.ends[record]) + 1].tolist():
            field = self.data[start:mark]
            if self.data[mark] == _NEWLINE:
                field = field.removesuffix(b"\r")
            mark_of_quote = b"" if quote is None else quote.encode()
            if mark_of_quote and field.startswith(mark_of_quote):
                field = field[1:-1].replace(mark_of_quote + mark_of_quote, mark_of_quote)
            fields.append(field)
            start = mark + 1
        return fields


def blocks(path: pathlib.Path, separator: str, quote: str | None) -> Iterator[Block]:
    """Yields all records; the last block ends with the file or with its first fault.

    Raises:
      UserError: if the file cannot be read, its gzip data is damaged, or it is not text.
    """
    line, remainder = 1, b""
    with open_bytes(path) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            data = remainder + chunk
            if line == 1 and not remainder:
                data = _without_bom(path, data)
            if not data:
                return
            block = _block(data, line, separator, quote, is_last=not chunk)
            if len(block.ends) or block.fault:
                yield block
            if block.fault or not chunk:
                return
            # An incomplete record at the end is carried over to the next block.
            used = block.start(len(block.ends))
            line += data.count(b"\n", 0, used)
            remainder = data[used:]


@contextlib.contextmanager
def open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzip file, recognised by its first bytes; read errors are `UserError`s."""
    try:
        with open(path, "rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if compressed else plain
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: corrupt gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _without_bom(path: pathlib.Path, data: bytes) -> bytes:
    for magic, what in _NO_TEXT.items():
        if data.startswith(magic):
            raise UserError(f"{path}: line 1: {what}")
    return data.removeprefix(_BOM)


def _block(data: bytes, line: int, separator: str, quote: str | None, *, is_last: bool) -> Block:
    """Finds the records of `data`, which ends the file if `is_last`."""
    if is_last and not data.endswith(b"\n"):
        data += b"\n"  # the last line need not end in one
    array = np.frombuffer(data, np.uint8)
    plain = np.ones(len(array), bool)
    faults = []
    if quote is not None and quote.encode() in data:
        quotes = array == ord(quote)
        # A running parity of the quotes: odd stretches are quoted; a doubled quote flips it twice.
        plain = ~np.logical_xor.accumulate(quotes)
        faults.append(_quote_fault(array, np.flatnonzero(quotes), ord(separator), is_last=is_last))
    if b"\r" in data:
        faults.append(_return_fault(array, plain))
    if (at := data.find(b"\0")) >= 0:
        faults.append((at, "a NUL byte: no table of text, or UTF-16; save it as UTF-8"))
    where = np.flatnonzero(((array == ord(separator)) | (array == _NEWLINE)) & plain)
    ends = np.flatnonzero(array[where] == _NEWLINE)
    first = min((fault for fault in faults if fault is not None), default=None)
    if first is None and not len(ends) and len(data) > LONGEST:
        reason = f"a record of more than {LONGEST >> 20} MiB"
        first = (0, reason + (", or a quote that is never closed" if quote else ""))
    if first is None:
        return Block(data, line, where, ends, None)
    at, reason = first
    # Only records that end before the fault can be trusted.
    ends = ends[: np.searchsorted(where[ends], at)]
    return Block(data, line, where, ends, Fault(at, line + data.count(b"\n", 0, at), reason))


def _quote_fault(
    array: np.ndarray, quotes: np.ndarray, comma: int, *, is_last: bool
) -> tuple[int, str] | None:
    """Finds the first quote that neither starts nor ends a field.

    Args:
      array: `[n]` bytes.
      quotes: offsets of the quotes in it; the even ones open.
      comma: the separator.
      is_last: true if the file ends with `array`.
    """
    quote, last = array[quotes[0]], len(array) - 1
    opening, closing = quotes[::2], quotes[1::2]
    before = array[np.maximum(opening - 1, 0)]
    starts = (opening == 0) | (before == comma) | (before == _NEWLINE) | (before == quote)
    after = array[np.minimum(closing + 1, last)]
    final = array[np.minimum(closing + 2, last)]
    ends = (after == comma) | (after == _NEWLINE) | (after == quote)
    ends |= (after == _RETURN) & ((final == _NEWLINE) | (closing + 2 > last))
    ends |= closing == last
    faults: list[tuple[int, str]] = []
    if not starts.all():
        at = int(opening[np.argmin(starts)])
        faults.append((at, "a quote inside a field that is not quoted; " + _REMEDY))
    if not ends.all():
        at = int(opening[np.argmin(ends)])
        faults.append((at, "a quoted field goes on after its closing quote; " + _REMEDY))
    if not faults and is_last and len(quotes) % 2:
        at = int(opening[-1])
        faults.append((at, "a quote is opened that is never closed; " + _REMEDY))
    return min(faults, default=None)


_REMEDY = 'quote the whole field and double the quotes in it ("LP 12"" disc")'


def _return_fault(array: np.ndarray, plain: np.ndarray) -> tuple[int, str] | None:
    """Finds the first unquoted carriage return that no line feed follows."""
    returns = np.flatnonzero((array == _RETURN) & plain)
    returns = returns[returns < len(array) - 1]
    lone = returns[array[returns + 1] != _NEWLINE]
    if not len(lone):
        return None
    at = int(lone[0])
    return at, r"a carriage return that ends no line; lines end with \n or \r\n"
