"""Small functions on pytrees."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

# A pytree of any structure: parameters, shapes, shardings, batches.
PyTree: TypeAlias = Any


def num_parameters(tree: PyTree) -> int:
    """Number of elements in all arrays of `tree`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def device_bytes(tree: PyTree) -> dict[str, dict[int, int]]:
    """Bytes of each array of `tree` on each device of this process.

    Returns:
      `{path: {device id: bytes}}`, the path as `a/b/c`.
    """
    sizes: dict[str, dict[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            sizes[name] = {s.device.id: s.data.nbytes for s in leaf.addressable_shards}
    return sizes


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in leaves])


def not_finite(tree: PyTree) -> list[str]:
    """Paths, as `a/b/c`, of the arrays of `tree` that hold NaN or infinite values."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if not named:
        return []
    # One compiled reduction over all leaves, and one transfer for all answers.
    good = host_value(_finite([leaf for _, leaf in named]))
    return [name for (name, _), finite in zip(named, good, strict=True) if not finite]


def host_value(array: jax.Array) -> np.ndarray:
    """Host copy of a replicated array, also if other processes hold some of its replicas."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(array.addressable_data(0))
    return np.asarray(array)
