"""The safetensors file format: checked headers, reads of parts of a tensor, streamed writes.

The format is an eight-byte length, a JSON header with each tensor's dtype, shape and byte range,
and the bytes. Reading it here rather than through the `safetensors` package keeps host memory to
the part that is asked for (mapped pages count as memory too), and tells what is wrong with a
damaged file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
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
_MAX_HEADER = 100_000_000  # the format's own limit
_CHUNK = 1 << 25  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
      file: where it lies.
      name: in that file.
      dtype: as the header spells it, such as "BF16".
      shape: its shape.
      offset: of its first byte in the file.
    """

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads rows `start` to `stop` a few at a time.

        Yields:
          The first row's number and the rows, `[rows, ...]`, in the stored dtype.

        Raises:
          UserError: if the file ends early.
        """
        dtype = DTYPES[self.dtype]
        row = math.prod(self.shape[1:]) * dtype.itemsize
        step = max(1, _CHUNK // max(row, 1))
        try:
            with self.file.open("rb", buffering=0) as file:
                for first in range(start, stop, step):
                    rows = np.empty((min(step, stop - first), *self.shape[1:]), dtype)
                    file.seek(self.offset + first * row)
                    self._fill(file, rows)
                    yield first, rows
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from error

    def _fill(self, file: Any, rows: np.ndarray) -> None:
        view = rows.reshape(-1).view(np.uint8).data
        while len(view):
            count = file.readinto(view)
            if not count:
                raise UserError(f"{self.file}: it ends inside tensor {self.name!r}")
            view = view[count:]


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """Reads the header of a safetensors file and checks it against the file's size.

    Raises:
      UserError: names the file and what is wrong: missing, no header, truncated, and so on.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > _MAX_HEADER or 8 + length > size:
                raise UserError(
                    f"{path}: not a safetensors file, or truncated: it has {size} bytes and a "
                    f"header of {length}"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file (its header is no JSON)") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON object)")
    header.pop("__metadata__", None)
    start, found, end = 8 + length, {}, 0
    for name, entry in header.items():
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            first, last = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: tensor {name!r} has a damaged header entry") from error
        if dtype in DTYPES and last - first != math.prod(shape) * DTYPES[dtype].itemsize:
            raise UserError(
                f"{path}: tensor {name!r} takes {last - first} bytes, not those of {dtype} "
                f"{list(shape)}"
            )
        if min(first, *shape, 0) < 0:
            raise UserError(f"{path}: tensor {name!r} has a damaged header entry")
        found[name] = Tensor(path, name, dtype, shape, start + first)
        end = max(end, last)
    if size != start + end:
        what = "truncated" if size < start + end else "damaged"
        raise UserError(
            f"{path}: the file is {what}: it has {size} bytes, its header promises {start + end}; "
            "copy it again"
        )
    return found


class Writer:
    """Writes a safetensors file tensor by tensor.

    Args:
      path: the file; it is complete once the context ends.
      shapes: name and shape of every tensor, in the order in which they will be appended.
      dtype: of all of them.
      metadata: text for the header; transformers wants `format`.
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
        header: dict[str, Any] = {"__metadata__": {"format": "pt"} | dict(metadata or {})}
        end = 0
        for name, shape in self._shapes:
            first, end = end, end + math.prod(shape) * self._dtype.itemsize
            header[name] = {"dtype": spelled, "shape": list(shape), "data_offsets": [first, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors start aligned
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def append(self, array: np.ndarray) -> None:
        """Writes the next tensor, cast to the file's dtype."""
        name, shape = self._shapes[self._count]
        if array.shape != shape:
            raise ValueError(f"tensor {name!r} has shape {array.shape}, not {shape}")
        array = np.ascontiguousarray(array, self._dtype).reshape(-1)
        self._file.write(array.view(np.uint8).data)
        self._count += 1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Closes the file.

        Raises:
          ValueError: if tensors are missing.
        """
        self._file.close()
        if kind is None and self._count != len(self._shapes):
            raise ValueError(f"{len(self._shapes) - self._count} tensors were not written")
