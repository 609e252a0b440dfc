"""Small functions on pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def num_parameters(tree: Any) -> int:
    """Number of elements in all arrays of `tree`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> dict[str, dict[int, int]]:
    """Bytes that each array of `tree` takes on each device of this process.

    Returns:
      `{path: {device id: bytes}}`, the path as `a/b/c`.
    """
    found: dict[str, dict[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[name] = {s.device.id: s.data.nbytes for s in leaf.addressable_shards}
    return found


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in leaves])


def not_finite(tree: Any) -> list[str]:
    """Paths, as `a/b/c`, of the arrays of `tree` that hold NaN or infinite values."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if not named:
        return []
    good = host_value(_finite([leaf for _, leaf in named]))
    return [name for (name, _), one in zip(named, good, strict=True) if not one]


def host_value(array: jax.Array) -> np.ndarray:
    """The value of a replicated array, also where other processes hold the rest of its copies."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(array.addressable_data(0))
    return np.asarray(array)
