"""Several history windows in one training row, so that short histories are not mostly padding."""

from __future__ import annotations

import dataclasses

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.packing import pack
from xrec_jax.data.pipeline import Batch, WindowRows


@dataclasses.dataclass(frozen=True)
class PackedWindows:
    """Rows for `data.pipeline.BatchSource` that hold the windows of `WindowRows` side by side.

    Which windows share a row is the same in every epoch and for every seed; only the events in a
    window change.

    Attributes:
      windows: the windows; without negatives of their own.
      width: positions of a row, at least the windows' length.
      member: `[windows]` int64 numbers of windows, row after row.
      start: `[num_rows + 1]`; row r holds the windows `member[start[r]:start[r + 1]]`.
    """

    windows: WindowRows
    width: int
    member: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, windows: WindowRows, width: int) -> PackedWindows:
        """Packs all windows.

        Raises:
          UserError: if `width` is below the windows' length, or they have negatives of their own.
        """
        if width < windows.length:
            raise UserError(f"rows of {width} positions cannot hold windows of {windows.length}")
        if windows.negatives.per_row:
            raise UserError("windows that share a row cannot have negatives of their own")
        # In a drawn order, since users who follow each other in a file are often alike, and
        # windows of one row are always in the same batch.
        order = rng.permutation(rng.fold(0, Stream.PACKING), windows.num_rows)
        bins = pack(windows.most_read[order].tolist(), width)
        member = order[np.concatenate([np.zeros(0, np.int64), *bins]).astype(np.int64)]
        start = np.concatenate([[0], np.cumsum([len(numbers) for numbers in bins], dtype=np.int64)])
        return cls(windows, width, member, start)

    @property
    def num_rows(self) -> int:
        return len(self.start) - 1

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        """Packed rows: the events of their windows, and the window and place of each position.

        Beside what `WindowRows.rows` gives, all `[rows, width]`: `segment`, 1, 2, ... for the
        windows of a row and 0 for padding; and `place`, the position within the window.
        """
        size = self.start[rows + 1] - self.start[rows]
        row = np.repeat(np.arange(len(rows)), size)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
        values, read = self.windows.windows(epoch, self.member[self.start[rows][row] + slot])
        # Windows lie one behind the other: each begins where those before it in its row end.
        before = np.cumsum(read) - read
        begin = row * self.width + before - before[np.cumsum(size) - size][row]
        column = np.arange(self.windows.length)
        inside = column < read[:, None]
        values |= {
            "segment": np.broadcast_to(slot[:, None].astype(np.int32) + 1, inside.shape),
            "place": np.broadcast_to(column.astype(np.int32), inside.shape),
        }
        position = (begin[:, None] + column)[inside]
        batch = {}
        for name, array in values.items():
            flat = np.zeros(len(rows) * self.width, array.dtype)
            flat[position] = array[inside]
            batch[name] = flat.reshape(len(rows), self.width)
        return batch
