"""GGUF files: a checked header, and reads of single rows, dequantised.

A file is a header (counts, metadata, descriptions of the tensors) and the tensors' bytes, all
little-endian; the format is specified in `docs/gguf.md` of ggml. The `gguf` package names the types
and dequantises. Its own reader is not used: it maps the whole file, whose pages count as memory,
makes objects for every token of the vocabulary (SmolLM2: 2.3 s and 159 MB), and trusts the lengths
in the header.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import check_scheme, is_local
from xrec_jax.llm.io.gguf.names import Key

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)  # 1 has other lengths; written in August 2023 only
TYPES = tuple("F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split())
_STORED = {  # types that are no blocks are read as they are
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_SCALARS = "B b H h I i f ? * * Q q d".split()  # `struct` formats by type; 8 and 9 are no scalars
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # default
_MOST_ENTRIES = 100_000  # metadata entries or tensors
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1 << 16  # bytes; the specification's limit of a key
_MAX_HEADER = 1 << 26  # bytes; vocabularies of 256,000 tokens take about 16 MB
_CHUNK = 1 << 25  # bytes of dequantised rows at once
_OLDER = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # GGML, GGMF, GGJT and GGLA, as they lie in a file
_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a GGUF file.

    Attributes:
      file: path of the file.
      name: name in that file.
      dtype: type of the stored numbers, one of `TYPES`, such as "Q4_K".
      shape: shape of the tensor, its rows last.
      offset: offset of its first byte in the file.
      row_bytes: bytes of a row.
    """

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def array_dtype(self) -> np.dtype:
        """Dtype of the rows that are read: float32 for blocks."""
        return _STORED.get(self.dtype, np.dtype(np.float32))

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads rows `start` to `stop` (along the first axis) in chunks, dequantised.

        Yields:
          Number of the first row, and the rows, `[rows, ...]` of `array_dtype`.

        Raises:
          UserError: if the file ends early, or a value is not finite.
        """
        step = max(1, _CHUNK // (4 * math.prod(self.shape[1:])))
        # A vector is one row in the file; it is never of blocks, so its numbers lie apart.
        vector = len(self.shape) == 1
        size = self.array_dtype.itemsize if vector else self.row_bytes * math.prod(self.shape[1:-1])
        try:
            with self.file.open("rb", buffering=0) as file:
                for first in range(start, stop, step):
                    count = min(step, stop - first)
                    data = np.empty(count * size, np.uint8)
                    file.seek(self.offset + first * size)
                    self._fill(file, data)
                    rows = self._rows(data).reshape(count, *self.shape[1:])
                    self._check_finite(rows, first)
                    yield first, rows
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from error

    def read(self) -> np.ndarray:
        """Reads the whole tensor; see `chunks`."""
        return np.concatenate([rows for _, rows in self.chunks(0, self.shape[0])])

    def _fill(self, file: io.RawIOBase, data: np.ndarray) -> None:
        view = data.data
        while len(view):
            count = file.readinto(view)
            if not count:
                raise UserError(f"{self.file}: it ends inside tensor {self.name!r}")
            view = view[count:]

    def _rows(self, data: np.ndarray) -> np.ndarray:
        if self.dtype in _STORED:
            return data.view(_STORED[self.dtype])
        import gguf

        kind = gguf.GGMLQuantizationType[self.dtype]
        with np.errstate(all="ignore"):  # damaged scales are reported below
            return gguf.quants.dequantize(data.reshape(-1, self.row_bytes), kind)

    def _check_finite(self, rows: np.ndarray, first: int) -> None:
        """Refuses NaN and infinity: a single one makes every output NaN."""
        finite = np.isfinite(rows)
        if not finite.all():
            bad = first + int(np.argmin(finite.reshape(len(rows), -1).all(axis=1)))
            raise UserError(
                f"{self.file}: tensor {self.name!r} holds a value that is not finite (row {bad}); "
                "the weights are damaged"
            )


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """Header of a GGUF file.

    Attributes:
      path: path of the file.
      metadata: values by key; arrays of texts are lists, arrays of numbers NumPy arrays.
      tensors: tensors by name.
    """

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def is_gguf(path: Any) -> bool:
    """True for a path, but for that of a directory, that is named or begins as a GGUF file."""
    named = str(path).lower().endswith(SUFFIX)
    if not is_local(path):
        return named
    path = pathlib.Path(path)
    try:
        if named or not path.is_file():
            return named and not path.is_dir()
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # the reader that comes next reports it
        return False


def read_file(path: Any) -> GgufFile:
    """Reads the header of a GGUF file and checks it against the file's size.

    Raises:
      UserError: names the file and the fault: missing, another format, truncated, absurd lengths,
        an unknown type of tensor, and so on.
    """
    check_scheme(path)
    if not is_local(path):
        raise UserError(f"{path}: GGUF files are read from a local disk; copy it there first")
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            return _Header(path, file).read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class _Header:
    """Reader of a header, which takes no length for granted.

    Args:
      path: path of the file, for messages.
      file: the file, opened at its start.
    """

    def __init__(self, path: pathlib.Path, file: io.BufferedReader):
        self._path, self._file = path, file
        self._size, self._at = path.stat().st_size, 0

    def read(self) -> GgufFile:
        """Reads metadata and descriptions of the tensors."""
        self._check_kind()
        tensors, entries = self._number("Q"), self._number("Q")
        for count, what in ((tensors, "tensors"), (entries, "metadata entries")):
            if count > _MOST_ENTRIES:
                raise self._damaged(f"its header promises {count} {what}")

        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text(_LONGEST_NAME, "a key of the metadata")
            if key in metadata:
                raise self._damaged(f"its metadata has {key[:80]!r} twice")
            metadata[key] = self._value(self._number("I"), key)
        parts = metadata.get(Key.SPLIT_COUNT, 1)
        if parts != 1:
            raise UserError(
                f"{self._path}: one of {parts} files of a split model; join them with `llama-gguf-"
                "split --merge` of llama.cpp"
            )

        described = [self._description() for _ in range(tensors)]
        return GgufFile(self._path, metadata, self._place(described, _alignment(self, metadata)))

    def _check_kind(self) -> None:
        start = self._file.read(len(_POINTER))
        if start == _POINTER:
            raise UserError(
                f"{self._path}: only a pointer of Git LFS, not the file itself; fetch it with "
                "`git lfs pull`"
            )
        if start[:4] in _OLDER:
            raise UserError(
                f"{self._path}: an older format of llama.cpp, before GGUF; convert the model again"
            )
        if start[:4] != MAGIC:
            raise UserError(f"{self._path}: not a GGUF file: it begins with {start[:4]!r}")
        self._file.seek(len(MAGIC))
        self._at = len(MAGIC)
        version = self._number("I")
        if version and not version & 0xFFFF:
            raise UserError(
                f"{self._path}: a big-endian GGUF file, which is not supported; convert the model "
                "again as little-endian"
            )
        if version not in VERSIONS:
            raise UserError(
                f"{self._path}: GGUF version {version} is not supported; only "
                f"{' and '.join(map(str, VERSIONS))} are"
            )

    def damaged_key(self, key: str, value: object) -> UserError:
        """Error for a value of the metadata that cannot be."""
        return self._damaged(f"{key}={value!r:.80} is not possible")

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self._path}: the file is damaged or truncated: {what}; copy it again")

    def _bytes(self, count: int, what: str) -> bytes:
        """Reads bytes; their number is checked before memory is allocated."""
        if count > self._size - self._at:
            raise self._damaged(f"{what} takes {count} bytes, {self._size - self._at} are left")
        if self._at + count > _MAX_HEADER:
            raise UserError(
                f"{self._path}: {what} ends {self._at + count} bytes into the file; headers above "
                f"{_MAX_HEADER} bytes are not read"
            )
        data = self._file.read(count)
        if len(data) < count:  # cut off since it was opened
            raise self._damaged(f"it ends inside {what}")
        self._at += count
        return data

    def _number(self, kind: str) -> Any:
        format = f"<{kind}"
        data = self._bytes(struct.calcsize(format), "its header")
        return struct.unpack(format, data)[0]

    def _text(self, longest: int, what: str) -> str:
        length = self._number("Q")
        if length > longest:
            raise self._damaged(f"{what} has a length of {length} bytes")
        try:
            return self._bytes(length, what).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is no text in UTF-8") from error

    def _value(self, kind: int, key: str) -> Any:
        what = f"{key[:80]!r}"
        if kind == _STRING:
            return self._text(_MAX_HEADER, what)
        if kind == _ARRAY:
            return self._array(what)
        return self._number(self._scalar(kind, what))

    def _scalar(self, kind: int, what: str) -> str:
        if kind >= len(_SCALARS) or kind in (_STRING, _ARRAY):
            raise self._damaged(f"{what} has a value of unknown type {kind}")
        return _SCALARS[kind]

    def _array(self, what: str) -> list[str] | np.ndarray:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            left = self._size - self._at
            if 8 * count > left:  # every text has a length of 8 bytes
                raise self._damaged(f"{what} has {count} texts, {left} bytes are left")
            return [self._text(_MAX_HEADER, what) for _ in range(count)]
        dtype = np.dtype(self._scalar(kind, what)).newbyteorder("<")
        return np.frombuffer(self._bytes(count * dtype.itemsize, what), dtype)

    def _description(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, type, shape and offset of a tensor."""
        name = self._text(_LONGEST_NAME, "the name of a tensor")
        what = f"tensor {name[:80]!r}"
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"{what} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        if not 0 < math.prod(shape) < 1 << 50:
            raise self._damaged(f"{what} has shape {list(shape)}")
        kind, offset = self._number("I"), self._number("Q")
        return name, self._type(kind, what), shape, offset

    def _type(self, kind: int, what: str) -> str:
        import gguf

        try:
            name = gguf.GGMLQuantizationType(kind).name
        except ValueError:
            name = f"unknown ({kind})"
        if name not in TYPES:
            raise UserError(
                f"{self._path}: {what} is of type {name}, which cannot be read; valid: "
                f"{', '.join(TYPES)}"
            )
        return name

    def _place(
        self, described: list[tuple[str, str, tuple[int, ...], int]], alignment: int
    ) -> dict[str, Tensor]:
        """Checks that the tensors follow each other up to the end of the file."""
        import gguf

        start = -(-self._at // alignment) * alignment
        end = 0
        tensors: dict[str, Tensor] = {}
        for name, dtype, shape, offset in described:
            what = f"tensor {name[:80]!r}"
            if name in tensors:
                raise self._damaged(f"it has {what} twice")
            numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
            if shape[-1] % numbers or (len(shape) == 1 and dtype not in _STORED):
                raise self._damaged(f"{what} of shape {list(shape)} cannot be of type {dtype}")
            # As llama.cpp does: each tensor begins where the one before it ends, aligned.
            if offset != -(-end // alignment) * alignment:
                raise self._damaged(f"{what} does not lie behind the tensor before it")
            row_bytes = shape[-1] // numbers * size
            end = offset + math.prod(shape[:-1]) * row_bytes
            tensors[name] = Tensor(self._path, name, dtype, shape, start + offset, row_bytes)
        if described and self._size < start + end:
            raise UserError(
                f"{self._path}: the file is truncated: it has {self._size} bytes, its header "
                f"promises {start + end}; copy it again"
            )
        return tensors


def _alignment(header: _Header, metadata: dict[str, Any]) -> int:
    """Alignment of the tensors, a power of two."""
    value = metadata.get(Key.ALIGNMENT, _ALIGNMENT)
    if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
        raise header.damaged_key(Key.ALIGNMENT, value)
    return value
