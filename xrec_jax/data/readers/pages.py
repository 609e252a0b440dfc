"""Checks the sizes stated in a Parquet file against the file, before it is read.

Polars trusts them: a flipped bit in a page header requests an allocation that ends the process.
Only the structure, in Thrift's compact protocol, is read here; the values are not.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection
from typing import Any, BinaryIO

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory

_MAGIC = b"PAR1"
_LONGEST_FOOTER = 1 << 27
_HEADER_ROOM = (1 << 12, 1 << 24)  # bytes read for a page header: first attempt and limit
_DEEPEST = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_DATA_PAGES = (5, 8)  # fields of a page header that describe values, versions 1 and 2
_DICTIONARY = 7


class _DamagedError(ValueError):
    """An inconsistency in the file."""


def check_pages(path: pathlib.Path, names: Collection[str]) -> None:
    """Checks the page headers of some columns.

    Args:
      path: path of a Parquet file; other and encrypted files are left to the reader.
      names: columns that will be read.

    Raises:
      UserError: if a stated size or count contradicts the file or exceeds the memory left.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        # A Parquet file ends with its footer, the footer's length and the magic bytes.
        tail = file.read(8)
        if len(tail) < 8 or tail[4:] != _MAGIC:
            return
        length = int.from_bytes(tail[:4], "little")
        try:
            if length > min(size - 8, _LONGEST_FOOTER):
                raise _DamagedError(f"a footer of {length:,} bytes in a file of {size:,}")
            file.seek(size - 8 - length)
            _check_footer(file, _Thrift(file.read(length)).struct(), names, size, path)
        except _DamagedError as error:
            raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def _check_footer(
    file: BinaryIO, footer: dict[int, Any], names: Collection[str], size: int, path: pathlib.Path
) -> None:
    # Field ids of parquet.thrift: FileMetaData 3 num_rows, 4 row_groups; RowGroup 1 columns, 3
    # num_rows; ColumnChunk 3 meta_data; ColumnMetaData 3 path_in_schema, 5 num_values.
    groups = _list(footer, 4)
    if _number(footer, 3) != sum(_number(group, 3) for group in groups):
        raise _DamagedError("the numbers of rows do not add up")
    for group in groups:
        for chunk in _list(group, 1):
            about = chunk.get(3)
            if not isinstance(about, dict):
                continue  # encrypted
            names_of = [name for name in about.get(3, []) if isinstance(name, bytes)]
            if not names_of or names_of[0].decode(errors="replace") not in names:
                continue
            if _number(about, 5) < _number(group, 3):
                raise _DamagedError("a column has fewer values than rows")
            _check_chunk(file, about, size, path)


def _check_chunk(file: BinaryIO, about: dict[int, Any], size: int, path: pathlib.Path) -> None:
    """Checks the pages of one column chunk, up to its last value."""
    # ColumnMetaData 9 data_page_offset, 11 dictionary_page_offset; the dictionary, if any, comes
    # first.
    at, left = _number(about, 9), _number(about, 5)
    if 0 < about.get(11, 0) < at:
        at = _number(about, 11)
    while left > 0:
        page, length = _page_header(file, at, size)
        # PageHeader 2 uncompressed_page_size, 3 compressed_page_size.
        packed, unpacked = _number(page, 3), _number(page, 2)
        at += length + packed
        if at > size:
            raise _DamagedError("a page reaches beyond the file")
        memory.require(unpacked, f"{path}: a page")
        if _DICTIONARY in page and _number(page[_DICTIONARY], 1) > unpacked:
            raise _DamagedError("a dictionary has more values than bytes")
        for field in _DATA_PAGES:
            if field in page:
                left -= _number(page[field], 1)
    if left < 0:
        raise _DamagedError("the pages of a column have more values than the column")


def _page_header(file: BinaryIO, at: int, size: int) -> tuple[dict[int, Any], int]:
    for room in _HEADER_ROOM:
        file.seek(at)
        thrift = _Thrift(file.read(room))
        try:
            return thrift.struct(), thrift.at
        except _DamagedError:
            if at + room >= size:
                break
    raise _DamagedError(f"no page starts at byte {at:,}")


def _number(fields: object, field: int) -> int:
    value = fields.get(field) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise _DamagedError("a size is missing or negative")
    return value


def _list(fields: dict[int, Any], field: int) -> list[Any]:
    value = fields.get(field, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _DamagedError("the footer is no footer")
    return value


class _Thrift:
    """Reader of Thrift's compact protocol; structs become dicts of field id to value.

    Attributes:
      data: the encoded bytes.
      at: offset of the next byte.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Reads a struct.

        Raises:
          _DamagedError: if it does not end within the data, or nests too deep.
        """
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            # The upper half of a field's first byte is the difference to the previous field id; 0:
            # the id follows.
            step, kind = head >> 4, head & 15
            field = field + step if step else self._signed()
            fields[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise _DamagedError("the footer nests too deep")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind < _DOUBLE:
            return self._signed()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(self._checked(count))]
        if kind == _MAP:
            count = self._checked(self._varint())
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._value(kinds >> 4, depth + 1)
                self._value(kinds & 15, depth + 1)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise _DamagedError("the footer is no footer")

    def _checked(self, count: int) -> int:
        if count > len(self.data) - self.at:  # every element takes at least one byte
            raise _DamagedError("the footer is cut")
        return count

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise _DamagedError("the footer is cut")
        return self.data[start : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise _DamagedError("a number without end")

    def _signed(self) -> int:
        value = self._varint()
        # Zigzag encoding.
        return (value >> 1) ^ -(value & 1)
