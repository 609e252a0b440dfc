"""Matrix products whose derivatives are as fast on a CPU as they are.

A CPU's compiler multiplies factors as they lie in memory: one whose contracted axis comes first it
copies, a 16-bit one in float32. It also undoes a transposition right before a product. So the
derivatives here ask for products whose results have the order of axes that the next product needs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


def _dot_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """`[rows, in]` and `[others, in]` to `[rows, others]` float32: both contract the last axis."""
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def wide_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[rows, in]` times `[in, out]`, accumulated in float32 and rounded once to their dtype.

    JAX's own derivative of a product with a float32 result would multiply in float32; this one
    keeps 16-bit factors. See `precision.on_16_bit_cpu`.
    """
    return _dot(x, w).astype(x.dtype)


def _wide_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return wide_product(x, w), (x, w)


def _wide_backward(
    factors: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = factors
    # A frozen kernel's gradient is unused, and the compiler drops it.
    dw = jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return _dot_rows(g, w).astype(x.dtype), dw.astype(w.dtype)


wide_product.defvjp(_wide_forward, _wide_backward)


@jax.custom_vjp
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The update of LoRA, `x A B`: `[rows, in]`, `[in, rank]`, `[rank, out]` to `[rows, out]`."""
    return _low_rank_forward(x, a, b)[0]


def _low_rank_forward(
    x: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    small = _dot(x, a).astype(x.dtype)
    # Transposed here: a scan over layers stores it, and the compiler cannot undo it behind that.
    return _dot(small, b).astype(x.dtype), (x, a, b, small.T)


def _low_rank_backward(
    saved: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, a, b, small = saved
    # The narrow cotangent is needed in both orders; one product for each is cheaper than a copy of
    # the wide factor.
    back = _dot_rows(g, b).astype(x.dtype)
    back_transposed = _dot_rows(b, g).astype(x.dtype)
    dx = _dot_rows(back, a)
    da, db = _dot(back_transposed, x).astype(a.dtype), _dot(small, g).astype(b.dtype)
    # The barrier keeps this transposition out of the product: jaxlib 0.10 would then have a product
    # of 16-bit factors that its CPU backend cannot run.
    return dx.astype(x.dtype), jax.lax.optimization_barrier(da).T, db


low_rank.defvjp(_low_rank_forward, _low_rank_backward)
