"""BPR-MF: matrix factorisation trained with the pairwise BPR loss (Rendle et al., UAI 2009)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xrec_jax.recommenders import losses
from xrec_jax.recommenders.base import Recommender, Tables, check_range, register
from xrec_jax.recommenders.layers import Table


class Factors(nn.Module):
    """A user table and an item table."""

    num_users: int
    num_items: int
    dim: int
    stddev: float

    def setup(self) -> None:
        self.user = Table(self.num_users, self.dim, self.stddev)
        self.item = Table(self.num_items, self.dim, self.stddev)

    def __call__(self, batch: dict) -> tuple:
        """Vectors of the batch's users `[b, d]`, items `[b, d]` and negatives `[b, n, d]`."""
        vectors = self.user(batch["user"]), self.item(batch["item"])
        return (*vectors, self.item(batch["negative"])) if "negative" in batch else vectors

    def tables(self) -> Tables:
        return Tables(item=self.item.padded(), user=self.user.padded())


def squared_norm(*vectors) -> jnp.ndarray:
    """Mean over the batch of half the summed squares of all `vectors` `[b, ...]`."""
    return sum(0.5 * jnp.sum(jnp.square(v)) / v.shape[0] for v in vectors)


@register("bpr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BPRMF(Recommender):
    """Matrix factorisation, score `<p_u, q_i>`.

    Attributes:
      dim: features of a user or item.
      stddev: standard deviation of the initial values.
      l2: weight of half the squared norm of a batch's vectors, averaged over pairs.
      negatives: negative items a pair; the loss is the mean over them.
    """

    dim: int = 64
    stddev: float = 0.1
    l2: float = 0.0
    negatives: int = 1

    def __post_init__(self) -> None:
        check_range("bpr", "dim", self.dim, 1)
        check_range("bpr", "l2", self.l2, 0.0)
        check_range("bpr", "negatives", self.negatives, 1)

    @property
    def negatives_per_row(self) -> int:
        return self.negatives

    @property
    def net(self) -> Factors:
        return Factors(self.num_users, self.num_items, self.dim, self.stddev)

    def init(self, key):
        return self.net.init(key, method="tables")["params"]

    def loss(self, params, frozen, batch, key):
        del frozen, key
        vectors: Any = self.net.apply({"params": params}, batch)
        user, item, negative = vectors
        positive_score = jnp.einsum("bd,bd->b", user, item)
        negative_score = jnp.einsum("bd,bnd->bn", user, negative)
        loss = jnp.mean(losses.bpr(positive_score, negative_score))
        if self.l2:
            loss += self.l2 * squared_norm(user, item, negative)
        return loss, {}

    def tables(self, params, frozen):
        del frozen
        return self.net.apply({"params": params}, method="tables")

    def user_state(self, params, tables, batch):
        return self.net.apply({"params": params}, batch["user"], method=lambda m, u: m.user(u))
