"""Parameter tree of a LLaMA: paths, shapes, logical axes, and Hugging Face's names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import DTypeLike

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.model.config import LlamaConfig

_LAYER = "model.layers.{layer}."
# Projections of a layer: group in our tree, and Hugging Face's module name.
PROJECTIONS = {
    "q": ("attn", "self_attn.q_proj"),
    "k": ("attn", "self_attn.k_proj"),
    "v": ("attn", "self_attn.v_proj"),
    "o": ("attn", "self_attn.o_proj"),
    "gate": ("mlp", "mlp.gate_proj"),
    "up": ("mlp", "mlp.up_proj"),
    "down": ("mlp", "mlp.down_proj"),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An array of the tree; those of the layers are stacked along their first axis.

    Attributes:
      path: keys from the root, such as `("layers", "attn", "q", "kernel")`.
      shape: shape of the array.
      axes: logical axis of each dimension.
      hf: Hugging Face's name, with `{layer}` for a stacked array.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    hf: str

    @property
    def name(self) -> str:
        """The path as text."""
        return "/".join(self.path)

    @property
    def layers(self) -> int | None:
        """Number of stacked layers; None for an array that is not stacked."""
        return self.shape[0] if self.path[0] == "layers" else None

    @property
    def transposed(self) -> bool:
        """True if Hugging Face stores the transposed matrix, `[out, in]`."""
        return self.path[-1] == "kernel"

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of Hugging Face's tensor for one layer."""
        shape = self.shape if self.layers is None else self.shape[1:]
        return shape[::-1] if self.transposed else shape

    def hf_names(self) -> Iterator[tuple[int | None, str]]:
        """Yields layer (None if not stacked) and name of each of Hugging Face's tensors."""
        if self.layers is None:
            yield None, self.hf
        else:
            for layer in range(self.layers):
                yield layer, self.hf.format(layer=layer)


class Source(Protocol):
    """Source of a model's arrays, one at a time."""

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Returns a parameter, or one layer of a stacked one, in our layout."""
        ...


@functools.cache
def parameters(config: LlamaConfig) -> tuple[Parameter, ...]:
    """All parameters of the model, in the order of the forward pass."""
    hidden, layers = config.hidden_size, config.num_layers
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mlp_dim = config.intermediate_size
    sizes = {
        "q": (hidden, heads),
        "k": (hidden, kv),
        "v": (hidden, kv),
        "o": (heads, hidden),
        "gate": (hidden, mlp_dim),
        "up": (hidden, mlp_dim),
        "down": (mlp_dim, hidden),
    }

    def norm(name: str, hf: str) -> Parameter:
        path, axes = ("layers", name, "scale"), ("layers", None)
        return Parameter(path, (layers, hidden), axes, f"{_LAYER}{hf}.weight")

    def kernel(name: str) -> Parameter:
        group, hf = PROJECTIONS[name]
        # Megatron-style: the first kernel of a block is split by output, the last by input over
        # `tensor`.
        split = "heads" if group == "attn" else "inner"
        axes = (split, "embed") if name in ("o", "down") else ("embed", split)
        path, shape = ("layers", group, name, "kernel"), (layers, *sizes[name])
        return Parameter(path, shape, ("layers", *axes), f"{_LAYER}{hf}.weight")

    def table(name: str, hf: str) -> Parameter:
        return Parameter((name, "table"), (config.vocab_size, hidden), ("vocab", "embed"), hf)

    result = [
        table("embed", "model.embed_tokens.weight"),
        norm("attn_norm", "input_layernorm"),
        *(kernel(name) for name in ("q", "k", "v", "o")),
        norm("mlp_norm", "post_attention_layernorm"),
        *(kernel(name) for name in ("gate", "up", "down")),
        Parameter(("final_norm", "scale"), (hidden,), (None,), "model.norm.weight"),
    ]
    if not config.tie_embeddings:
        result.append(table("head", "lm_head.weight"))
    return tuple(result)


def build(config: LlamaConfig, leaf: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Builds the parameter tree with `leaf(parameter)` in place of each array."""
    tree: dict[str, Any] = {}
    for parameter in parameters(config):
        node = tree
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        node[parameter.path[-1]] = leaf(parameter)
    return tree


def at(tree: PyTree, parameter: Parameter) -> PyTree:
    """Leaf of `tree` at a parameter's path."""
    for key in parameter.path:
        tree = tree[key]
    return tree


def check_shardings(config: LlamaConfig, shardings: PyTree) -> None:
    """Checks that every parameter can be split as requested.

    Raises:
      UserError: names the parameter that cannot be split evenly.
    """
    for parameter in parameters(config):
        split = at(shardings, parameter)
        try:
            split.shard_shape(parameter.shape)
        except ValueError as error:
            raise UserError(
                f"{parameter.name} {list(parameter.shape)} cannot be split into equal parts as "
                f"{getattr(split, 'spec', split)} on this mesh; choose other mesh axes"
            ) from error


def abstract(config: LlamaConfig, dtype: DTypeLike) -> dict[str, Any]:
    """Parameter tree of shapes."""
    return build(config, lambda parameter: jax.ShapeDtypeStruct(parameter.shape, dtype))


def logical_axes(config: LlamaConfig) -> dict[str, Any]:
    """Parameter tree of tuples of logical axis names, for `parallel.mesh.sharding`."""
    return build(config, lambda parameter: parameter.axes)
