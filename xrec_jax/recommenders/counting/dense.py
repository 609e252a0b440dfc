"""Recommenders whose score is no inner product: the user's state holds the score of every item."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from xrec_jax.parallel.mesh import padded_rows
from xrec_jax.recommenders.base import Recommender


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseScores(Recommender):
    """A state `[padded_items]` of scores, looked up by an item table that holds the items' numbers.

    A batch of states takes as much memory as the scores that are ranked anyway.
    """

    def numbers(self) -> jax.Array:
        """The item table `[padded_items, 1]`; float32 is exact up to 2^24 items."""
        return jnp.arange(padded_rows(self.num_items), dtype=jnp.float32)[:, None]

    def scores(self, user_state, item_table):
        return jnp.take(user_state, item_table[:, 0].astype(jnp.int32), axis=1)


def scattered(items: jax.Array, values: jax.Array, size: int, how: str) -> jax.Array:
    """Adds `values` to the entries `items` of zeros `[batch, size]`, or takes their maximum there.

    Args:
      items: `[batch, n]` int32, possibly with repeats.
      values: `[batch, n]`.
      size: number of entries.
      how: "add" or "max".
    """
    rows = jnp.arange(len(items))[:, None]
    place = jnp.zeros((len(items), size), jnp.float32).at[rows, items]
    return place.add(values) if how == "add" else place.max(values)
