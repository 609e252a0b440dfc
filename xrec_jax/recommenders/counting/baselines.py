"""Baselines that rank items by counts, for users who come back: frequency, recency, transitions.

Where most events are repeats (check-ins), a recommender has to be held against what the user did
most often, did last, or what others do next. None of them is trained, and each says in a line what
it ranks by; further items follow by popularity.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.mesh import padded_rows
from xrec_jax.recommenders.base import Frozen, Tables, check_range, register
from xrec_jax.recommenders.counting.dense import DenseScores, scattered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(DenseScores):
    """Ranks by what `counted` says, then by popularity.

    Attributes:
      length: number of latest history items that are counted.
    """

    length: int = 1024

    batches = "none"

    def __post_init__(self) -> None:
        check_range("baseline", "length", self.length, 1)

    @property
    def history_length(self) -> int:
        return self.length

    @property
    def narrow_histories(self) -> bool:
        return True

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """Share of each item of the training events, below 1: the order of what is not counted."""
        del user
        count = np.bincount(item, minlength=padded_rows(self.num_items))
        share = (count / (len(item) + 1)).astype(np.float32)
        return Frozen({"share": share}, {"share": (None,)})

    def init(self, key):
        del key
        return {}

    def loss(self, params, frozen, batch, key):
        raise NotImplementedError("a baseline is not trained")

    def tables(self, params, frozen):
        return Tables(self.numbers(), None, frozen)

    def user_state(self, params, tables, batch):
        real = jnp.arange(batch["history"].shape[1]) < batch["length"][:, None]
        counted = self.counted(batch["history"], real, tables.extra)
        return counted + tables.extra["share"]

    @abc.abstractmethod
    def counted(
        self, history: jax.Array, real: jax.Array, frozen: dict[str, jax.Array]
    ) -> jax.Array:
        """Scores `[batch, items]` by which items are ranked, 0 for those without one.

        Args:
          history: `[batch, length]`, oldest first.
          real: `[batch, length]` bool, false for padding.
          frozen: frozen arrays.
        """


@register("frequency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Frequency(Counted):
    """The user's own most frequent items; of equally frequent ones the latest."""

    def counted(self, history, real, frozen):
        share, length = frozen["share"], history.shape[1]
        count = scattered(history, real.astype(jnp.float32), len(share), "add")
        place = jnp.arange(length) + 1.0
        # A visit counts more than any order of visits, which counts more than popularity.
        return (length + 1) * count + scattered(history, place * real, len(share), "max")


@register("recency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recency(Counted):
    """The last item again, then the one before it, and so on."""

    def counted(self, history, real, frozen):
        place = jnp.arange(history.shape[1]) + 1.0
        return scattered(history, place * real, len(frozen["share"]), "max")


@register("transitions")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transitions(Counted):
    """What most often came right after the last item, in the training events of all users.

    Attributes:
      length: number of latest history items; the last one decides.
      successors: most successors of an item that are kept.
    """

    length: int = 1
    successors: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("transitions", "successors", self.successors, 1)

    def frozen(self, user, item):
        rows = padded_rows(self.num_items)
        same = user[1:] == user[:-1]
        before, after = item[:-1][same], item[1:][same]
        pair, count = np.unique(before.astype(np.int64) * rows + after, return_counts=True)
        before, after = pair // rows, pair % rows
        # Successors of an item by falling count; the place of each among them.
        order = np.lexsort((after, -count, before))
        before, after, count = before[order], after[order], count[order]
        place = np.arange(len(before)) - np.searchsorted(before, before)
        width = min(self.successors, int(place.max(initial=0)) + 1)
        kept = place < width
        table = np.zeros((2, rows, width), np.int32)
        table[:, before[kept], place[kept]] = after[kept], count[kept]
        arrays = dict(super().frozen(user, item).arrays)
        arrays |= {"after": table[0], "count": table[1]}
        return Frozen(arrays, {"share": (None,), "after": (None, None), "count": (None, None)})

    def counted(self, history, real, frozen):
        last = jnp.take_along_axis(history, jnp.maximum(real.sum(1) - 1, 0)[:, None], axis=1)[:, 0]
        count = frozen["count"][last] * real[:, :1]
        return scattered(
            frozen["after"][last], count.astype(jnp.float32), len(frozen["share"]), "add"
        )
