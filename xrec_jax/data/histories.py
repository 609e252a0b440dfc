"""Interaction histories: the items of each user in order of time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.clock import clocks, ticks_per_second
from xrec_jax.data.dataset import Interactions


@dataclasses.dataclass(frozen=True)
class Histories:
    """Items of every user in order of time, one flat array.

    Attributes:
      items: `[events]` int32, user after user.
      start: `[num_users + 1]` int64; user u's items are `items[start[u]:start[u + 1]]`.
      when: `[events]` time of each event in the file's own unit; None if there is none.
    """

    items: np.ndarray
    start: np.ndarray
    when: np.ndarray | None = None

    @classmethod
    def of(cls, splits: Sequence[Interactions], num_users: int) -> Histories:
        """Groups events by user; a user's events of later `splits` follow those of earlier ones.

        Within a split the order of rows is kept, so each must be sorted by time.
        """
        user = np.concatenate([events.user for events in splits])
        item = np.concatenate([events.item for events in splits])
        times = [events.timestamp for events in splits if events.timestamp is not None]
        when = np.concatenate(times) if len(times) == len(splits) else None
        start = np.zeros(num_users + 1, np.int64)
        np.cumsum(np.bincount(user, minlength=num_users), out=start[1:])
        # A single sorted split needs no sort.
        if len(splits) == 1 and (np.diff(user) >= 0).all():
            return cls(item.astype(np.int32, copy=False), start, when)
        order = np.argsort(user, kind="stable")
        return cls(item[order].astype(np.int32), start, None if when is None else when[order])

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
        if not len(self.items):
            return np.full((len(users), width), fill, np.int32)
        position, inside = self._last(users, width, end)
        return np.where(inside, self.items[position], np.int32(fill))

    def clocks(
        self, users: np.ndarray, width: int, *, end: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Times of the events that `padded` gives; see `clock.clocks`.

        Raises:
          UserError: if the events have no times.
        """
        position, inside = self._last(users, width, end)
        return clocks(self.seconds(position), inside)

    @functools.cached_property
    def _ticks(self) -> int:
        """Units of `when` a second."""
        return 1 if self.when is None else ticks_per_second(self.when)

    def seconds(self, position: np.ndarray) -> np.ndarray:
        """Seconds since 1970 of the events at `position`, float64.

        Raises:
          UserError: if the events have no times.
        """
        if self.when is None:
            raise UserError(
                "the recommender reads the times of events, and these have none; choose another "
                "recommender, or data with times"
            )
        return self.when[position] / self._ticks

    def _last(
        self, users: np.ndarray, width: int, end: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of the last `width` events in `items`, and which of them exist."""
        end = self.start[users + 1] if end is None else end
        first = np.maximum(self.start[users], end - width)
        position = first[:, None] + np.arange(width)
        inside = position < end[:, None]
        return np.minimum(position, max(len(self.items) - 1, 0)), inside
