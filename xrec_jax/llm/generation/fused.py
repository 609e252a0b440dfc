"""Fused QKV and gate-up projections, for decoding on a CPU.

A decoding step of a small model spends more time between its products than in them. Queries, keys
and values read one input, gate and up another: their kernels side by side are one kernel each, and
so are the updates of LoRA, whose second factors then stand in blocks along a diagonal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xrec_jax.core.trees import PyTree
from xrec_jax.llm.model.layers import FUSED


def fuse(layers: PyTree) -> PyTree:
    """Fuses plain kernels, stacked over layers or of one.

    Args:
      layers: `{"attn": {"q": {"kernel": ...}, ...}, "mlp": {...}, ...}`.

    Returns:
      The tree with the kernels that `FUSED` names instead of those that they are made of.
    """
    out = {name: dict(group) for name, group in layers.items()}
    for name, (group, parts) in FUSED.items():
        kernels = [out[group].pop(part)["kernel"] for part in parts]
        out[group][name] = {"kernel": jnp.concatenate(kernels, axis=-1)}
    return out


def fuse_lora(lora: PyTree, layers: PyTree) -> PyTree:
    """Fuses the updates of the projections that `fuse` fuses.

    Args:
      lora: `Adapter.scaled()["layers"]`, of any targets.
      layers: plain kernels, from which the sizes of the outputs are taken.
    """
    out = {name: dict(group) for name, group in lora.items()}
    for name, (group, parts) in FUSED.items():
        pairs = {part: out.get(group, {}).pop(part, None) for part in parts}
        present = [pair for pair in pairs.values() if pair is not None]
        if not present:
            continue
        blocks = []
        before = 0
        sizes = [layers[group][part]["kernel"].shape[-1] for part in parts]
        for part, size in zip(parts, sizes, strict=True):
            pair = pairs[part]
            if pair is not None:
                # The rows of this update reach the columns of its own projection only.
                around = (before, sum(sizes) - before - size)
                blocks.append(jnp.pad(pair["b"], ((0, 0),) * (pair["b"].ndim - 1) + (around,)))
            before += size
        out[group][name] = {
            "a": jnp.concatenate([pair["a"] for pair in present], axis=-1),
            "b": jnp.concatenate(blocks, axis=-2),
        }
    return {name: group for name, group in out.items() if group}


def shapes(layers: PyTree) -> PyTree:
    """What `fuse_lora` needs of kernels, without holding them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), layers)
