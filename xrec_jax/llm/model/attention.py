"""Causal attention over packed sequences: one interface to the implementations of each device.

A token sees the earlier tokens of its row with the same segment number; 0 is padding. If segment 1
is shared, all later segments see it too: a prompt, and several answers to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.llm.model import blocked
from xrec_jax.llm.model.precision import product_dtype
from xrec_jax.parallel.mesh import current_parts, mesh_axes

IMPLEMENTATIONS = ("auto", "xla", "blocked", "cudnn", "splash", "splash_interpret")


def choose(
    implementation: str,
    *,
    length: int,
    head_dim: int,
    kv_heads: int,
    dtype: jnp.dtype,
    shared: bool = False,
) -> str:
    """Resolves "auto" to the implementation for this device, mesh and shape.

    Raises:
      UserError: for an unknown name, or one that this device does not support.
    """
    if implementation not in IMPLEMENTATIONS:
        hint = did_you_mean(implementation, IMPLEMENTATIONS)
        raise UserError(f"attention={implementation!r} is not valid{hint}")
    backend = jax.default_backend()
    if implementation == "cudnn" and backend != "gpu":
        raise UserError(f"attention='cudnn' needs a GPU, but this is a {backend}; use 'auto'")
    if implementation in ("splash", "splash_interpret") and shared:
        raise UserError(
            f"attention={implementation!r} cannot share a prompt between answers; use 'auto', or "
            "joint.ppo.share_prompts=False"
        )
    if implementation != "auto":
        return implementation
    if backend == "cpu":
        return "blocked"
    # cuDNN and splash have constraints on dtype and shape; "xla" takes everything.
    half = dtype in (jnp.bfloat16, jnp.float16)
    if backend == "gpu" and half and length % 2 == 0 and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    even_heads = kv_heads % current_parts("heads") == 0
    if backend == "tpu" and length % 128 == 0 and head_dim % 64 == 0 and even_heads and not shared:
        return "splash"
    return "xla"


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    *,
    implementation: str = "auto",
    shared: bool = False,
) -> jax.Array:
    """Causal self-attention of packed sequences.

    Args:
      q: `[batch, length, heads, head_dim]`.
      k: `[batch, length, kv_heads, head_dim]`.
      v: like `k`.
      segments: `[batch, length]` int32; 0 is padding, whose output is undefined but finite.
      implementation: one of `IMPLEMENTATIONS`. "blocked" is made for CPUs and computes only
        the causal half of the scores, "cudnn" needs a GPU and 16-bit inputs, "splash" is the Pallas
        kernel of TPUs.
      shared: let later segments see segment 1.

    Returns:
        `[batch, length, heads, head_dim]`.
    """
    chosen = choose(
        implementation,
        length=q.shape[1],
        head_dim=q.shape[-1],
        kv_heads=k.shape[2],
        dtype=q.dtype,
        shared=shared,
    )
    if chosen == "blocked":

        def local(*arrays: jax.Array) -> jax.Array:
            return blocked.attend(*arrays, shared)

        return _on_each_device(local, (q, k, v, segments), (2, 2, 2, None))
    if chosen in ("splash", "splash_interpret"):
        return _splash(q, k, v, segments, interpret=chosen == "splash_interpret")
    length = q.shape[1]
    # "xla" and "cudnn" share JAX's interface, which takes a dense mask.
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & blocked.visible(segments, segments, shared)
    kernel: Any = chosen
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=kernel)


def head_major(x: jax.Array) -> jax.Array:
    """`[batch, length, heads, head_dim]` to `[batch, heads, length, head_dim]`."""
    return x.swapaxes(1, 2)


def keys_for_cache(k: jax.Array) -> jax.Array:
    """`[batch, length, heads, head_dim]` to `[batch, heads, head_dim, length]`."""
    return k.transpose(0, 2, 3, 1)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of new tokens to a cache.

    Args:
      q: `[batch, length, heads, head_dim]`.
      k: `[batch, kv_heads, head_dim, slots]`, so that the product with a single query is contiguous
        along the slots.
      v: `[batch, kv_heads, slots, head_dim]`.
      mask: `[batch, length, slots]` bool.

    Returns:
      `[batch, length, heads, head_dim]` in the dtype of `q`; finite even for an empty mask. A cache
      of another dtype decides that of the products.
    """
    batch, length, heads, dim = q.shape
    kv = k.shape[1]
    # Grouped queries: the query heads of one key head become rows of one product.
    rows = q.reshape(batch, length, kv, heads // kv, dim).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv, -1, dim).astype(k.dtype)
    scores = jnp.einsum("bkrd,bkds->bkrs", rows, k, preferred_element_type=jnp.float32)
    split = scores.reshape(batch, kv, heads // kv, length, -1) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], split, blocked.MASKED), axis=-1)
    weights = weights.astype(v.dtype).reshape(scores.shape)
    wide = product_dtype(v.dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", weights, v, preferred_element_type=wide)
    out = out.astype(q.dtype)
    out = out.reshape(batch, kv, heads // kv, length, dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, dim)


def attend_prefix(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend_cached` for new tokens that are the last ones of the cache, in their order.

    A CPU multiplies in the dtype of `q`, in blocks of queries, each with the keys up to its end.
    """
    if jax.default_backend() != "cpu":
        return attend_cached(q, k, v, mask)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        last = mask.shape[2] - mask.shape[1]  # the first query sees its own slot, the last before

        def seen(start: int, stop: int) -> jax.Array:
            return mask[:, start:stop, : last + stop]

        keys, values = k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
        return blocked.forward(q, keys.astype(q.dtype), values.astype(q.dtype), seen)[0]

    return _on_each_device(local, (q, k, v, mask), (2, 1, 1, None))


def _on_each_device(
    function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], heads: tuple[int | None, ...]
) -> jax.Array:
    """Calls a function of rows and heads on every device's own.

    Args:
      function: its result is like the first array.
      arrays: rows on the first axis.
      heads: the axis of each array's heads, if it has one.
    """
    rows, parts = current_parts("batch"), current_parts("heads")
    if rows * parts == 1:
        return function(*arrays)
    # What does not divide evenly is computed by all devices.
    sizes = [x.shape[axis] for x, axis in zip(arrays, heads, strict=True) if axis is not None]
    batch = mesh_axes("batch") if len(arrays[0]) % rows == 0 else None
    tensor = mesh_axes("heads") if all(size % parts == 0 for size in sizes) else None
    specs = tuple(
        PartitionSpec(batch, *(tensor if i == axis else None for i in range(1, x.ndim)))
        for x, axis in zip(arrays, heads, strict=True)
    )
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, *, interpret: bool
) -> jax.Array:
    """Runs the Pallas kernel for TPUs; each device on its own rows and heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, dim = q.shape[1], q.shape[-1]
    if length % 128:
        raise UserError(f"attention='splash' needs a length that 128 divides, not {length}")
    if k.shape[2] % current_parts("heads"):
        raise UserError(
            f"attention='splash' needs {k.shape[2]} key heads to split evenly over the mesh axis "
            f"tensor, which is {current_parts('heads')}; use 'xla'"
        )
    # The largest block that divides the length.
    side = next(size for size in (512, 256, 128) if length % size == 0)
    blocks = kernel.BlockSizes(
        block_q=side,
        block_kv=side,
        block_kv_compute=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_kv_dkv_compute=side,
        use_fused_bwd_kernel=True,
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        causal = masks.CausalMask((length, length))
        mask = masks.MultiHeadMask([causal] * q.shape[2])
        call = kernel.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
        )

        def row(q, k, v, ids):
            return call(q, k, v, segment_ids=kernel.SegmentIds(q=ids, kv=ids))

        q, k, v = head_major(q * dim**-0.5), head_major(k), head_major(v)
        return jax.vmap(row)(q, k, v, segments).swapaxes(1, 2).astype(v.dtype)

    # The compiler cannot partition a Pallas call, so the mesh is mapped by hand.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, segments)
    heads, rows = (PartitionSpec(mesh_axes("batch"), *others) for others in ((None, "tensor"), ()))
    split = jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return split(q, k, v, segments)
