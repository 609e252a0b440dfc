"""Scan over a model's layers whose saved activations are stored as integers on a CPU.

`jax.lax.scan` stacks what the backward pass needs into one array for all layers, a slice a layer.
On a CPU the compiler has no 16-bit floating-point slices: it converts the whole stack to float32
and back at every layer, which costs more than the layers themselves. Integers of 16 bits have
slices, so the activations are stored as the integers with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.trees import PyTree

Layer = Callable[[jax.Array, PyTree], jax.Array]


@jax.custom_jvp
def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@_bits.defjvp
def _bits_jvp(primals: Any, tangents: Any) -> Any:
    # JAX's own rule is a derivative of zero, which nobody would notice.
    raise NotImplementedError("a function that carries 16-bit arrays as integers has no derivative")


def as_integers(x: jax.Array) -> jax.Array:
    """The bits of a 16-bit floating-point array as uint16; other arrays unchanged.

    Raises:
      NotImplementedError: if it is differentiated.
    """
    return _bits(x) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2 else x


def as_floats(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `as_integers`."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def stored(tree: PyTree) -> PyTree:
    """Stacked parameters as a CPU's `lax.scan` should hold them: bfloat16 as integers."""
    return jax.tree.map(lambda x: as_integers(x) if x.dtype == jnp.bfloat16 else x, tree)


def restored(tree: PyTree) -> PyTree:
    """The inverse of `stored`."""
    return jax.tree.map(lambda x: as_floats(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x, tree)


def scan_layers(layer: Layer, x: jax.Array, xs: PyTree) -> jax.Array:
    """Applies `x = layer(x, slice)` for each slice of `xs` along its first axis.

    Args:
      layer: a pure function.
      x: the first layer's input.
      xs: arrays of all layers, stacked on the first axis.

    Returns:
      The last layer's output, like `x`; differentiable in `x` and `xs`.
    """
    leaves, structure = jax.tree.flatten(xs)
    tree: Any = structure
    types = [leaf.dtype for leaf in leaves]
    layout: dict[str, Any] = {}  # structure of what a layer saves, set while it is traced

    def integers(leaves: Any) -> list[jax.Array]:
        return [as_integers(leaf) for leaf in leaves]

    def floats(part: list[jax.Array]) -> list[jax.Array]:
        return [as_floats(leaf, dtype) for leaf, dtype in zip(part, types, strict=True)]

    @jax.custom_vjp
    def run(x: jax.Array, *leaves: jax.Array) -> jax.Array:
        def step(x: jax.Array, part: list[jax.Array]) -> tuple[jax.Array, None]:
            return layer(x, tree.unflatten(floats(part))), None

        return jax.lax.scan(step, x, integers(leaves))[0]

    def forward(x: Any, *primals: Any) -> tuple[jax.Array, Any]:
        # Frozen weights get no gradient: only what is differentiated enters `jax.vjp`.
        trained = [i for i, primal in enumerate(primals) if primal.perturbed]
        values = [primal.value for primal in primals]

        def step(x: jax.Array, part: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            part = floats(part)

            def apply(x: jax.Array, own: list[jax.Array]) -> jax.Array:
                merged = list(part)
                for i, value in zip(trained, own, strict=True):
                    merged[i] = value
                return layer(x, tree.unflatten(merged))

            out, pullback = jax.vjp(apply, x, [part[i] for i in trained])
            saved, structure = jax.tree.flatten(pullback)
            # Weights are at hand in the backward pass anyway; only activations are stored.
            sources = [next((i for i, w in enumerate(part) if w is leaf), None) for leaf in saved]
            layout.update(
                structure=structure,
                sources=sources,
                dtypes=[leaf.dtype for leaf in saved],
                trained=trained,
            )
            pairs = zip(saved, sources, strict=True)
            return out, [as_integers(leaf) for leaf, source in pairs if source is None]

        out, stored = jax.lax.scan(step, x.value, integers(values))
        return out, (stored, values)

    def backward(residuals: Any, g: jax.Array) -> tuple[Any, ...]:
        stored, values = residuals

        def step(g: jax.Array, part: Any) -> tuple[jax.Array, list[jax.Array]]:
            stored, weights = part[0], floats(part[1])
            pending = iter(stored)
            saved = [
                as_floats(next(pending), dtype) if source is None else weights[source]
                for source, dtype in zip(layout["sources"], layout["dtypes"], strict=True)
            ]
            g, grads = jax.tree.unflatten(layout["structure"], saved)(g)
            return g, grads

        g, grads = jax.lax.scan(step, g, (stored, integers(values)), reverse=True)
        out = [_no_gradient(value) for value in values]
        for i, grad in zip(layout["trained"], grads, strict=True):
            out[i] = grad
        return (g, *out)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(x, *leaves)


def _no_gradient(x: jax.Array) -> Any:
    """Cotangent of an array that is not differentiated."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
