"""SASRec: a causal transformer over the history (Kang and McAuley, ICDM 2018).

Item and position vectors are summed and normalised, each layer is normalised after its residual
sums. All positions of a window are trained at once: position t predicts item t + 1, so a user's
history takes one forward pass a window instead of one a prefix.

Dimension letters: b batch, t query position, s key position, h head, k head feature, d feature.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.dropout import dropout
from xrec_jax.parallel.lookup import take_rows
from xrec_jax.parallel.mesh import constrain, logical, padded_rows
from xrec_jax.recommenders import losses
from xrec_jax.recommenders.base import (
    Frozen,
    Recommender,
    Tables,
    check_choice,
    check_range,
    register,
)
from xrec_jax.recommenders.layers import Table

_SMALL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Self-attention and feed-forward layer, normalised after each residual sum.

    Initial weights are small, so that a new layer passes its input through: the last item is a good
    first prediction of the next one.

    Attributes:
      dim: features.
      heads: attention heads.
      inner: features inside the feed-forward layer.
      dropout: rate on attention weights and on both residual branches.
    """

    dim: int
    heads: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, query: jax.Array | None, train: bool
    ) -> jax.Array:
        """Applies the layer.

        Args:
          x: `[b, s, d]`.
          mask: `[b or 1, t, s]` bool, true if t may attend to s.
          query: `[b, t, d]`, positions to compute; None for all of `x`.
          train: enable dropout.

        Returns:
          `[b, t, d]`.
        """
        key = (lambda: self.make_rng("dropout")) if train else (lambda: None)
        size = self.dim // self.heads

        def kernel(name, shape, axes):
            return self.param(name, logical(_SMALL, *axes), shape).astype(x.dtype)

        split = (self.dim, self.heads, size), ("hidden", "heads", None)
        q_dhk, k_dhk, v_dhk = (kernel(name, *split) for name in ("q", "k", "v"))
        o_hkd = kernel("out", (self.heads, size, self.dim), ("heads", None, "hidden"))
        up_df = kernel("up", (self.dim, self.inner), ("hidden", "inner"))
        down_fd = kernel("down", (self.inner, self.dim), ("inner", "hidden"))

        # Self-attention.
        query = x if query is None else query
        q_bthk = jnp.einsum("btd,dhk->bthk", query, q_dhk)
        k_bshk = jnp.einsum("bsd,dhk->bshk", x, k_dhk)
        v_bshk = jnp.einsum("bsd,dhk->bshk", x, v_dhk)
        logits = jnp.einsum("bthk,bshk->bhts", q_bthk, k_bshk) / np.sqrt(size)
        logits = jnp.where(mask[:, None], logits.astype(jnp.float32), -1e30)
        weights = dropout(jax.nn.softmax(logits, axis=-1).astype(x.dtype), self.dropout, key())
        mixed = jnp.einsum("bhts,bshk->bthk", weights, v_bshk)
        out = dropout(jnp.einsum("bthk,hkd->btd", mixed, o_hkd), self.dropout, key())
        # Feed-forward layer.
        x = nn.LayerNorm(dtype=x.dtype, name="attention_norm")(query + out)
        y = x.reshape(-1, self.dim)  # two-dimensional products fuse better
        y = dropout((nn.gelu(y @ up_df) @ down_fd).reshape(x.shape), self.dropout, key())
        return nn.LayerNorm(dtype=x.dtype, name="mlp_norm")(x + y)


class Transformer(nn.Module):
    """SASRec's network: item table, learned positions and `Block`s."""

    num_items: int
    length: int
    dim: int
    layers: int
    heads: int
    inner: int
    dropout: float
    stddev: float
    dtype: jnp.dtype

    def setup(self) -> None:
        self.item = Table(self.num_items, self.dim, self.stddev)
        self.position = self.param(
            "position",
            logical(nn.initializers.normal(self.stddev), "positions", "hidden"),
            (self.length, self.dim),
        )
        self.blocks = [
            Block(self.dim, self.heads, self.inner, self.dropout) for _ in range(self.layers)
        ]
        self.norm = nn.LayerNorm()

    def __call__(
        self, history: jax.Array, length: jax.Array | None, train: bool = False
    ) -> jax.Array:
        """Computes the states of a window.

        Args:
          history: `[b, s]` int32 items, oldest first, padded at the end.
          length: `[b]` number of items; if given, only the state after the last item is computed,
            `[b, d]`. None: the states after every item, `[b, s, d]`.
          train: enable dropout.
        """
        steps = history.shape[1]
        items = self.item(history)
        if length is not None:  # otherwise a user without history would have seen item 0
            items = jnp.where((jnp.arange(steps) < length[:, None])[..., None], items, 0)
        x = self.norm(items + self.position[:steps])
        x = constrain(x.astype(self.dtype), "batch", None, "hidden")
        x = dropout(x, self.dropout, self.make_rng("dropout") if train else None)
        causal = jnp.tril(jnp.ones((steps, steps), bool))[None]
        if length is None:
            for block in self.blocks:
                x = block(x, causal, None, train)
            return x
        for block in self.blocks[:-1]:
            x = block(x, causal, None, train)
        # For ranking the last layer needs only the last position of each row.
        last = jnp.maximum(length - 1, 0)[:, None]
        query = jnp.take_along_axis(x, last[..., None], axis=1)
        seen = (jnp.arange(steps)[None] <= last)[:, None]
        return self.blocks[-1](x, seen, query, train)[:, 0]


@register("sasrec")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SASRec(Recommender):
    """Self-attentive sequential recommendation with a tied item table.

    Attributes:
      dim: features, divisible by `heads`.
      layers: transformer layers.
      heads: attention heads.
      inner: features inside the feed-forward layer.
      length: number of history items read.
      context: least number of items before a target in its training window, below `length`; a
        larger one takes more windows an epoch.
      dropout: dropout rate of all layers.
      stddev: standard deviation of the initial item and position vectors.
      objective: "full_softmax"; "sampled_softmax", corrected for popularity sampling; or "bce".
      negatives: sampled items a window ("sampled_softmax") or a position ("bce").
      dtype: "float32" or "bfloat16" for activations; parameters and loss stay float32.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    length: int = 50
    context: int = 0
    dropout: float = 0.5
    stddev: float = 0.02
    objective: str = "full_softmax"
    negatives: int = 1
    dtype: str = "float32"

    batches = "sequences"

    def __post_init__(self) -> None:
        for key in ("dim", "layers", "heads", "inner", "length", "negatives"):
            check_range("sasrec", key, getattr(self, key), 1)
        check_range("sasrec", "context", self.context, 0, self.length - 1)
        check_range("sasrec", "dropout", self.dropout, 0.0, 0.99)
        check_choice(
            "sasrec", "objective", self.objective, ("full_softmax", "sampled_softmax", "bce")
        )
        check_choice("sasrec", "dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("sasrec", "dim % heads", self.dim % self.heads, (0,))

    @property
    def history_length(self) -> int:
        return self.length

    @property
    def min_context(self) -> int:
        return self.context

    @property
    def negatives_per_row(self) -> int:
        a_window = {"full_softmax": 0, "sampled_softmax": 1, "bce": self.length - self.context}
        return a_window[self.objective] * self.negatives

    @property
    def sampling(self):
        return "popularity" if self.objective == "sampled_softmax" else "uniform"

    @property
    def net(self) -> Transformer:
        return Transformer(
            self.num_items,
            self.length,
            self.dim,
            self.layers,
            self.heads,
            self.inner,
            self.dropout,
            self.stddev,
            jnp.dtype(self.dtype),
        )

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """Log sampling probability of each item, its share of the training events."""
        del user
        if self.objective != "sampled_softmax":
            return Frozen({}, {})
        count = np.bincount(item, minlength=padded_rows(self.num_items))
        log_q = np.log(np.maximum(count, 1e-30) / len(item)).astype(np.float32)
        return Frozen({"log_q": log_q}, {"log_q": (None,)})

    def init(self, key):
        history = jnp.zeros((1, self.length), jnp.int32)
        return self.net.init(key, history, None)["params"]

    def loss(self, params, frozen, batch, key):
        states: Any = self.net.apply(
            {"params": params}, batch["history"], None, True, rngs={"dropout": key}
        )
        table, target, weight = params["item"]["embedding"], batch["target"], batch["weight"]
        if self.context:  # only the last piece of a window has targets: skip the other positions
            piece = self.length - self.context
            first = jnp.minimum(jnp.argmax(weight > 0, axis=1), self.context)
            place = first[:, None] + jnp.arange(piece)
            target, weight = (jnp.take_along_axis(x, place, axis=1) for x in (target, weight))
            states = jnp.take_along_axis(states, place[..., None], axis=1)
        if self.objective == "full_softmax":
            total = losses.full_softmax(states, table, target, weight, self.num_items)
            return total / losses.total_weight(weight), {}
        states = states.astype(jnp.float32)
        positive = jnp.einsum("btd,btd->bt", states, take_rows(table, target))
        negative_ids = batch["negative"]
        vectors = take_rows(table, negative_ids)
        if self.objective == "bce":
            vectors = vectors.reshape(*target.shape, self.negatives, self.dim)
            negative = jnp.einsum("btd,btnd->btn", states, vectors)
            values = losses.binary_cross_entropy(positive, negative)
        else:
            log_q = frozen["log_q"]
            values = losses.sampled_softmax(
                positive,
                jnp.einsum("btd,bnd->btn", states, vectors),
                log_q[negative_ids][:, None],
                negative_ids[:, None] == target[..., None],
            )
        return losses.weighted_mean(values, weight), {}

    def tables(self, params, frozen):
        return Tables(item=params["item"]["embedding"])

    def user_state(self, params, tables, batch):
        return self.net.apply({"params": params}, batch["history"], batch["length"])

    def training_state(self, params, tables, batch, key):
        return self.net.apply(
            {"params": params}, batch["history"], batch["length"], True, rngs={"dropout": key}
        )
