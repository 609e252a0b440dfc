"""Transformer layers of sequential recommenders.

Three kinds of layers, chosen by name:

* "post_norm" normalises after each residual sum, as RecBole's SASRec does.
* "pre_norm" normalises the input of attention and of the feed-forward layer, as SASRec was
  published: x + dropout(g(norm(x))) (Kang and McAuley, ICDM 2018, section III.C).
* "gated" is the layer of LiGR (Borisyuk et al. 2025, arXiv 2502.03417) that eSASRec uses
  (Tikhonovich et al., RecSys 2025, arXiv 2508.06450): "pre_norm" with a SwiGLU feed-forward layer,
  and a sigmoid of each branch's input multiplies the branch before it is added.

Dimension letters: b batch, t query position, s key position, h head, k head feature, d feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.dropout import dropout
from xrec_jax.parallel.mesh import logical
from xrec_jax.recommenders.base import check_choice, check_range

KINDS = ("post_norm", "pre_norm", "gated")
_SMALL = nn.initializers.normal(0.02)
_ROTARY_BASE = 10_000.0


def rotate(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rotates pairs of features by angles in proportion to the position (arXiv 2104.09864).

    Args:
      x: `[b, t, h, k]`, k even.
      places: `[b or 1, t]` positions.
    """
    half = x.shape[-1] // 2
    rates = _ROTARY_BASE ** (-np.arange(half, dtype=np.float32) / half)
    angles = places[..., None, None].astype(jnp.float32) * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def check_sizes(owner: str, model: Any) -> None:
    """Checks the sizes that recommenders with these layers have.

    Args:
      owner: name of the recommender, for messages.
      model: has `dim`, `layers`, `heads`, `inner`, `length`, `context`, `dropout` and `block`.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    for key in ("dim", "layers", "heads", "inner", "length"):
        check_range(owner, key, getattr(model, key), 1)
    check_range(owner, "context", model.context, 0, model.length - 1)
    check_range(owner, "dropout", model.dropout, 0.0, 0.99)
    check_choice(owner, "block", model.block, KINDS)
    check_choice(owner, "dim % heads", model.dim % model.heads, (0,))


class Block(nn.Module):
    """Self-attention and feed-forward layer; see the module for the kinds.

    Initial weights are small, so that a new layer passes its input through: the last item is a good
    first prediction of the next one.

    Attributes:
      dim: features.
      heads: attention heads.
      inner: features inside the feed-forward layer.
      dropout: rate on attention weights and on both residual branches.
      kind: one of `KINDS`.
      rotary: rotate queries and keys by their positions.
    """

    dim: int
    heads: int
    inner: int
    dropout: float
    kind: str = "post_norm"
    rotary: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, query: jax.Array | None, places: jax.Array, train: bool
    ) -> jax.Array:
        """Applies the layer.

        Args:
          x: `[b, s, d]`.
          mask: `[b or 1, t, s]` bool, true if t may attend to s.
          query: `[b, t, d]`, positions to compute; None for all of `x`.
          places: `[b or 1, t]` position of each query in `x`.
          train: enable dropout.

        Returns:
          `[b, t, d]`.
        """

        def drop(x: jax.Array) -> jax.Array:
            return dropout(x, self.dropout, self.make_rng("dropout") if train else None)

        pre = self.kind != "post_norm"
        attention_norm = nn.LayerNorm(dtype=x.dtype, name="attention_norm")
        mlp_norm = nn.LayerNorm(dtype=x.dtype, name="mlp_norm")
        # Self-attention.
        residual = x if query is None else query
        source = attention_norm(x) if pre else x
        queries = source if query is None else attention_norm(query) if pre else query
        mixed = self._attention(queries, source, mask, places, drop)
        x = residual + self._gate(residual, drop(mixed), "attention_gate")
        x = x if pre else attention_norm(x)
        # Feed-forward layer.
        out = self._feed_forward(mlp_norm(x) if pre else x)
        x = x + self._gate(x, drop(out), "mlp_gate")
        return x if pre else mlp_norm(x)

    def _kernel(
        self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: jnp.dtype
    ) -> jax.Array:
        return self.param(name, logical(_SMALL, *axes), shape).astype(dtype)

    def _attention(
        self,
        queries: jax.Array,
        source: jax.Array,
        mask: jax.Array,
        places: jax.Array,
        drop: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        size, dtype = self.dim // self.heads, source.dtype
        shape, axes = (self.dim, self.heads, size), ("hidden", "heads", None)
        q_dhk, k_dhk, v_dhk = (self._kernel(name, shape, axes, dtype) for name in ("q", "k", "v"))
        o_hkd = self._kernel("out", (self.heads, size, self.dim), ("heads", None, "hidden"), dtype)
        q_bthk = jnp.einsum("btd,dhk->bthk", queries, q_dhk)
        k_bshk = jnp.einsum("bsd,dhk->bshk", source, k_dhk)
        v_bshk = jnp.einsum("bsd,dhk->bshk", source, v_dhk)
        if self.rotary:
            q_bthk = rotate(q_bthk, places)
            k_bshk = rotate(k_bshk, jnp.arange(source.shape[1])[None])
        logits = jnp.einsum("bthk,bshk->bhts", q_bthk, k_bshk) / np.sqrt(size)
        logits = jnp.where(mask[:, None], logits.astype(jnp.float32), -1e30)
        weights = drop(jax.nn.softmax(logits, axis=-1).astype(dtype))
        mixed = jnp.einsum("bhts,bshk->bthk", weights, v_bshk)
        return jnp.einsum("bthk,hkd->btd", mixed, o_hkd)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        up_df = self._kernel("up", (self.dim, self.inner), ("hidden", "inner"), x.dtype)
        down_fd = self._kernel("down", (self.inner, self.dim), ("inner", "hidden"), x.dtype)
        y = x.reshape(-1, self.dim)  # two-dimensional products fuse better
        if self.kind == "gated":
            gate_df = self._kernel("gate", (self.dim, self.inner), ("hidden", "inner"), x.dtype)
            inner = nn.silu(y @ gate_df) * (y @ up_df)
        else:
            inner = nn.gelu(y @ up_df)
        return (inner @ down_fd).reshape(x.shape)

    def _gate(self, x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
        """The branch of a "gated" layer, multiplied by its gate; of the others, unchanged."""
        if self.kind != "gated":
            return branch
        gate_dd = self._kernel(name, (self.dim, self.dim), ("hidden", None), x.dtype)
        bias = self.param(f"{name}_bias", logical(nn.initializers.zeros, None), (self.dim,))
        return nn.sigmoid(x @ gate_dd + bias.astype(x.dtype)) * branch
