"""Trained heads around a frozen base: soft prompts from user states, and a value head."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import PyTree
from xrec_jax.parallel.mesh import logical


def init_projector(
    key: jax.Array, *, user_dim: int, inner: int, vectors: int, hidden: int
) -> dict[str, Any]:
    """Initialises a projector whose output is 0; each array carries its logical axes.

    Args:
      key: random key of the first layer.
      user_dim: size of a recommender's user state.
      inner: hidden size of the projector.
      vectors: soft vectors a prompt.
      hidden: size of a token embedding.

    Raises:
      UserError: for a size that is not positive.
    """
    sizes = dict(user_dim=user_dim, inner=inner, vectors=vectors, hidden=hidden)  # noqa: C408
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"soft prompt: {name}={size} must be positive")
    # A zero second layer: training starts from the placeholder's embedding.
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


def num_vectors(projector: PyTree) -> int:
    """Number of soft vectors that a projector makes a prompt."""
    return projector["second"]["bias"].shape[0]


def soft_vectors(projector: PyTree, placeholder: jax.Array, user: jax.Array) -> jax.Array:
    """Soft prompt vectors of user states: the placeholder's embedding plus a learned offset.

    Args:
      projector: parameters, unboxed.
      placeholder: `[hidden]` embedding of the replaced token.
      user: `[n, user_dim]` float32 user states.

    Returns:
      `[n, vectors, hidden]` float32; exactly the placeholder's embedding for a new projector.
    """
    first, second = projector["first"], projector["second"]
    wide = jax.nn.gelu(user.astype(jnp.float32) @ first["kernel"] + first["bias"])
    offset = jnp.einsum("ni,ikh->nkh", wide, second["kernel"]) + second["bias"]
    return placeholder.astype(jnp.float32) + offset


def init_value_head(key: jax.Array, *, hidden: int) -> dict[str, Any]:
    """Initialises a value head whose estimates are all 0; each array carries its logical axes."""
    zeros = nn.initializers.zeros
    return {"kernel": logical(zeros, "embed")(key, (hidden,)), "bias": logical(zeros)(key, ())}


def state_values(head: PyTree, states: jax.Array) -> jax.Array:
    """Values `[...]` float32 of states `[..., hidden]`, with a float32 product."""
    states = states.astype(jnp.float32)
    return jnp.einsum("...h,h->...", states, head["kernel"], precision="highest") + head["bias"]
