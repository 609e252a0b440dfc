"""Rotary position embedding (arXiv 2104.09864), with the scalings of LLaMA models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.llm.model.config import LlamaConfig


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """Rotary angle of one position for each pair of features: `[head_dim / 2]` float32.

    "linear" scaling divides every angle by `factor` (arXiv 2306.15595). "dynamic" scaling changes
    the base only for sequences beyond `max_positions` (depending on their length, so that cached
    keys would have to be rotated again); those are refused, and shorter ones are unaffected. In
    Llama 3's scaling wavelengths longer than `original_max_positions / low_freq_factor` are
    stretched by `factor`, those shorter than `original_max_positions / high_freq_factor` are kept,
    and those between are interpolated (Llama 3.1, arXiv 2407.21783, and its published code).
    """
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (1.0 / np.float32(config.rope_theta) ** pairs).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return (plain / np.float32(scaling.factor)).astype(np.float32)
    wavelength = 2 * np.pi / plain
    original = scaling.original_max_positions
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 for high frequencies (kept), 0 for low ones (scaled), linear between.
    kept = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - kept) * plain / scaling.factor + kept * plain).astype(np.float32)


def rotations(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, always in float32: bf16 cannot resolve large positions.

    Args:
      config: the model.
      positions: `[batch, length]` int32.

    Returns:
      Two arrays `[batch, length, 1, head_dim / 2]`.
    """
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates feature i together with feature `i + head_dim / 2` (the layout of Hugging Face).

    Args:
      x: `[batch, length, heads, head_dim]`.
      cos: from `rotations`.
      sin: from `rotations`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
