"""SASRec: a causal transformer over the history (Kang and McAuley, ICDM 2018).

All positions of a window are trained at once: position t predicts item t + 1, so a user's history
takes one forward pass a window instead of one a prefix. What the field has found since to matter
more than the architecture are options:

* the loss: cross entropy over the catalogue, or over thousands of sampled items (Klenitskiy and
  Vasilev, RecSys 2023, arXiv 2309.07602), or calibrated binary cross entropy (gSASRec, arXiv
  2308.07192);
* where the negatives come from: the catalogue, popular items, or the batch, corrected for their
  sampling (logQ; Yi et al., RecSys 2019);
* the initial item table, drawn or from co-occurrence counts (`cooccurrence`);
* the layers (`blocks`) and the positions, learned or rotary.

Dimension letters: b batch, t query position, s key position, d feature.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.dropout import dropout
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.lookup import take_rows
from xrec_jax.parallel.mesh import constrain, logical, padded_rows
from xrec_jax.recommenders import candidates, losses
from xrec_jax.recommenders.base import (
    Frozen,
    Recommender,
    Tables,
    check_choice,
    check_range,
    register,
)
from xrec_jax.recommenders.blocks import Block, check_sizes
from xrec_jax.recommenders.cooccurrence import cooccurrence, spectral_vectors
from xrec_jax.recommenders.layers import Table

_CHOICES = {
    "objective": ("full_softmax", "sampled_softmax", "bce", "gbce"),
    "negatives_per": ("", "position", "window", "batch"),
    "sampler": ("", "uniform", "popularity", "in_batch"),
    "logq": (True, False),
    "windows": ("all", "latest"),
    "item_init": ("normal", "cooccurrence"),
    "positions": ("learned", "rotary"),
    "dtype": ("float32", "bfloat16"),
}


class Transformer(nn.Module):
    """SASRec's network: item table, positions and `Block`s.

    Items and learned positions are summed. With layers that normalise their output the sum is
    normalised before the first one, with the others the states behind the last one.
    """

    num_items: int
    length: int
    dim: int
    layers: int
    heads: int
    inner: int
    dropout: float
    stddev: float
    dtype: jnp.dtype
    block: str = "post_norm"
    positions: str = "learned"

    def setup(self) -> None:
        self.item = Table(self.num_items, self.dim, self.stddev)
        if self.positions == "learned":
            self.position = self.param(
                "position",
                logical(nn.initializers.normal(self.stddev), "positions", "hidden"),
                (self.length, self.dim),
            )
        sizes = (self.dim, self.heads, self.inner, self.dropout)
        rotary = self.positions == "rotary"
        self.blocks = [Block(*sizes, self.block, rotary) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()

    def _finish(self, x: jax.Array) -> jax.Array:
        return x if self.block == "post_norm" else self.norm(x).astype(self.dtype)

    def __call__(
        self,
        history: jax.Array,
        length: jax.Array | None,
        train: bool = False,
        packed: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Computes the states of windows.

        Args:
          history: `[b, s]` int32 items, oldest first, padded at the end.
          length: `[b]` number of items; if given, only the state after the last item is computed,
            `[b, d]`. None: the states after every item, `[b, s, d]`.
          train: enable dropout.
          packed: the segment of each position, and its place there, both `[b, s]`, of rows that
            hold several windows: a window sees itself only. With `length` None.
        """
        steps = history.shape[1]
        items = self.item(history)
        if length is not None:  # otherwise a user without history would have seen item 0
            items = jnp.where((jnp.arange(steps) < length[:, None])[..., None], items, 0)
        x = items
        if self.positions == "learned":
            x += self.position[:steps] if packed is None else self.position[packed[1]]
        x = self.norm(x) if self.block == "post_norm" else x
        x = constrain(x.astype(self.dtype), "batch", None, "hidden")
        x = dropout(x, self.dropout, self.make_rng("dropout") if train else None)
        causal = jnp.tril(jnp.ones((steps, steps), bool))[None]
        places = jnp.arange(steps)[None]
        if length is None:
            mask = causal
            if packed is not None:
                mask &= packed[0][:, :, None] == packed[0][:, None]
            for block in self.blocks:
                x = block(x, mask, None, places, train)
            return self._finish(x)
        for block in self.blocks[:-1]:
            x = block(x, causal, None, places, train)
        # For ranking the last layer needs only the last position of each row.
        last = jnp.maximum(length - 1, 0)[:, None]
        query = jnp.take_along_axis(x, last[..., None], axis=1)
        seen = (places <= last)[:, None]
        return self._finish(self.blocks[-1](x, seen, query, last, train)[:, 0])


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
      windows: "all", which predict every event; or "latest", the last one of each user alone, which
        predicts the last `length - context` events. SASRec was published so, with `context` 0.
      packing: positions of a training row that several windows share, at least `length`; 0: every
        window has a row of `length` positions, which short histories leave mostly empty. Needs
        negatives of the whole batch, or none. `train.batch_size` counts rows: with packing it is to
        be divided by about the number of windows of a row.
      dropout: dropout rate of all layers.
      stddev: standard deviation of the initial item and position vectors.
      item_init: initial item table: "normal", drawn; or "cooccurrence", the spectral embedding of
        all training histories, the same for every seed (`cooccurrence`), which saves epochs. A
        `stddev` around .1 suits it; that of the positions rises, too.
      objective: "full_softmax"; "sampled_softmax"; "bce"; or "gbce".
      negatives: number of sampled items, of the other losses than "full_softmax".
      negatives_per: which positions share them: "position" (none), "window", or "batch" (all; made
        for thousands, see `candidates`). "": a window of "sampled_softmax", else a position.
      sampler: "uniform" (but for "batch", items that the user has no training event with);
        "popularity"; or "in_batch", targets of the batch, for "batch" only. "": popularity for
        "sampled_softmax", else uniform.
      logq: lower the scores of "sampled_softmax" by the logarithm of how often an item is sampled.
      calibration: t of "gbce", from 0 to 1.
      block: kind of the layers, see `blocks`.
      positions: "learned", added to the items; or "rotary", in attention.
      dtype: "float32" or "bfloat16" for activations; parameters and loss stay float32.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    length: int = 50
    context: int = 0
    windows: str = "all"
    packing: int = 0
    dropout: float = 0.5
    stddev: float = 0.02
    item_init: str = "normal"
    objective: str = "full_softmax"
    negatives: int = 1
    negatives_per: str = ""
    sampler: str = ""
    logq: bool = True
    calibration: float = 0.75
    block: str = "post_norm"
    positions: str = "learned"
    dtype: str = "float32"

    batches = "sequences"

    def __post_init__(self) -> None:
        check_sizes("sasrec", self)
        check_range("sasrec", "negatives", self.negatives, 1)
        check_range("sasrec", "calibration", self.calibration, 0.0, 1.0)
        for key, choices in _CHOICES.items():
            check_choice("sasrec", key, getattr(self, key), choices)
        if self.positions == "rotary":
            check_choice("sasrec", "dim / heads % 2", self.dim // self.heads % 2, (0,))
        if self.sampler == "in_batch" and self.negatives_per != "batch":
            raise UserError("sasrec: sampler='in_batch' needs negatives_per='batch'")
        check_range("sasrec", "packing", self.packing, 0)
        if 0 < self.packing < self.length:
            raise UserError(
                f"sasrec: packing={self.packing} must be 0 or at least length={self.length}"
            )
        if self.packing and self.negatives_per_row:
            raise UserError(
                f"sasrec: packing={self.packing} with objective={self.objective!r} needs "
                "negatives_per='batch'"
            )

    @property
    def history_length(self) -> int:
        return self.length

    @property
    def narrow_histories(self) -> bool:
        return True

    @property
    def min_context(self) -> int:
        return self.context

    @property
    def latest_windows(self) -> bool:
        return self.windows == "latest"

    @property
    def packing_length(self) -> int:
        return self.packing

    @property
    def _shared_by(self) -> str:
        """Which positions share negatives; "" if there are none."""
        if self.objective == "full_softmax":
            return ""
        own = "window" if self.objective == "sampled_softmax" else "position"
        return self.negatives_per or own

    @property
    def _sampler(self) -> str:
        own = "popularity" if self.objective == "sampled_softmax" else "uniform"
        return self.sampler or own

    @property
    def negatives_per_row(self) -> int:
        """Those of a batch are drawn on the device, in the loss."""
        a_window = {"window": 1, "position": self.length - self.context}
        return a_window.get(self._shared_by, 0) * self.negatives

    @property
    def sampling(self):
        return "popularity" if self._sampler == "popularity" else "uniform"

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
            self.block,
            self.positions,
        )

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """Log share of each item of the training events, and their running count, where needed."""
        by_share = self._shared_by and self._sampler != "uniform"
        if not by_share or (self.objective != "sampled_softmax" and self._shared_by != "batch"):
            return Frozen({}, {})
        if self.latest_windows and self._shared_by == "batch":  # targets only, as in a batch
            behind = np.searchsorted(user, user, side="right") - np.arange(len(user))
            item = item[behind <= self.length - self.context]
        count = np.bincount(item, minlength=padded_rows(self.num_items))
        arrays = {"log_q": np.log(np.maximum(count, 1e-30) / len(item)).astype(np.float32)}
        if self._shared_by == "batch" and self._sampler == "popularity":
            arrays["upto"] = np.cumsum(count).astype(np.int32)
        return Frozen(arrays, dict.fromkeys(arrays, (None,)))

    def init(self, key):
        history = jnp.zeros((1, self.length), jnp.int32)
        return self.net.init(key, history, None)["params"]

    def initial_rows(self, user, item):
        if self.item_init == "normal":
            return {}
        rows, vectors = spectral_vectors(cooccurrence(user, item, self.num_items), self.dim)
        return {("item", "embedding"): (rows, vectors * np.float32(self.stddev))}

    def loss(self, params, frozen, batch, key):
        packed = (batch["segment"], batch["place"]) if self.packing else None
        states: Any = self.net.apply(
            {"params": params}, batch["history"], None, True, packed, rngs={"dropout": key}
        )
        target, weight = batch["target"], batch["weight"]
        # Only the last piece of a window has targets: a row of its own skips the other positions.
        if self.context and not self.packing:
            piece = self.length - self.context
            first = jnp.minimum(jnp.argmax(weight > 0, axis=1), self.context)
            place = first[:, None] + jnp.arange(piece)
            target, weight = (jnp.take_along_axis(x, place, axis=1) for x in (target, weight))
            states = jnp.take_along_axis(states, place[..., None], axis=1)
        table = params["item"]["embedding"]
        if self.objective == "full_softmax":
            total = losses.full_softmax(states, table, target, weight, self.num_items)
        elif self._shared_by == "batch":
            total = self._against_shared(states, table, target, weight, frozen, key)
        else:
            values = self._against_own(states, table, target, batch["negative"], frozen)
            total = jnp.sum(values * weight)
        return total / losses.total_weight(weight), {}

    def _against_shared(self, states, table, target, weight, frozen, key):
        """Weighted sum of the loss against negatives of the whole batch."""
        key = jax.random.fold_in(key, 1)  # the key itself is that of dropout
        if self._sampler == "uniform":
            drawn = candidates.uniform(key, self.negatives, self.num_items)
        elif self._sampler == "popularity":
            drawn = candidates.popular(key, self.negatives, frozen["upto"], frozen["log_q"])
        else:
            drawn = candidates.in_batch(key, self.negatives, target, weight, frozen["log_q"])
        kind = "softmax" if self.objective == "sampled_softmax" else self.objective
        loss = candidates.Loss(kind, self.logq, self._power)
        own, vectors = take_rows(table, target), take_rows(table, drawn.item)
        return candidates.summed_loss(loss, states, own, vectors, target, weight, drawn)

    @property
    def _power(self) -> float:
        return losses.gbce_power(self.calibration, self.negatives, self.num_items)

    def _against_own(self, states, table, target, ids, frozen):
        """Loss `[b, t]` against negatives that the batch brings along."""
        states = states.astype(jnp.float32)
        positive = jnp.einsum("btd,btd->bt", states, take_rows(table, target))
        vectors = take_rows(table, ids)
        if self._shared_by == "position":
            ids = ids.reshape(*target.shape, self.negatives)
            vectors = vectors.reshape(*ids.shape, self.dim)
            negative = jnp.einsum("btd,btnd->btn", states, vectors)
        else:
            ids = ids[:, None]
            negative = jnp.einsum("btd,bnd->btn", states, vectors)
        if self.objective == "bce":
            return losses.binary_cross_entropy(positive, negative)
        if self.objective == "gbce":
            total = jnp.sum(jax.nn.softplus(negative), axis=-1)
            return losses.generalised_bce(positive, total, self.negatives, self._power)
        if not self.logq:  # as if every item were sampled as often as there are negatives
            log_q = jnp.float32(-np.log(self.negatives))
        elif self._sampler == "uniform":
            log_q = jnp.float32(-np.log(self.num_items))
        else:
            log_q = frozen["log_q"][ids]
        return losses.sampled_softmax(positive, negative, log_q, ids == target[..., None])

    def tables(self, params, frozen):
        return Tables(item=params["item"]["embedding"])

    def user_state(self, params, tables, batch):
        return self.net.apply({"params": params}, batch["history"], batch["length"])

    def training_state(self, params, tables, batch, key):
        return self.net.apply(
            {"params": params}, batch["history"], batch["length"], True, rngs={"dropout": key}
        )
