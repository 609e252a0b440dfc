"""Checksums of arrays and JSON values, to detect damage by disks and copies.

An array's sum is taken over its whole value, so it is the same however the array is split over
devices and processes: every word is multiplied by an odd number made from its place, and the
products are added modulo 2^32. One changed word always changes the sum; any other damage goes
unnoticed once in four billion times. It guards against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.trees import PyTree

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_BLOCK = 1 << 18  # words of a large array that are widened at once


Checksum = tuple[str, list[int], str]  # dtype, shape, sum; JSON as it is


def tree_checksums(tree: PyTree) -> dict[str, Checksum]:
    """Computes the checksum of every array of a tree.

    Args:
      tree: tree of device or host arrays; arrays may be split over several processes if all of them
        call this together.

    Returns:
      `{path: ("float32", [3, 4], "1f2e3d4c")}`, the path as `a/b/c`.
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    local = {i: array for i, (_, array) in enumerate(flat) if _on_host(array)}
    sums = {i: _host_sum(np.asarray(array)) for i, array in local.items()}
    on_device = {i: array for i, (_, array) in enumerate(flat) if i not in local}
    # A sum over all parts cannot be split itself: every process has it.
    sums |= {i: int(np.asarray(s.addressable_data(0))) for i, s in _device_sums(on_device).items()}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _described(array, sums[i])
        for i, (path, array) in enumerate(flat)
    }


def json_checksum(value: object) -> str:
    """Digest of a JSON value; independent of key order, tuples count as lists."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _described(array: jax.Array | np.ndarray, total: int) -> Checksum:
    return np.dtype(array.dtype).name, list(array.shape), f"{total:08x}"


def _on_host(array: jax.Array | np.ndarray) -> bool:
    """True if the value lies in this process's host memory, so that nothing has to be compiled."""
    if not isinstance(array, jax.Array):
        return True
    return array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())


def _multipliers(axis: int, start: int, stop: int, xp: Any) -> Any:
    """Odd uint32 multipliers for places `start` to `stop` of an axis (murmur3's finaliser)."""
    places = xp.arange(start, stop, dtype=xp.uint32)
    mixed = places + xp.uint32(0x9E3779B9 * (axis + 1) % 2**32)
    mixed = (mixed ^ (mixed >> 16)) * xp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * xp.uint32(0xC2B2AE35)
    # An odd multiplier is invertible modulo 2^32, so a change of one word always changes the sum.
    return (mixed ^ (mixed >> 16)) | xp.uint32(1)


def _host_sum(array: np.ndarray) -> int:
    if not array.size:
        return 0
    words: np.ndarray = np.ascontiguousarray(array).reshape(array.shape or (1,))
    words = words.view(_WORDS[array.dtype.itemsize])
    if array.dtype.itemsize == 8:  # as two words, lower first
        words = words.view(np.uint32).reshape(*words.shape, 2)
    while words.ndim:
        words = _without_last_axis(words)
    return int(words)


def _without_last_axis(words: np.ndarray) -> np.ndarray:
    """Sums along the last axis, weighted by place, a block at a time to bound memory."""
    size = words.shape[-1]
    rows = words.reshape(-1, size)
    total, block_rows = np.zeros(len(rows), np.uint32), max(1, _BLOCK // size)
    for j in range(0, size, _BLOCK):
        weight = _multipliers(words.ndim - 1, j, min(size, j + _BLOCK), np)
        for i in range(0, len(rows), block_rows):
            block = rows[i : i + block_rows, j : j + _BLOCK].astype(np.uint32, copy=False)
            total[i : i + block_rows] += np.einsum("ij,j->i", block, weight)
    return total.reshape(words.shape[:-1])


@jax.jit
def _device_sums(arrays: dict[int, jax.Array]) -> dict[int, jax.Array]:
    return {i: _device_sum(array) for i, array in arrays.items()}


def _device_sum(array: jax.Array) -> jax.Array:
    """As `_host_sum`, on the array's own device; XLA fuses it into one pass."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = _WORDS[min(4, array.dtype.itemsize)]
    words = jax.lax.bitcast_convert_type(array.reshape(array.shape or (1,)), unsigned)
    words = words.astype(jnp.uint32)
    total = words
    # `total` loses its last axis each round, so the axes go from the last to the first, as on the
    # host.
    for axis in reversed(range(words.ndim)):
        weight = _multipliers(axis, 0, words.shape[axis], jnp)
        total = jnp.sum(total * weight, axis=-1, dtype=jnp.uint32)
    return total


def array_bytes(tree: PyTree) -> int:
    """Total bytes of the arrays of a tree; abstract arrays will do."""
    return sum(
        math.prod(x.shape) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
        if hasattr(x, "shape")
    )
