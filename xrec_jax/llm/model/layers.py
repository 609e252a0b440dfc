"""Linen layers of a LLaMA. LoRA updates are a separate collection, `lora`."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from xrec_jax.core.dropout import dropout
from xrec_jax.llm.model import attention, products, quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import AXES
from xrec_jax.llm.model.rope import rotate
from xrec_jax.parallel.mesh import constrain, logical

# Projections of one input that may come as one kernel, see `generation.fused`: their group, and the
# parts in the order of the columns.
FUSED = {"qkv": ("attn", ("q", "k", "v")), "gate_up": ("mlp", ("gate", "up"))}


class Rotation(NamedTuple):
    """Cosine and sine of the rotary angles, `[batch, length, 1, head_dim / 2]`."""

    cos: jax.Array
    sin: jax.Array


class Cache(NamedTuple):
    """Keys `[batch, kv_heads, head_dim, slots]` and values `[batch, kv_heads, slots, head_dim]`."""

    k: jax.Array
    v: jax.Array


def join(first: Cache, second: Cache) -> Cache:
    """Concatenates the slots of two caches; a `first` of one row is shared by all rows."""

    def both(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(a, (len(b), *a.shape[1:])), b], axis=axis)

    return Cache(both(first.k, second.k, 3), both(first.v, second.v, 2))


class FullAttention(struct.PyTreeNode):
    """Causal self-attention of packed sequences.

    Attributes:
      segments: `[batch, length]` int32 segment numbers; 0 is padding.
      shared: let later segments see segment 1.
    """

    segments: jax.Array
    shared: bool = struct.field(pytree_node=False, default=False)


class PrefixAttention(NamedTuple):
    """Attention of new tokens to a cached prefix and to earlier ones of each other.

    Attributes:
      cache: cache of the prefix; a first axis of 1 is shared by all rows.
      mask: `[batch, length, slots + length]` bool.
    """

    cache: Cache
    mask: jax.Array


class DecodeStep(NamedTuple):
    """Attention of one new token a row, which is written into the cache first.

    Attributes:
      cache: the whole cache.
      slot: int32 scalar, slot of every row's token.
      mask: `[batch, 1, slots]` bool, the new token's slot included.
    """

    cache: Cache
    slot: jax.Array
    mask: jax.Array


Context = FullAttention | PrefixAttention | DecodeStep


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., hidden]` -> the same."""
        init = logical(nn.initializers.ones, None)
        scale = self.param("scale", init, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale.astype(jnp.float32)).astype(x.dtype)


class Projection(nn.Module):
    """Linear layer without bias, plus the LoRA update if the `lora` collection has one.

    Attributes:
      features: output size.
      axes: logical axes of the kernel.
      stddev: standard deviation of the initial values.
      dtype: dtype of the product.
      lora_dropout: dropout rate of the update's input, if a `dropout` key is given.
    """

    features: int
    axes: tuple[str, str]
    stddev: float
    dtype: DTypeLike
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., features]`."""
        if self.has_variable(
            "params", "kernel"
        ):  # a quantised kernel is a tree, which `param` would refuse
            kernel: Any = self.get_variable("params", "kernel")
        else:
            init = logical(nn.initializers.normal(self.stddev), *self.axes)
            kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = quantize.matmul(x, nn.unbox(kernel), self.dtype, axes=self.axes)
        if self.has_variable("lora", "a"):
            # y = x W + dropout(x) A B, with alpha / rank already in B.
            a: jax.Array = self.get_variable("lora", "a").astype(self.dtype)
            b: jax.Array = self.get_variable("lora", "b").astype(self.dtype)
            key = self.make_rng("dropout") if self.has_rng("dropout") else None
            x = dropout(x, self.lora_dropout, key)
            if jax.default_backend() == "cpu":
                rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
                update = products.low_rank(rows, a, b).reshape(y.shape)
            else:
                update = quantize.matmul(quantize.matmul(x, a, self.dtype), b, self.dtype)
            y = y + update
        return y


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig
    dtype: DTypeLike
    implementation: str
    lora_dropout: float

    def _projection(self, name: str, features: int) -> Projection:
        stddev, axes = self.config.initializer_range, AXES[name if name in AXES else "q"]
        return Projection(features, axes, stddev, self.dtype, self.lora_dropout, name=name)

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, context: Context
    ) -> tuple[jax.Array, Cache]:
        """`[batch, length, hidden]` -> the same, and the keys and values of these tokens."""
        config = self.config
        batch, length, hidden = x.shape
        dim, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads

        def split(out: jax.Array, count: int) -> jax.Array:
            out = out.reshape(batch, length, count, dim)
            return constrain(out, "batch", None, "heads", None)

        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        if "qkv" in self.variables.get("params", {}):
            whole = self._projection("qkv", sum(counts.values()) * dim)(x)
            parts = jnp.split(whole, [heads * dim, (heads + kv_heads) * dim], axis=-1)
        else:
            parts = [self._projection(name, n * dim)(x) for name, n in counts.items()]
        q, k, v = (split(part, n) for part, n in zip(parts, counts.values(), strict=True))
        # Keys are cached rotated, so their slot carries no position.
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        cache = Cache(attention.keys_for_cache(k), attention.head_major(v))
        if isinstance(context, FullAttention):
            out = attention.attend(
                q, k, v, context.segments, implementation=self.implementation, shared=context.shared
            )
        elif isinstance(context, PrefixAttention):
            joined = join(context.cache, cache)
            out = attention.attend_prefix(q, *joined, context.mask)
        else:
            write, slot = jax.lax.dynamic_update_slice_in_dim, context.slot
            k, v = context.cache  # may be wider than the model's dtype, see `Llama.cache_dtype`
            new = Cache(cache.k.astype(k.dtype), cache.v.astype(v.dtype))
            cache = Cache(write(k, new.k, slot, 3), write(v, new.v, slot, 2))
            out = attention.attend_cached(q, *cache, context.mask)
        out = out.reshape(batch, length, heads * dim)
        return self._projection("o", hidden)(out), cache


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`."""

    config: LlamaConfig
    dtype: DTypeLike
    lora_dropout: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, hidden]` -> the same."""
        config = self.config

        def project(name: str, features: int, x: jax.Array) -> jax.Array:
            stddev, rate = config.initializer_range, self.lora_dropout
            axes = AXES[name if name in AXES else "gate"]
            return Projection(features, axes, stddev, self.dtype, rate, name=name)(x)

        mlp_dim = config.intermediate_size
        if "gate_up" in self.variables.get("params", {}):
            gate, up = jnp.split(project("gate_up", 2 * mlp_dim, x), 2, axis=-1)
        else:
            gate, up = project("gate", mlp_dim, x), project("up", mlp_dim, x)
        gated = constrain(jax.nn.silu(gate) * up, "batch", None, "inner")
        return project("down", config.hidden_size, gated)


class Block(nn.Module):
    """One transformer layer.

    Attributes:
      config: the model.
      dtype: dtype of the computation; norms, angles and softmax are float32.
      implementation: attention implementation.
      lora_dropout: see `Projection`.
    """

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32
    implementation: str = "auto"
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, context: Context
    ) -> tuple[jax.Array, Cache]:
        """`[batch, length, hidden]` -> the same, and this layer's keys and values."""
        config = self.config
        attn = Attention(config, self.dtype, self.implementation, self.lora_dropout, name="attn")
        out, cache = attn(RMSNorm(config.rms_eps, name="attn_norm")(x), rotation, context)
        x = constrain(x + out, "batch", None, None)
        mlp = FeedForward(config, self.dtype, self.lora_dropout, name="mlp")
        x = x + mlp(RMSNorm(config.rms_eps, name="mlp_norm")(x))
        return constrain(x, "batch", None, None), cache
