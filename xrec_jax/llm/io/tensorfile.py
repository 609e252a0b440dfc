"""The safetensors file format: checked headers, reads of slices, streamed writes.

The format is an eight-byte length, a JSON header with each tensor's dtype, shape and byte range,
and the bytes. Reading it here rather than through the `safetensors` package limits host memory to
the requested slice (mapped pages count as memory too), and allows precise errors for damaged files.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import pathlib
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from xrec_jax.core.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Bits of the exponent: all set in infinities and NaNs, and in nothing else.
_EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
_SUMS = "crc32"  # key of the header's metadata: eight hexadecimal digits a tensor, in their order
_POINTER = b"version https://git-lfs"  # start of a placeholder in a clone without Git LFS
_MAX_HEADER = 100_000_000  # the format's own limit
_CHUNK = 1 << 25  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      file: path of the file.
      name: name in that file.
      dtype: dtype as in the header, such as "BF16".
      shape: shape of the tensor.
      offset: offset of its first byte in the file.
      crc: CRC-32 of its bytes, if the file's writer stored one.
    """

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc: int | None = None

    @property
    def array_dtype(self) -> np.dtype:
        """Dtype of the rows that are read."""
        return DTYPES[self.dtype]

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads rows `start` to `stop` in chunks.

        Yields:
          Number of the first row, and the rows, `[rows, ...]`, in the stored dtype.

        Raises:
          UserError: if the file ends early, a value is not finite, or the checksum of a tensor that
            was read in full does not match.
        """
        dtype = DTYPES[self.dtype]
        crc = 0
        row = math.prod(self.shape[1:]) * dtype.itemsize
        step = max(1, _CHUNK // max(row, 1))
        try:
            with self.file.open("rb", buffering=0) as file:
                for first in range(start, stop, step):
                    rows = np.empty((min(step, stop - first), *self.shape[1:]), dtype)
                    file.seek(self.offset + first * row)
                    self._fill(file, rows)
                    crc = zlib.crc32(rows.reshape(-1).view(np.uint8).data, crc)
                    self._check_finite(rows, first)
                    yield first, rows
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from error

        if self.crc not in (None, crc) and (start, stop) == (0, self.shape[0]):
            raise UserError(
                f"{self.file}: tensor {self.name!r} is damaged: its bytes are not those that were "
                "written; copy the file again"
            )

    def _check_finite(self, rows: np.ndarray, first: int) -> None:
        """Refuses NaN and infinity: a single one makes every output NaN."""
        # All exponent bits set: a test that works alike for all dtypes, bfloat16 included.
        bits = rows.reshape(-1).view(f"u{rows.itemsize}")
        exponent = bits.dtype.type(_EXPONENTS[self.dtype])
        if bits.size and (bits & exponent).max() == exponent:
            bad = first + int(np.argmax((bits & exponent) == exponent)) // max(
                1, math.prod(self.shape[1:])
            )
            raise UserError(
                f"{self.file}: tensor {self.name!r} holds a value that is not finite (row {bad}); "
                "the weights are damaged, or training had diverged"
            )

    def _fill(self, file: io.RawIOBase, rows: np.ndarray) -> None:
        view = rows.reshape(-1).view(np.uint8).data
        while len(view):
            count = file.readinto(view)
            if not count:
                raise UserError(f"{self.file}: it ends inside tensor {self.name!r}")
            view = view[count:]


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """Reads the header of a safetensors file and checks it against the file's size.

    Raises:
      UserError: names the file and the fault: missing, no header, truncated, and so on.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            # The length bounds the header before it is read: a wrong file must not fill the memory.
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > _MAX_HEADER or 8 + length > size:
                file.seek(0)
                if file.read(len(_POINTER)) == _POINTER:
                    raise UserError(
                        f"{path}: only a pointer of Git LFS, not the file itself; fetch it with "
                        "`git lfs pull`"
                    )
                raise UserError(
                    f"{path}: not a safetensors file, or truncated: it has {size} bytes and a "
                    f"header of {length}"
                )
            header = json.loads(file.read(length), object_pairs_hook=functools.partial(_once, path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a safetensors file (its header is no JSON)") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON object)")
    # Byte ranges must follow each other without gap or overlap, up to the end of the file.
    metadata = header.pop("__metadata__", None)
    sums = _sums(metadata, len(header))
    start, end = 8 + length, 0
    tensors: dict[str, Tensor] = {}
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    for place, (name, (first, last)) in enumerate(sorted(spans.items(), key=lambda item: item[1])):
        if first != end:  # the format wants every byte to belong to one tensor
            what = "overlaps the tensor before it" if first < end else "lies behind a gap"
            raise UserError(f"{path}: tensor {name!r} {what}; the file is damaged")
        entry, end = header[name], last
        shape, crc = tuple(entry["shape"]), sums[place] if sums else None
        tensors[name] = Tensor(path, name, entry["dtype"], shape, start + first, crc)
    if size != start + end:
        what = "truncated" if size < start + end else "damaged"
        raise UserError(
            f"{path}: the file is {what}: it has {size} bytes, its header promises {start + end}; "
            "copy it again"
        )
    return {name: tensors[name] for name in header}


def _sums(metadata: object, count: int) -> list[int]:
    """Checksums of the tensors in the order of their bytes; empty if there are none."""
    text = metadata.get(_SUMS, "") if isinstance(metadata, dict) else ""
    if not isinstance(text, str) or len(text) != 8 * count or set(text) - set(string.hexdigits):
        return []
    return [int(text[8 * i : 8 * i + 8], 16) for i in range(count)]


def _once(path: pathlib.Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object; refuses repeated keys, which are ambiguous."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: its header has {double!r} twice; the file is damaged")
    return content


def _span(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
    """Byte range of a tensor from its header entry, which is checked."""
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: tensor {name!r} has a damaged header entry") from error
    valid = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    if not isinstance(dtype, str) or not isinstance(shape, list) or not valid or last < first:
        raise UserError(f"{path}: tensor {name!r} has a damaged header entry")
    if dtype in DTYPES and last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(
            f"{path}: tensor {name!r} takes {last - first} bytes, not those of {dtype} "
            f"{list(shape)}"
        )
    return first, last


class Writer:
    """Writer of a safetensors file, tensor by tensor, with checksums in its header.

    Args:
      path: path of the file; it is complete once the context ends.
      shapes: name and shape of every tensor, in the order of the `append` calls.
      dtype: dtype of all tensors.
      metadata: further entries of the header's metadata.
    """

    def __init__(
        self,
        path: pathlib.Path,
        shapes: Sequence[tuple[str, tuple[int, ...]]],
        dtype: np.dtype,
        metadata: Mapping[str, str] | None = None,
    ):
        self._shapes, self._dtype, self._count = list(shapes), np.dtype(dtype), 0
        spelled = next(name for name, known in DTYPES.items() if known == self._dtype)
        # The header precedes the tensors, so checksums get placeholders that are overwritten at the
        # end.
        room = "0" * 8 * len(self._shapes)  # eight hexadecimal digits a tensor
        known = {"format": "pt"} | dict(metadata or {}) | {_SUMS: room}
        header: dict[str, Any] = {"__metadata__": known}
        self._sums = ""
        end = 0
        for name, shape in self._shapes:
            first, end = end, end + math.prod(shape) * self._dtype.itemsize
            header[name] = {"dtype": spelled, "shape": list(shape), "data_offsets": [first, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors start aligned
        self._sums_at = 8 + text.index(f'"{_SUMS}":"{room}'.encode()) + len(_SUMS) + 4
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def append(self, array: np.ndarray) -> None:
        """Appends the next tensor, cast to the file's dtype."""
        name, shape = self._shapes[self._count]
        if array.shape != shape:
            raise ValueError(f"tensor {name!r} has shape {array.shape}, not {shape}")
        array = np.ascontiguousarray(array, self._dtype).reshape(-1)
        self._file.write(array.view(np.uint8).data)
        self._sums += f"{zlib.crc32(array.view(np.uint8).data):08x}"
        self._count += 1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        """Closes the file.

        Raises:
          ValueError: if tensors are missing.
        """
        with self._file:
            if kind is None:
                self._file.seek(self._sums_at)
                self._file.write(self._sums.encode())
        if kind is None and self._count != len(self._shapes):
            raise ValueError(f"{len(self._shapes) - self._count} tensors were not written")
