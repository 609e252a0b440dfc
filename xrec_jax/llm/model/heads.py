"""Small trained parts around a frozen base: soft prompts from a user's state, and a value head."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import logical


def init_projector(
    key: jax.Array, *, user_dim: int, inner: int, vectors: int, hidden: int
) -> dict[str, Any]:
    """A fresh projector, whose vectors are all 0; each array with its logical axes.

    Args:
      key: of the first layer.
      user_dim: size of a recommender's user state.
      inner: size between the layers.
      vectors: soft vectors a prompt.
      hidden: size of a token's embedding.

    Raises:
      UserError: on a size that is not positive.
    """
    sizes = dict(user_dim=user_dim, inner=inner, vectors=vectors, hidden=hidden)  # noqa: C408
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"soft prompt: {name}={size} must be positive")
    zeros = nn.initializers.zeros
    first = nn.initializers.lecun_normal()
    return {
        "first": {
            "kernel": logical(first, None, "inner")(key, (user_dim, inner)),
            "bias": logical(zeros, "inner")(key, (inner,)),
        },
        "second": {
            "kernel": logical(zeros, "inner", None, "embed")(key, (inner, vectors, hidden)),
            "bias": logical(zeros, None, "embed")(key, (vectors, hidden)),
        },
    }


def num_vectors(projector: Any) -> int:
    """Soft vectors that a projector makes a prompt."""
    return projector["second"]["bias"].shape[0]


def soft_vectors(projector: Any, placeholder: jax.Array, user: jax.Array) -> jax.Array:
    """Vectors that stand in a prompt for a user's state: the placeholder's embedding plus a change.

    Args:
      projector: parameters, unboxed.
      placeholder: `[hidden]` embedding of the token that they replace.
      user: `[n, user_dim]` float32 user states.

    Returns:
      `[n, vectors, hidden]` float32; the placeholder's embedding itself from a fresh projector.
    """
    first, second = projector["first"], projector["second"]
    wide = jax.nn.gelu(user.astype(jnp.float32) @ first["kernel"] + first["bias"])
    change = jnp.einsum("ni,ikh->nkh", wide, second["kernel"]) + second["bias"]
    return placeholder.astype(jnp.float32) + change


def init_value_head(key: jax.Array, *, hidden: int) -> dict[str, Any]:
    """A fresh value head, which says 0 of every state; each array with its logical axes."""
    zeros = nn.initializers.zeros
    return {"kernel": logical(zeros, "embed")(key, (hidden,)), "bias": logical(zeros)(key, ())}


def state_values(head: Any, states: jax.Array) -> jax.Array:
    """Values `[...]` float32 of states `[..., hidden]`; the product is float32 too."""
    states = states.astype(jnp.float32)
    return jnp.einsum("...h,h->...", states, head["kernel"], precision="highest") + head["bias"]
