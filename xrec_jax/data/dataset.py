"""In-memory form of a recommendation data set, independent of its file format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Interactions in file order, one entry an event.

    Attributes:
      user: `[n]` int32, row of the user in `Dataset.user_ids`.
      item: `[n]` int32, row of the item in `Dataset.item_ids`.
      timestamp: `[n]` int64 (exact) or float64, in the file's own unit; None if the file has none.
      rating: `[n]` float32; None if the file has none.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray | None = None
    rating: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Interactions:
        """Returns the events at `rows` (indices or a boolean mask), in that order."""
        return Interactions(
            user=self.user[rows],
            item=self.item[rows],
            timestamp=None if self.timestamp is None else self.timestamp[rows],
            rating=None if self.rating is None else self.rating[rows],
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions with the names and descriptions of their users and items.

    Attributes:
      name: for logs and reports.
      interactions: every event; with a given split, the concatenation of its events.
      user_ids: `[num_users]` unicode array, the file's own ids; a user's row is its index.
      item_ids: `[num_items]` unicode array of item ids, likewise.
      users: `[num_users]` rows aligned with `user_ids`, null where the file had no row; or None.
      items: `[num_items]` rows aligned with `item_ids`, as `users`; or None.
      splits: with a given split, the events of "train", "valid" and "test"; else None.
      title: name of the column of `items` that holds titles; None if there is none.
      reviews: review texts by (user row, item row).
      notes: counts worth reporting, for example `{"duplicates_dropped": 12}`.
    """

    name: str
    interactions: Interactions
    user_ids: np.ndarray
    item_ids: np.ndarray
    users: pl.DataFrame | None = None
    items: pl.DataFrame | None = None
    splits: Mapping[str, Interactions] | None = None
    title: str | None = None
    reviews: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)


@dataclasses.dataclass(frozen=True)
class Split:
    """Events for training, model selection and the final figure.

    Attributes:
      train: training events, sorted by user, then time, ties in file order.
      valid: held-out events for hyper-parameters and early stopping.
      test: held-out events for the reported figures.
      tied_users: number of users whose first test event shares its timestamp with the event before
        it, so that file order decides which is tested; 0 if no time was used.
      kind: one of `splits.KINDS`; "" if unknown.
      dropped_users: number of users whose held-out events were dropped, as none of their events is
        in training.
    """

    train: Interactions
    valid: Interactions
    test: Interactions
    tied_users: int = 0
    kind: str = ""
    dropped_users: int = 0
