"""LoRA adapters (Hu et al., arXiv 2106.09685): small parameter trees on a frozen base.

`adapter=None` is the base itself, so a reference model needs no copy; any number of adapters share
one base.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.model import quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.parallel.mesh import logical

GROUPS = {
    "q": "attn",
    "k": "attn",
    "v": "attn",
    "o": "attn",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
TARGETS = tuple(GROUPS)
AXES = {  # logical axes of the kernels
    "q": ("embed", "heads"),
    "k": ("embed", "heads"),
    "v": ("embed", "heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "inner"),
    "up": ("embed", "inner"),
    "down": ("inner", "embed"),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA configuration: rank, scale, dropout and target projections.

    Attributes:
      rank: rank r of the update `B A`.
      alpha: the update is scaled by `alpha / rank`.
      dropout: dropout rate of the update's input, during training.
      targets: projections with an update, a subset of `TARGETS`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            raise UserError(f"lora.targets={self.targets!r} must be a list of {', '.join(TARGETS)}")
        object.__setattr__(self, "targets", tuple(self.targets))
        if not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"lora.rank={self.rank} must be a positive whole number")
        if not 0.0 < self.alpha < float("inf"):
            raise UserError(f"lora.alpha={self.alpha} must be a positive number")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout={self.dropout} must be from 0 to below 1")
        if not self.targets:
            raise UserError(f"lora.targets is empty; valid: {', '.join(TARGETS)}")
        for name in self.targets:
            if name not in GROUPS:
                raise UserError(f"lora.targets: no {name!r}{did_you_mean(name, TARGETS)}")

    @property
    def scale(self) -> float:
        """Scale of the update, alpha / rank."""
        return self.alpha / self.rank


class Adapter(flax.struct.PyTreeNode):
    """An adapter: its arrays and their configuration.

    Attributes:
      params: `{"layers": {group: {target: {"a": [layers, in, rank], "b": [layers, rank, out]}}}}`.
      config: LoRA configuration, static under `jit`.
    """

    params: PyTree
    config: LoraConfig = flax.struct.field(pytree_node=False, default=LoraConfig())

    def scaled(self) -> PyTree:
        """Parameter tree with `b` multiplied by alpha / rank, as the model applies it."""

        def scale(path, leaf):
            return leaf * self.config.scale if path[-1].key == "b" else leaf

        return jax.tree_util.tree_map_with_path(scale, self.params)


def sizes(model: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Input and output size of each projection."""
    hidden, mlp_dim = model.hidden_size, model.intermediate_size
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {
        "q": (hidden, heads),
        "k": (hidden, kv),
        "v": (hidden, kv),
        "o": (heads, hidden),
        "gate": (hidden, mlp_dim),
        "up": (hidden, mlp_dim),
        "down": (mlp_dim, hidden),
    }


def init_params(config: LoraConfig, model: LlamaConfig, key: jax.Array) -> PyTree:
    """Initialises an adapter's tree with a zero update; each array carries its logical axes.

    `a` is uniform within `1 / sqrt(in)`, as in PEFT, and `b` is zero.
    """
    tree: dict[str, Any] = {}
    # The key of a target does not depend on which others are trained.
    for number, target in enumerate(TARGETS):
        if target not in config.targets:
            continue
        size_in, size_out = sizes(model)[target]
        axis_in, axis_out = AXES[target]
        bound = size_in**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], bound: float = bound) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        tree.setdefault(GROUPS[target], {})[target] = {
            "a": logical(uniform, "layers", axis_in, None)(
                jax.random.fold_in(key, number), (model.num_layers, size_in, config.rank)
            ),
            "b": logical(nn.initializers.zeros, "layers", None, axis_out)(
                key, (model.num_layers, config.rank, size_out)
            ),
        }
    return {"layers": tree}


def init(config: LoraConfig, model: LlamaConfig, key: jax.Array) -> Adapter:
    """Initialises an adapter with a zero update."""
    return Adapter(nn.unbox(init_params(config, model, key)), config)


def _added(params: PyTree, adapter: Adapter, sign: float) -> PyTree:
    layers = {name: dict(group) for name, group in params["layers"].items()}
    for group, targets in adapter.params["layers"].items():
        for target, pair in targets.items():
            kernel = layers[group][target]["kernel"]
            if quantize.is_quantized(kernel):
                raise UserError("an adapter cannot be merged into a quantised base; load it whole")
            update = jnp.einsum(
                "lir,lro->lio",
                pair["a"].astype(jnp.float32),
                pair["b"].astype(jnp.float32),
                precision="highest",
            )
            total = kernel.astype(jnp.float32) + sign * adapter.config.scale * update
            layers[group][target] = {"kernel": total.astype(kernel.dtype)}
    return {**params, "layers": layers}


def merge(params: PyTree, adapter: Adapter) -> PyTree:
    """Merges an adapter into the base, in float32, and rounds to the base's dtype.

    Raises:
      UserError: if the base is quantised.
    """
    return _added(params, adapter, 1.0)


def unmerge(params: PyTree, adapter: Adapter) -> PyTree:
    """Inverse of `merge`, up to the rounding of the base's dtype."""
    return _added(params, adapter, -1.0)
