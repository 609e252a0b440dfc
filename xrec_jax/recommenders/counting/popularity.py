"""Popularity baseline: items are ranked by their number of training events."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.mesh import padded_rows
from xrec_jax.recommenders.base import Frozen, Recommender, Tables, register


@register("popularity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Popularity(Recommender):
    """Popularity baseline: scores are event counts; nothing is learned."""

    batches = "none"

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        del user
        count = np.bincount(item, minlength=padded_rows(self.num_items)).astype(np.float32)
        return Frozen({"count": count[:, None]}, {"count": ("table_rows", None)})

    def init(self, key):
        del key
        return {}

    def loss(self, params, frozen, batch, key):
        raise ValueError("popularity is counted, not trained")

    def tables(self, params, frozen):
        return Tables(item=frozen["count"])

    def user_state(self, params, tables, batch):
        return jnp.ones((batch["user"].shape[0], 1), jnp.float32)
