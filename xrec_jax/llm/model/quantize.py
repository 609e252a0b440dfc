"""Frozen kernels stored in 8 or 4 bits, and a matrix product that dequantises them.

Only the storage is quantised: the product runs in the model's dtype with float32 accumulation.
Every array of a quantised kernel keeps the leading axes of the plain one (layers), so `lax.scan`
and `a[i]` slice it like a plain kernel. Quantised kernels get no gradient; the product's input
does.

`int8`: one scale for each output column (absmax / 127). `nf4`: the 4-bit NormalFloat of QLoRA
(Dettmers et al., arXiv 2305.14314) with one float32 absmax for each block of at most 64 inputs of
an output column, 4.5 bits a weight.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.model.precision import on_16_bit_cpu
from xrec_jax.llm.model.products import wide_product
from xrec_jax.parallel.mesh import constrain, mesh_axes

KINDS = ("none", "int8", "nf4")
PROJECTIONS = (
    ("attn", "q"),
    ("attn", "k"),
    ("attn", "v"),
    ("attn", "o"),
    ("mlp", "gate"),
    ("mlp", "up"),
    ("mlp", "down"),
)
BLOCK = 64


class Int8(flax.struct.PyTreeNode):
    """An int8 kernel `[..., in, out]` with a scale for each output column.

    Attributes:
      values: int8 `[..., in, out]`, from -127 to 127.
      scale: float32 `[..., 1, out]`.
    """

    values: jax.Array
    scale: jax.Array


class NF4(flax.struct.PyTreeNode):
    """An NF4 kernel `[..., in, out]` of 4-bit codes, in blocks along `in`.

    Attributes:
      packed: uint8 `[..., blocks, block / 2, out]`; the low nibbles are the first half of a block,
        the high nibbles its second half. The last block is padded with zeros.
      scale: float32 `[..., blocks, 1, out]`, absolute maximum of the block.
      size: `in`, static.
    """

    packed: jax.Array
    scale: jax.Array
    size: int = flax.struct.field(pytree_node=False)


def _nf4_values() -> np.ndarray:
    """The 16 values of NF4, ascending, from -1 to 1.

    Quantiles of the normal distribution at equal steps from 1/2 outwards: 7 below zero, 8 above,
    and zero itself. `tail` is the probability of the outermost one, the mean of those of 15 and 16
    equal parts.
    """
    tail = 1 - (1 / 30 + 1 / 32) / 2
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.5, tail, 9)[1:].tolist()]
    below = [-quantile(p) for p in np.linspace(0.5, tail, 8)[:0:-1].tolist()]
    return np.array([*below, 0.0, *above]).astype(np.float64) / above[-1]


NF4_VALUES = _nf4_values().astype(np.float32)
_NF4_BOUNDS = ((_nf4_values()[1:] + _nf4_values()[:-1]) / 2).astype(np.float32)


def is_quantized(kernel: object) -> bool:
    """True for `Int8` and `NF4`; serves as `is_leaf` for trees of quantised parameters."""
    return isinstance(kernel, (Int8, NF4))


def _int8(kernel: jax.Array) -> Int8:
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / 127.0
    steps = jnp.where(scale > 0, kernel / jnp.where(scale > 0, scale, 1.0), 0.0)
    return Int8(jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale)


def _nf4(kernel: jax.Array) -> NF4:
    size, out = kernel.shape
    blocks = math.ceil(size / BLOCK)
    half = math.ceil(size / (2 * blocks))  # blocks of equal, even length: little padding
    kernel = jnp.pad(kernel.astype(jnp.float32), ((0, 2 * half * blocks - size), (0, 0)))
    kernel = kernel.reshape(blocks, 2 * half, out)
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True)
    share = kernel / jnp.where(scale > 0, scale, 1.0)
    codes = jnp.zeros(share.shape, jnp.uint8)
    for bound in _NF4_BOUNDS:  # 15 comparisons that fuse, where a search would gather
        codes += (share > bound).astype(jnp.uint8)
    return NF4(codes[:, :half] | (codes[:, half:] << 4), scale, size)


def _by_layer(kernel: jax.Array, kind: str) -> Int8 | NF4:
    if kernel.ndim > 2:  # layer by layer: float32 temporaries of one layer only
        return jax.lax.map(lambda layer: _by_layer(layer, kind), kernel)
    return _int8(kernel) if kind == "int8" else _nf4(kernel)


def quantize_kernel(kernel: jax.Array, kind: str) -> jax.Array | Int8 | NF4:
    """Quantises a kernel, or a stack of them; a sharded kernel stays sharded.

    Args:
      kernel: `[..., in, out]`.
      kind: one of `KINDS`; `none` returns `kernel`.

    Raises:
      UserError: for an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"quantisation: no kind {kind!r}{did_you_mean(kind, KINDS)}")
    if kind == "none":
        return kernel
    function = functools.partial(_by_layer, kind=kind)
    split = None if isinstance(kernel, jax.core.Tracer) else getattr(kernel, "sharding", None)
    if isinstance(split, NamedSharding):
        split = shardings(jax.eval_shape(function, kernel), split)
        return jax.jit(function, out_shardings=split)(kernel)
    return _compiled(kernel, kind)


_compiled = jax.jit(_by_layer, static_argnames="kind")


def _lookup(codes: jax.Array) -> jax.Array:
    """`NF4_VALUES[codes]` in float32, by selects: as fast as a gather on CPU, faster on TPU."""

    def bit(number):
        return ((codes >> number) & 1).astype(bool)

    # The first select is between constants. As arrays of the kernel's shape they would be hoisted
    # out of a differentiated `lax.scan`, as 16 float32 copies of the kernel; arithmetic is not.
    first = bit(0).astype(jnp.float32)
    pairs = zip(NF4_VALUES[::2].tolist(), NF4_VALUES[1::2].tolist(), strict=True)
    values = [low + first * (high - low) for low, high in pairs]
    for number in range(1, 4):
        is_set = bit(number)
        values = [jnp.where(is_set, *pair) for pair in zip(values[1::2], values[::2], strict=True)]
    return values[0]


def _padded(kernel: NF4, dtype: DTypeLike) -> jax.Array:
    """Dequantises a kernel with its padding rows; scaled in float32, then rounded to `dtype`."""
    codes = jnp.concatenate([kernel.packed & 15, kernel.packed >> 4], axis=-2)
    values = (_lookup(codes) * kernel.scale).astype(dtype)
    *layers, blocks, block, out = values.shape
    return values.reshape(*layers, blocks * block, out)


def dequantize(kernel: jax.Array | Int8 | NF4, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Dequantises a kernel to `[..., in, out]` in `dtype`; a plain kernel is only cast."""
    if isinstance(kernel, Int8):
        return (kernel.values.astype(jnp.float32) * kernel.scale).astype(dtype)
    if isinstance(kernel, NF4):
        return _padded(kernel, dtype)[..., : kernel.size, :]
    return kernel.astype(dtype)


_wide_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
Axes = tuple[str | None, str | None] | None


def _gathered(kernel: Int8 | NF4, axes: Axes) -> Int8 | NF4:
    """Gathers a kernel over the batch's mesh axes (FSDP) in its quantised form.

    Otherwise the compiler dequantises first and gathers 2 to 8 times the bytes.
    """
    if axes is None:
        return kernel
    batch, mesh = set(mesh_axes("batch")), jax.sharding.get_abstract_mesh().shape

    def kept(name, length):
        over = mesh_axes(name) if name else ()
        even = length % math.prod(mesh.get(axis, 1) for axis in over) == 0
        return name if even and not batch & set(over) else None

    def gather(leaf):
        middle = (None,) * (leaf.ndim - 2)
        return constrain(leaf, kept(axes[0], leaf.shape[0]), *middle, kept(axes[1], leaf.shape[-1]))

    return jax.tree.map(gather, kernel)


# Without a custom rule the backward pass would store every layer's dequantised kernel from the
# forward pass: the whole base in the dtype of the computation. Here it dequantises again.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: Int8 | NF4, axes: Axes) -> jax.Array:
    """`[rows, in]`, one layer's kernel -> `[rows, out]`, in the dtype of `x`."""
    kernel = _gathered(kernel, axes)
    if isinstance(kernel, Int8):
        # Integers up to 127 are exact in bfloat16, and a column's scale can be applied to the sum.
        return (_wide_dot(x, kernel.values.astype(x.dtype)) * kernel.scale).astype(x.dtype)
    weights = _padded(kernel, x.dtype)
    x = jnp.pad(x, ((0, 0), (0, weights.shape[0] - x.shape[1])))
    return _wide_dot(x, weights).astype(x.dtype)


def _forward(x: jax.Array, kernel: Int8 | NF4, axes: Axes) -> tuple[jax.Array, Int8 | NF4]:
    return _product(x, kernel, axes), kernel


def _backward(axes: Axes, kernel: Int8 | NF4, g: jax.Array) -> tuple[jax.Array, None]:
    # The barrier prevents the compiler from reusing, and so keeping, the forward pass's copy.
    kernel, g = jax.lax.optimization_barrier((kernel, g))
    kernel = _gathered(kernel, axes)
    if isinstance(kernel, Int8):
        scaled = (g * kernel.scale).astype(g.dtype)
        return _wide_dot(scaled, kernel.values.astype(g.dtype).T).astype(g.dtype), None
    return _wide_dot(g, _padded(kernel, g.dtype).T)[:, : kernel.size].astype(g.dtype), None


_product.defvjp(_forward, _backward)


def matmul(
    x: jax.Array,
    kernel: jax.Array | Int8 | NF4,
    dtype: DTypeLike = jnp.float32,
    *,
    axes: Axes = None,
) -> jax.Array:
    """Multiplies `x` with one layer's kernel, accumulated in float32.

    Args:
      x: `[..., in]`.
      kernel: `[in, out]`, plain or quantised; a quantised one gets no gradient.
      dtype: dtype of the factors and the result.
      axes: logical axes of the kernel; with them a sharded quantised kernel is communicated in its
        quantised form.

    Returns:
      `[..., out]`.

    Raises:
      ValueError: if the sizes do not match, or a quantised kernel has a layer axis.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    if not isinstance(kernel, (Int8, NF4)):
        # Elsewhere hardware accumulates bfloat16 products in float32 and rounds the result itself.
        product = wide_product if on_16_bit_cpu(dtype) else jnp.dot
        y = product(rows, kernel.astype(dtype))
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    shape = shape_of(kernel)
    if len(shape) != 2 or shape[0] != x.shape[-1]:
        raise ValueError(f"product of shape {x.shape} with a quantised kernel {shape}")
    return _product(rows, kernel, axes).reshape(*x.shape[:-1], shape[1])


def shape_of(kernel: jax.Array | Int8 | NF4) -> tuple[int, ...]:
    """Shape `[..., in, out]` of a plain or quantised kernel."""
    if isinstance(kernel, NF4):
        return (*kernel.packed.shape[:-3], kernel.size, kernel.packed.shape[-1])
    return kernel.values.shape if isinstance(kernel, Int8) else kernel.shape


def quantize_params(params: PyTree, kind: str, *, release: bool = False) -> PyTree:
    """Quantises the seven projections of `layers`; embeddings, norms and head are unchanged.

    Args:
      params: parameters of a `Llama`: plain arrays, stacked layers.
      kind: one of `KINDS`; `none` returns `params`.
      release: free each plain kernel as soon as its quantised form exists; `params` is then
        invalid.

    Raises:
      UserError: if the kind is unknown, or a kernel is already quantised or not finite.
    """
    if kind not in KINDS:
        raise UserError(f"quantisation: no kind {kind!r}{did_you_mean(kind, KINDS)}")
    if kind == "none":
        return params
    layers = {name: dict(group) for name, group in params["layers"].items()}
    for group, name in PROJECTIONS:
        kernel, where = layers[group][name]["kernel"], f"layers/{group}/{name}"
        if is_quantized(kernel):
            raise UserError(f"{where} is already quantised; quantise the plain weights instead")
        small: Any = quantize_kernel(kernel, kind)
        if not isinstance(small.scale, jax.core.Tracer) and not jnp.isfinite(small.scale).all():
            raise UserError(f"{where} holds NaN or infinite weights; it cannot be quantised")
        layers[group][name] = {**layers[group][name], "kernel": small}
        if release and isinstance(kernel, jax.Array) and not isinstance(kernel, jax.core.Tracer):
            jax.block_until_ready(small)
            kernel.delete()
    return {**params, "layers": layers}


def dequantize_params(params: PyTree, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Dequantises all quantised kernels to `dtype`; other parameters are unchanged."""

    def plain(leaf):
        return dequantize(leaf, dtype) if is_quantized(leaf) else leaf

    return jax.tree.map(plain, params, is_leaf=is_quantized)


def bytes_of(params: PyTree) -> int:
    """Total bytes of the arrays of `params`; shapes suffice."""
    leaves = jax.tree.leaves(params)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def shardings(params: PyTree, plain: PyTree) -> PyTree:
    """Shardings of quantised parameters, or of one quantised kernel.

    `in` and `out` are split as in the plain kernel if the number of blocks or columns is divisible;
    otherwise that axis is replicated.

    Args:
      params: quantised parameters, or their shapes.
      plain: tree of the `NamedSharding`s of the plain parameters.

    Returns:
      Tree of `params` with a `NamedSharding` in place of every array.
    """

    def place(kernel, split):
        if not is_quantized(kernel):
            return split
        rank = len(shape_of(kernel))
        spec = (*split.spec, *(None,) * (rank - len(split.spec)))
        # An NF4 array has one more axis than its kernel: the positions in a block, never split.
        block_axis = (None,) if isinstance(kernel, NF4) else ()
        axes = (*spec[:-1], *block_axis, spec[-1])

        def fit(leaf):
            fitted = [
                axis if axis and length % _devices(split, axis) == 0 else None
                for length, axis in zip(leaf.shape, axes, strict=True)
            ]
            return NamedSharding(split.mesh, PartitionSpec(*fitted), memory_kind=split.memory_kind)

        return jax.tree.map(fit, kernel)

    return jax.tree.map(place, params, plain, is_leaf=is_quantized)


def _devices(split: NamedSharding, axis: str | tuple[str, ...]) -> int:
    names = (axis,) if isinstance(axis, str) else axis
    return math.prod(split.mesh.shape[name] for name in names)
