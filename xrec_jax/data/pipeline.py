"""Grain pipelines: training batches as a function of the global step.

An element of a pipeline is a whole batch (this process's rows of it), built with vectorised NumPy:
per-example Python objects would cost more than the training step. The iterator's only state is
the global step, so it can be restored on any number of processes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import grain
import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.clock import clocks
from xrec_jax.data.histories import Histories

Batch = dict[str, np.ndarray]
_TABLE_CELLS = 1 << 26  # largest table of seen pairs in bytes; above it, a binary search is used


class Negatives:
    """Samples negative items as a function of seed, epoch and row.

    Args:
      histories: training events; with "uniform" sampling, a user's own items are never drawn.
      num_items: number of items in the catalogue.
      per_row: number of negatives of each row.
      sampling: "uniform" or "popularity" (in proportion to the training events).
      seed: key of all random numbers.
    """

    def __init__(
        self, histories: Histories, num_items: int, *, per_row: int, sampling: str, seed: int
    ):
        self.per_row = per_row
        self.histories = histories
        self._num_items = num_items
        self._key = rng.fold(seed, Stream.NEGATIVES)
        self._items = histories.items
        self._sampling = sampling
        if sampling == "uniform" and per_row:
            users = np.repeat(np.arange(histories.num_users, dtype=np.int64), histories.lengths)
            # Seen pairs as sorted integers, for the rejection of training items.
            self._pairs = np.unique(users * num_items + histories.items)
            if np.bincount(self._pairs // num_items, minlength=1).max() >= num_items:
                raise UserError(
                    "a user has a training event with every item, so no negative can be drawn; "
                    "use a loss without sampled negatives"
                )
            cells = histories.num_users * num_items
            self._table = np.zeros(cells, bool) if cells <= _TABLE_CELLS else None
            if self._table is not None:
                self._table[self._pairs] = True

    def reseeded(self, seed: int) -> Negatives:
        """A sampler with another key that shares the prepared tables."""
        other = copy.copy(self)
        other._key = rng.fold(seed, Stream.NEGATIVES)
        return other

    def _seen(self, pairs: np.ndarray) -> np.ndarray:
        """Marks the pairs `user * num_items + item` that are training events."""
        if self._table is not None:
            return self._table[pairs]
        place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        return self._pairs[place] == pairs

    def draw(self, epoch: int, rows: np.ndarray, user: np.ndarray) -> np.ndarray:
        """Negatives of training rows `rows` of `epoch`, whose users are `user`: `[rows, per_row]`.

        Draws that hit a seen item are repeated with the next key, so the result is uniform over
        the unseen ones.
        """
        # The counter is the global number of a negative, so it does not depend on the batch.
        counter = rows[:, None] * self.per_row + np.arange(self.per_row)
        key = rng.fold(self._key, epoch)
        if self._sampling == "popularity":
            return self._items[rng.random_integers(key, counter, len(self._items))]
        drawn = rng.random_integers(key, counter, self._num_items)
        base = user.astype(np.int64)[:, None] * self._num_items
        # Rejection sampling: only positions that hit a training item are drawn again.
        again = np.flatnonzero(self._seen(base + drawn))
        attempt = 0
        while len(again):
            attempt += 1
            drawn.flat[again] = rng.random_integers(
                rng.fold(key, attempt), counter.flat[again], self._num_items
            )
            pairs = base[again // self.per_row, 0] + drawn.flat[again]
            again = again[self._seen(pairs)]
        return drawn.astype(np.int32)


class Rows(Protocol):
    """A source of training rows."""

    @property
    def num_rows(self) -> int:
        """Number of rows of an epoch."""
        ...

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        """Training rows `rows` (int64, in [0, num_rows)) of `epoch` as arrays `[rows, ...]`."""
        ...


@dataclasses.dataclass(frozen=True)
class PairRows:
    """Rows of single events: user, item, negatives."""

    histories: Histories
    negatives: Negatives
    users: np.ndarray

    @classmethod
    def of(cls, histories: Histories, negatives: Negatives) -> PairRows:
        users = np.repeat(np.arange(histories.num_users, dtype=np.int32), histories.lengths)
        return cls(histories, negatives, users)

    @property
    def num_rows(self) -> int:
        return len(self.users)

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        batch = {"user": self.users[rows], "item": self.histories.items[rows]}
        if self.negatives.per_row:
            batch["negative"] = self.negatives.draw(epoch, rows, batch["user"])
        return batch


@dataclasses.dataclass(frozen=True)
class WindowRows:
    """Rows of history windows: of all events, each predicted once an epoch, or the latest ones.

    A user's n events have n - 1 targets, cut into pieces of `length - context`. A window ends with
    its piece and reads up to `length` events, so each target has at least `context` events before
    it, if the user has that many. The cuts shift by a random offset each epoch, as far as the
    number of pieces allows, so that an event is seen with contexts of many lengths. With `latest` a
    user has one window only, which ends with the last event: what is older is not predicted.

    Attributes:
      histories: training events.
      negatives: sampler of the negatives of a whole window.
      length: number of positions of a window.
      context: least number of events before a target in its window, below `length`.
      seed: key of the random offsets.
      user: `[num_rows]` user of each window.
      piece: `[num_rows]` index of the window among those of its user.
      clocks: whether windows have the times of their events.
      latest: whether users have their latest window only.
    """

    histories: Histories
    negatives: Negatives
    length: int
    context: int
    seed: int
    user: np.ndarray
    piece: np.ndarray
    clocks: bool = False
    latest: bool = False

    @classmethod
    def of(
        cls,
        histories: Histories,
        negatives: Negatives,
        *,
        length: int,
        context: int,
        seed: int,
        clocks: bool = False,
        latest: bool = False,
    ) -> WindowRows:
        """Plans the windows of every user."""
        pieces = -(-np.maximum(histories.lengths - 1, 0) // (length - context))
        user = np.repeat(np.arange(histories.num_users, dtype=np.int32), pieces)
        piece = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        if latest:
            user = np.flatnonzero(pieces).astype(np.int32)
            piece = pieces[user] - 1
        return cls(histories, negatives, length, context, seed, user, piece, clocks, latest)

    @property
    def num_rows(self) -> int:
        return len(self.user)

    @property
    def most_read(self) -> np.ndarray:
        """`[num_rows]` most events that each window reads in any epoch."""
        targets = self.histories.lengths[self.user] - 1
        last = np.minimum((self.piece + 1) * (self.length - self.context), targets)
        return np.minimum(last, self.length)

    def windows(self, epoch: int, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        """Windows `rows`, and the number of events that each reads.

        A batch has `history`, `target`, `weight` `[rows, length]`, maybe `negative`, and with
        `clocks` what `clock.clocks` gives.
        """
        user, piece = self.user[rows], self.piece[rows]
        targets = self.histories.lengths[user] - 1
        size = self.length - self.context
        # The pieces cover a few positions more than there are targets: the cuts may shift by that
        # slack.
        slack = -targets % size
        shift = slack  # so the last piece has `size` targets, if the user has that many
        if not self.latest:
            key = rng.fold(self.seed, Stream.WINDOWS, epoch)
            shift = rng.random_integers(key, user, slack + 1)
        # Targets of this window are first .. last - 1; target p is event p + 1 of the user.
        first = np.maximum(piece * size - shift, 0)
        last = np.minimum((piece + 1) * size - shift, targets)
        # The window ends with its piece and begins up to `length` events earlier.
        position = np.maximum(last - self.length, 0)[:, None] + np.arange(self.length)
        read = position < last[:, None]
        flat = self.histories.start[user][:, None] + np.where(read, position, 0)
        batch = {
            "history": np.where(read, self.histories.items[flat], 0).astype(np.int32),
            "target": np.where(read, self.histories.items[flat + 1], 0).astype(np.int32),
            "weight": (read & (position >= first[:, None])).astype(np.float32),
        }
        if self.negatives.per_row:
            batch["negative"] = self.negatives.draw(epoch, rows, user)
        if self.clocks:
            batch |= clocks(self.histories.seconds(flat), read)
        return batch, np.minimum(last, self.length)

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        """The batch of `windows`."""
        return self.windows(epoch, rows)[0]


class BatchSource:
    """Random-access source of batches by global step, for Grain.

    The rows of an epoch come in a keyed random order; its last incomplete batch is filled from the
    start of the same order, so every row is seen at least once an epoch.

    Args:
      rows: the source of rows.
      batch_size: global batch size.
      seed: key of the orders.
      process: index of this process.
      processes: number of processes that share a batch.

    Raises:
      UserError: if the batch cannot be split evenly, or there is no row.
    """

    def __init__(
        self, rows: Rows, *, batch_size: int, seed: int, process: int = 0, processes: int = 1
    ):
        if rows.num_rows == 0:
            raise UserError("no training example is left: every user has fewer than two events")
        if batch_size < 1 or batch_size % processes:
            raise UserError(
                f"batch_size={batch_size} must be positive and divisible by the {processes} "
                "processes"
            )
        self._rows = rows
        self._batch_size = batch_size
        self._key = rng.fold(seed, Stream.ROWS)
        # Each process loads a contiguous share of the global batch.
        local = batch_size // processes
        self._slots = np.arange(process * local, (process + 1) * local)
        self.steps_per_epoch = -(-rows.num_rows // batch_size)
        # Two, because prefetching crosses the border between epochs.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: rng.permutation(rng.fold(self._key, epoch), rows.num_rows)
        )

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, step: int) -> Mapping[str, np.ndarray]:
        epoch, index = divmod(int(step), self.steps_per_epoch)
        slots = (index * self._batch_size + self._slots) % self._rows.num_rows
        return self._rows.rows(epoch, self._order(epoch)[slots])


def iterate(source: BatchSource, *, threads: int = 1, prefetch: int = 4) -> grain.DatasetIterator:
    """Iterates over `source`, preparing batches ahead in background threads.

    Its state (`get_state`, `set_state`) is the next global step, the same on every process.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
