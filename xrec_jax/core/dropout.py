"""Dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout that draws one random byte an element instead of a 32-bit word.

    On a CPU random bits are a visible part of a small model's step; where the last dimension is a
    multiple of 4, one word serves four elements. The rate is met to within 1/512, and the scale
    corrects for what is really kept.

    Args:
      x: `[..., features]`.
      rate: share of elements set to zero, 0 to below 1.
      key: None switches dropout off.
    """
    # Elements whose random byte lies below `keep` survive: the keep probability is keep / 256.
    keep = max(1, round((1.0 - rate) * 256))
    if key is None or keep == 256:
        return x
    if x.shape[-1] % 4:
        octets = jax.random.bits(key, x.shape, jnp.uint8)
    else:
        # A bitcast splits each 32-bit word into four bytes along a new last axis.
        words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 4), jnp.uint32)
        octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape)
    return jnp.where(octets < keep, x * jnp.asarray(256 / keep, x.dtype), 0)
