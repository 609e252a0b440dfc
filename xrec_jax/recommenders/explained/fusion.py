"""Modules that encode the parts of an explanation and add them to a user state.

Dimension letters: p part (why, why not), e encoding, c code, d feature of a state; `...` rows.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from xrec_jax.parallel.mesh import logical


def drop_parts(key: jax.Array, present: jax.Array, part: float, row: float) -> jax.Array:
    """Drops parts at random.

    Args:
      key: random key.
      present: `[..., parts]` bool.
      part: probability of dropping a part, independently.
      row: probability of dropping all parts of a row.

    Returns:
      `[..., parts]` bool, the remaining parts.
    """
    part_key, row_key = jax.random.split(key)
    dropped = jax.random.bernoulli(part_key, part, present.shape)
    return present & ~(dropped | jax.random.bernoulli(row_key, row, (*present.shape[:-1], 1)))


def _dense(features: int, *, zero: bool = False, bias: bool = True) -> nn.Dense:
    """A small dense layer, replicated on every device."""
    kernel = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=logical(kernel, "hidden", "features"),
        bias_init=logical(nn.initializers.zeros, "features"),
    )


class Autoencoder(nn.Module):
    """Autoencoder with one layer down to a code in (-1, 1) and one layer up.

    Attributes:
      encoding: features of an encoding.
      bottleneck: features of a code.
    """

    encoding: int
    bottleneck: int

    def setup(self) -> None:
        self.down = _dense(self.bottleneck)
        self.up = _dense(self.encoding)

    def encode(self, x: jax.Array) -> jax.Array:
        """Encodes `[..., e]` -> `[..., c]`."""
        return jnp.tanh(self.down(x))

    def decode(self, code: jax.Array) -> jax.Array:
        """Decodes `[..., c]` -> `[..., e]`."""
        return self.up(code)


class GatedResidual(nn.Module):
    """Two-layer residual of the codes, scaled by a gate for each feature of the state.

    The second layer is initialised to zero, so that it adds nothing at first, and has no bias, so
    that the residual of the codes minus that of the null codes is one product.

    Attributes:
      dim: features of a state.
      hidden: features between the layers.
    """

    dim: int
    hidden: int

    def setup(self) -> None:
        self.first = _dense(self.hidden)
        self.second = _dense(self.dim, zero=True, bias=False)
        self.gate = _dense(self.dim)

    def __call__(
        self, state: jax.Array, codes: jax.Array, null: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the change of a state, and the gate.

        Args:
          state: `[..., d]`.
          codes: `[..., p * c]`.
          null: `[p * c]`, codes with a residual of zero by definition.

        Returns:
          `gate * (residual(codes) - residual(null))` and the gate, both `[..., d]`.
        """
        gate = nn.sigmoid(self.gate(jnp.concatenate([state, codes], axis=-1)))
        change = self.second(nn.gelu(self.first(codes)) - nn.gelu(self.first(null)))
        return gate * change, gate


class Fusion(nn.Module):
    """Autoencoder, null codes and gated residual.

    Attributes:
      parts: number of parts of an explanation.
      encoding: features of a part's encoding.
      bottleneck: features of a code.
      dim: features of a state.
      hidden: features inside the residual.
    """

    parts: int
    encoding: int
    bottleneck: int
    dim: int
    hidden: int

    def setup(self) -> None:
        self.autoencoder = Autoencoder(self.encoding, self.bottleneck)
        self.residual = GatedResidual(self.dim, self.hidden)
        zeros = logical(nn.initializers.zeros, None, "features")
        self.null = self.param("null", zeros, (self.parts, self.bottleneck))

    def __call__(self, state: jax.Array, encoding: jax.Array, present: jax.Array) -> tuple:
        """Runs all modules once, for initialisation."""
        codes = self.encode(encoding)
        return self.fuse(state, codes, present), self.decode(codes)

    def encode(self, encoding: jax.Array) -> jax.Array:
        """Standardised encodings `[..., p, e]` -> codes `[..., p, c]`."""
        return self.autoencoder.encode(encoding)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes `[..., p, c]` -> encodings `[..., p, e]`."""
        return self.autoencoder.decode(codes)

    def fuse(
        self, state: jax.Array, codes: jax.Array, present: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Adds an explanation to a state.

        Args:
          state: `[..., d]` float32.
          codes: `[..., p, c]`.
          present: `[..., p]` bool; an absent part has the null code.

        Returns:
          The fused state, its difference from `state` and the gate, all `[..., d]`. Rows without
          parts keep their state to the last bit.
        """
        codes = jnp.where(present[..., None], codes, self.null)
        flat = codes.reshape(*codes.shape[:-2], -1)
        change, gate = self.residual(state, flat, self.null.reshape(-1))
        # Both residuals of a row without parts are equal mathematically, but products of
        # different shapes may round differently.
        some = jnp.any(present, axis=-1, keepdims=True)
        return jnp.where(some, state + change, state), jnp.where(some, change, 0.0), gate
