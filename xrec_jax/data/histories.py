"""Interaction histories: the items of each user in order of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xrec_jax.data.dataset import Interactions


@dataclasses.dataclass(frozen=True)
class Histories:
    """Items of every user in order of time, one flat array.

    Attributes:
      items: `[events]` int32, user after user.
      start: `[num_users + 1]` int64; user u's items are `items[start[u]:start[u + 1]]`.
    """

    items: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, splits: Sequence[Interactions], num_users: int) -> Histories:
        """Groups events by user; a user's events of later `splits` follow those of earlier ones.

        Within a split the order of rows is kept, so each must be sorted by time.
        """
        user = np.concatenate([events.user for events in splits])
        item = np.concatenate([events.item for events in splits])
        start = np.zeros(num_users + 1, np.int64)
        np.cumsum(np.bincount(user, minlength=num_users), out=start[1:])
        # A single sorted split needs no sort.
        if len(splits) == 1 and (np.diff(user) >= 0).all():
            return cls(item.astype(np.int32, copy=False), start)
        return cls(item[np.argsort(user, kind="stable")].astype(np.int32), start)

    @property
    def num_users(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> np.ndarray:
        """`[num_users]` events of each user."""
        return np.diff(self.start)

    def padded(
        self, users: np.ndarray, width: int, fill: int = 0, *, end: np.ndarray | None = None
    ) -> np.ndarray:
        """The last `width` items of `users`, oldest first, `fill` behind: `[users, width]`.

        Args:
          users: `[users]` rows.
          width: number of items.
          fill: what stands behind a shorter history.
          end: `[users]`, where in `items` each history ends; by default behind its last item.
        """
        end = self.start[users + 1] if end is None else end
        first = np.maximum(self.start[users], end - width)
        position = first[:, None] + np.arange(width)
        inside = position < end[:, None]
        if not len(self.items):
            return np.full((len(users), width), fill, np.int32)
        items = self.items[np.minimum(position, len(self.items) - 1)]
        return np.where(inside, items, np.int32(fill))
