"""Several history windows in one training row, so that short histories are not mostly padding."""

from __future__ import annotations

import dataclasses

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.packing import pack
from xrec_jax.data.pipeline import Batch, WindowRows

_NONE = -1


@dataclasses.dataclass(frozen=True)
class PackedWindows:
    """Rows for `data.pipeline.BatchSource` that hold the windows of `WindowRows` side by side.

    Which windows share a row does not change from epoch to epoch, only what each of them holds.

    Attributes:
      windows: the windows; without negatives of their own.
      width: positions of a row, at least the windows' length.
      members: `[num_rows, most]` windows of each row, -1 where a row has fewer.
    """

    windows: WindowRows
    width: int
    members: np.ndarray

    @classmethod
    def of(cls, windows: WindowRows, width: int) -> PackedWindows:
        """Packs all windows.

        Raises:
          UserError: if a window does not fit, or windows have negatives of their own.
        """
        if width < windows.length:
            raise UserError(f"rows of {width} positions cannot hold windows of {windows.length}")
        if windows.negatives.per_row:
            raise UserError("windows that share a row cannot have negatives of their own")
        # What a window reads varies with the epoch if its user has several; this is the most.
        room = np.minimum(windows.histories.lengths[windows.user] - 1, windows.length)
        bins = pack(room.tolist(), width)
        members = np.full((len(bins), max(map(len, bins), default=0)), _NONE, np.int64)
        for row, numbers in enumerate(bins):
            members[row, : len(numbers)] = numbers
        return cls(windows, width, members)

    @property
    def num_rows(self) -> int:
        return len(self.members)

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        """Rows of what the windows hold, and which one each position belongs to.

        Beside what `WindowRows.rows` gives, all `[rows, width]`: `segment`, 1, 2, ... for the
        windows of a row and 0 for padding; and `place`, the position within the window.
        """
        chosen = self.members[rows]
        row, slot = np.nonzero(chosen != _NONE)
        number = chosen[row, slot]
        values = self.windows.rows(epoch, number)
        count = self.windows.num_read(epoch, number)
        # Windows lie one behind the other: each begins where those before it in its row end.
        ends = np.cumsum(count)
        before_row = np.concatenate([[0], ends])[np.searchsorted(row, np.arange(len(rows)))]
        begin = row * self.width + ends - count - before_row[row]
        column = np.arange(self.windows.length)
        inside = column < count[:, None]
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
