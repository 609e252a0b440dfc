"""Linen layers of a LLaMA. LoRA updates live in a collection of their own, `lora`."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from xrec_jax.core.dropout import dropout
from xrec_jax.llm.model import attention, quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import AXES
from xrec_jax.llm.model.rope import rotate
from xrec_jax.parallel.mesh import constrain, logical


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, `[batch, length, 1, head_dim / 2]`."""

    cos: jax.Array
    sin: jax.Array


class Cache(NamedTuple):
    """Keys `[batch, kv_heads, head_dim, slots]` and values `[batch, kv_heads, slots, head_dim]`."""

    k: jax.Array
    v: jax.Array


def join(first: Cache, second: Cache) -> Cache:
    """Places of one cache, then those of another; a `first` of one row is shared by all."""

    def both(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(a, (len(b), *a.shape[1:])), b], axis=axis)

    return Cache(both(first.k, second.k, 3), both(first.v, second.v, 2))


class Sequence(struct.PyTreeNode):
    """Tokens attend to each other: `segments` `[batch, length]`, 0 is padding.

    Attributes:
      segments: numbers of what belongs together.
      shared: whether later segments see segment 1.
    """

    segments: jax.Array
    shared: bool = struct.field(pytree_node=False, default=False)


class Extend(NamedTuple):
    """Tokens attend to what is cached and to each other.

    Attributes:
      cache: of earlier tokens; a first axis of 1 is shared by all rows.
      mask: `[batch, length, slots + length]` bool.
    """

    cache: Cache
    mask: jax.Array


class Step(NamedTuple):
    """One token a row is written into the cache and attends to it.

    Attributes:
      cache: the whole cache.
      slot: int32 scalar, where every row's token goes.
      mask: `[batch, 1, slots]` bool, the new token's slot included.
    """

    cache: Cache
    slot: jax.Array
    mask: jax.Array


Context = Sequence | Extend | Step


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
    """A kernel without bias, and the LoRA update beside it where the `lora` collection has one.

    Attributes:
      features: output size.
      axes: logical axes of the kernel.
      stddev: of the initial values.
      dtype: of the product.
      lora_dropout: on the update's input, where a `dropout` key is given.
    """

    features: int
    axes: tuple[str, str]
    stddev: float
    dtype: Any
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., features]`."""
        if self.has_variable("params", "kernel"):  # a quantised kernel is not one plain array
            kernel: Any = self.get_variable("params", "kernel")
        else:
            init = logical(nn.initializers.normal(self.stddev), *self.axes)
            kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = quantize.matmul(x, nn.unbox(kernel), self.dtype, axes=self.axes)
        if self.has_variable("lora", "a"):
            a: jax.Array = self.get_variable("lora", "a").astype(self.dtype)
            b: jax.Array = self.get_variable("lora", "b").astype(self.dtype)
            key = self.make_rng("dropout") if self.has_rng("dropout") else None
            small = quantize.matmul(dropout(x, self.lora_dropout, key), a, self.dtype)
            y = y + quantize.matmul(small, b, self.dtype)
        return y


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig
    dtype: Any
    implementation: str
    lora_dropout: float

    def _projection(self, name: str, features: int) -> Projection:
        stddev = self.config.initializer_range
        return Projection(features, AXES[name], stddev, self.dtype, self.lora_dropout, name=name)

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, context: Context
    ) -> tuple[jax.Array, Cache]:
        """`[batch, length, hidden]` -> the same, and the keys and values of these tokens."""
        config = self.config
        batch, length, hidden = x.shape
        dim, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads

        def split(name: str, count: int) -> jax.Array:
            out = self._projection(name, count * dim)(x).reshape(batch, length, count, dim)
            return constrain(out, "batch", None, "heads", None)

        q, k, v = split("q", heads), split("k", kv_heads), split("v", kv_heads)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        cache = Cache(attention.keys_for_cache(k), attention.head_major(v))
        if isinstance(context, Sequence):
            out = attention.attend(
                q, k, v, context.segments, implementation=self.implementation, shared=context.shared
            )
        elif isinstance(context, Extend):
            whole = join(context.cache, cache)
            out = attention.attend_cached(q, *whole, context.mask)
        else:
            write, slot = jax.lax.dynamic_update_slice_in_dim, context.slot
            k, v = context.cache
            cache = Cache(write(k, cache.k, slot, 3), write(v, cache.v, slot, 2))
            out = attention.attend_cached(q, *cache, context.mask)
        out = out.reshape(batch, length, heads * dim)
        return self._projection("o", hidden)(out), cache


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`."""

    config: LlamaConfig
    dtype: Any
    lora_dropout: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, hidden]` -> the same."""
        config = self.config

        def project(name: str, features: int, x: jax.Array) -> jax.Array:
            stddev, rate = config.initializer_range, self.lora_dropout
            return Projection(features, AXES[name], stddev, self.dtype, rate, name=name)(x)

        inner = config.intermediate_size
        gate, up = project("gate", inner, x), project("up", inner, x)
        both = constrain(jax.nn.silu(gate) * up, "batch", None, "inner")
        return project("down", config.hidden_size, both)


class Block(nn.Module):
    """One transformer layer.

    Attributes:
      config: the model.
      dtype: of the computation; norms, angles and softmax are float32.
      implementation: of attention.
      lora_dropout: see `Projection`.
    """

    config: LlamaConfig
    dtype: Any = jnp.float32
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
