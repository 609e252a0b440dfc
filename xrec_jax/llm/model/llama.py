"""LLaMA as pure functions over explicit parameter trees.

The tree is `{"embed": {"table"}, "layers": {...}, "final_norm": {"scale"}, "head": {"table"}}`
(without head if tied); parameters of the layers are stacked on a first axis and scanned over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.model.attention import IMPLEMENTATIONS
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layer_scan import restored, scan_layers, stored
from xrec_jax.llm.model.layers import (
    Block,
    Cache,
    Context,
    DecodeStep,
    FullAttention,
    PrefixAttention,
    RMSNorm,
    Rotation,
)
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.model.precision import on_16_bit_cpu
from xrec_jax.llm.model.rope import rotations
from xrec_jax.parallel.mesh import constrain, logical

# Layers, and tokens of a row, up to which a CPU unrolls them: slicing stacked weights is a copy.
_UNROLLED, _UNROLLED_LENGTH = 8, 512

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class SoftPrompt(NamedTuple):
    """Vectors that replace token embeddings.

    Attributes:
      positions: `[batch, vectors]` int32 columns of the sequence; -1 for unused vectors.
      vectors: `[batch, vectors, hidden]`.
    """

    positions: jax.Array
    vectors: jax.Array


def positions_of(segments: jax.Array) -> jax.Array:
    """Position of every token within its segment: `[batch, length]` -> `[batch, length]` int32."""
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return column - jax.lax.cummax(jnp.where(first, column, 0), axis=1)


def unstack(tree: PyTree, num_layers: int) -> tuple[Any, ...]:
    """Splits a tree that is stacked over layers into one tree a layer."""
    return tuple(_layer(tree, i) for i in range(num_layers))


@dataclasses.dataclass(frozen=True)
class Llama:
    """The functions of one LLaMA; holds no arrays.

    Attributes:
      config: sizes and constants.
      dtype: dtype of the computation; norms, angles, softmax and logits are always float32.
      attention: see `attention.IMPLEMENTATIONS`.
      remat: activations kept for a layer's backward pass: "none" all, "dots" matrix products,
        "full" only the layer's input.
    """

    config: LlamaConfig
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.remat not in REMAT and self.remat != "none":
            raise UserError(f"remat={self.remat!r} is not valid{did_you_mean(self.remat, REMAT)}")
        if self.attention not in IMPLEMENTATIONS:
            hint = did_you_mean(self.attention, IMPLEMENTATIONS)
            raise UserError(f"attention={self.attention!r} is not valid{hint}")

    @property
    def cache_dtype(self) -> DTypeLike:
        """Dtype of keys and values that decoding carries from step to step.

        Float32 on a CPU, whose compiler would convert a whole 16-bit cache at every step to write
        one slot, and again to multiply it.
        """
        return jnp.float32 if on_16_bit_cpu(self.dtype) else self.dtype

    def _block(self, lora_dropout: float = 0.0) -> Block:
        return Block(self.config, self.dtype, self.attention, lora_dropout)

    def init(self, key: jax.Array) -> PyTree:
        """Initialises float32 parameters, each with its logical axes (`flax.linen.Partitioned`)."""
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        table = logical(normal, "vocab", "embed")
        layer_key, embed_key, head_key = jax.random.split(key, 3)
        x = jnp.zeros((1, 2, config.hidden_size), self.dtype)
        rotation = Rotation(*rotations(config, jnp.zeros((1, 2), jnp.int32)))
        context = FullAttention(jnp.ones((1, 2), jnp.int32))

        def init_layer(key: jax.Array) -> PyTree:
            # Two tokens are too few for some implementations of attention.
            block = Block(config, self.dtype, "xla")
            return block.init(key, x, rotation, context)["params"]

        layers = jax.vmap(init_layer)(jax.random.split(layer_key, config.num_layers))
        layers = nn.meta.add_axis(layers, 0, {nn.PARTITION_NAME: "layers"})
        ones = logical(nn.initializers.ones, None)
        shape = (config.vocab_size, config.hidden_size)
        params = {
            "embed": {"table": table(embed_key, shape)},
            "layers": layers,
            "final_norm": {"scale": ones(key, shape[1:])},
        }
        if not config.tie_embeddings:
            params["head"] = {"table": table(head_key, shape)}
        return params

    def embed(self, params: PyTree, ids: jax.Array, soft: SoftPrompt | None = None) -> jax.Array:
        """Embeds tokens: `[batch, length]` int32 -> `[batch, length, hidden]`."""
        # Gathered over `fsdp` first: the table is small compared to a sharded lookup of a batch.
        table = constrain(params["embed"]["table"], "vocab", None)
        x = jnp.take(table, constrain(ids, "batch", None), axis=0).astype(self.dtype)
        if soft is not None:
            rows = jnp.arange(ids.shape[0])[:, None]
            # Unused vectors point out of bounds and are dropped.
            columns = jnp.where(soft.positions < 0, ids.shape[1], soft.positions)
            x = x.at[rows, columns].set(soft.vectors.astype(self.dtype), mode="drop")
        return constrain(x, "batch", None, None)

    def hidden(
        self,
        params: PyTree,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        adapter: Adapter | None = None,
        soft: SoftPrompt | None = None,
        key: jax.Array | None = None,
        shared: bool = False,
    ) -> jax.Array:
        """Computes the normalised states before the output layer.

        Args:
          params: parameters of the base, unboxed.
          ids: `[batch, length]` int32.
          segments: `[batch, length]` int32; tokens see earlier ones of their own segment, 0 is
            padding. Default: one segment, no padding.
          positions: `[batch, length]` int32; default: counted from each segment's start.
          adapter: None for the base itself.
          soft: vectors that replace token embeddings.
          key: random key that enables the adapter's dropout.
          shared: let later segments see segment 1; needs positions.

        Returns:
          `[batch, length, hidden]` in `dtype`.
        """
        if shared and positions is None:
            raise ValueError("segments that share the first need positions that go on from it")
        segments = jnp.ones_like(ids) if segments is None else segments
        positions = positions_of(segments) if positions is None else positions
        rotation = Rotation(*rotations(self.config, positions))
        context = FullAttention(segments, shared)
        # Base, scaled adapter and dropout keys are scanned together, a slice of each a layer.
        block = self._block(adapter.config.dropout if adapter is not None else 0.0)
        lora = {} if adapter is None else adapter.scaled()["layers"]
        layers = self.config.num_layers
        keys = None if key is None else jax.random.split(key, layers)

        def layer(
            x: jax.Array, xs: tuple[PyTree, PyTree, jax.Array | None]
        ) -> tuple[jax.Array, None]:
            params, lora, key = xs
            rngs = None if key is None else {"dropout": key}
            variables = {"params": params, "lora": lora}
            return block.apply(variables, x, rotation, context, rngs=rngs)[0], None

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=False)
        # With remat, unrolled layers would be merged with their recomputation by the compiler.
        small = layers <= _UNROLLED and ids.shape[1] <= _UNROLLED_LENGTH
        on_cpu = jax.default_backend() == "cpu"
        unroll = layers if small and on_cpu and self.remat == "none" else 1
        xs = (params["layers"], lora, keys)
        x = self.embed(params, ids, soft)
        if unroll == 1 and self.remat == "none" and on_16_bit_cpu(self.dtype):
            x = scan_layers(lambda x, xs: layer(x, xs)[0], x, xs)
        else:
            x, _ = jax.lax.scan(layer, x, xs, unroll=unroll)
        return self.final_norm(params, x)

    def final_norm(self, params: PyTree, x: jax.Array) -> jax.Array:
        """Applies the final normalisation."""
        out: Any = RMSNorm(self.config.rms_eps).apply({"params": params["final_norm"]}, x)
        return out

    def table(self, params: PyTree) -> jax.Array:
        """Output weights, `[vocab, hidden]`; logits are states times their transpose."""
        return params["embed" if self.config.tie_embeddings else "head"]["table"]

    def logits(self, params: PyTree, ids: jax.Array, **options: Any) -> jax.Array:
        """Logits `[batch, length, vocab]` float32 of ids `[batch, length]`; options of `hidden`."""
        return self.project(params, self.hidden(params, ids, **options))

    def project(self, params: PyTree, hidden: jax.Array) -> jax.Array:
        """Projects states `[..., hidden]` to logits `[..., vocab]` float32."""
        table = self.table(params).astype(self.dtype)
        flat = hidden.reshape(-1, hidden.shape[-1])
        out = jax.lax.dot_general(
            flat, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        return out.reshape(*hidden.shape[:-1], table.shape[0])

    @property
    def scans_prompts(self) -> bool:
        """Whether `cached` scans over the layers of prompts, where they are at hand stacked."""
        return self.config.num_layers > _UNROLLED

    def cached(
        self,
        params: PyTree,
        x: jax.Array,
        positions: jax.Array,
        contexts: Sequence[Context],
        *,
        lora: PyTree = None,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Forward pass with a separate attention context for each layer, for decoding.

        Layers of a decoding step are not scanned: a cache carried through a scan would be copied at
        every layer. Those of prompts are, where there are many, for the compiler's sake.

        Args:
          params: as in `hidden`, or with `layers` as a tuple of one tree a layer (`unstack`);
            `scanned` may hold the stacked ones, see `layer_scan.stored`.
          x: embeddings `[batch, length, hidden]`.
          positions: `[batch, length]` int32.
          contexts: one context a layer, differing only in their caches.
          lora: `Adapter.scaled()["layers"]`, stacked or as a tuple of one tree a layer.

        Returns:
          Normalised states `[batch, length, hidden]`, and the cache of each layer.
        """
        rotation = Rotation(*rotations(self.config, positions))
        # Prompts have arbitrary lengths, which only the general implementations support.
        block = Block(self.config, self.dtype, _serving(self.attention))
        stacked = params.get("scanned", params["layers"])
        step = isinstance(contexts[0], DecodeStep)
        if self.scans_prompts and not step and not isinstance(stacked, tuple):
            return self._scanned(params, block, x, rotation, contexts, (stacked, _stacked(lora)))
        caches: list[Cache] = []
        for i, context in enumerate(contexts):
            variables = {"params": _layer(params["layers"], i), "lora": _layer(lora, i)}
            out: Any = block.apply(variables, x, rotation, context)
            x = out[0]
            caches.append(out[1])
        return self.final_norm(params, x), tuple(caches)

    def _scanned(
        self,
        params: PyTree,
        block: Block,
        x: jax.Array,
        rotation: Rotation,
        contexts: Sequence[Context],
        trees: tuple[PyTree, PyTree],
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """`cached` for prompts: one compiled layer, scanned over stacked parameters."""
        first = contexts[0]
        if on_16_bit_cpu(self.dtype):
            trees = stored(trees)
        # What differs between the layers' contexts is scanned over, too.
        prefixes = None
        if isinstance(first, PrefixAttention):
            of_layers = [c.cache for c in contexts if isinstance(c, PrefixAttention)]
            prefixes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_layers)

        def layer(x: jax.Array, xs: tuple[tuple[PyTree, PyTree], Any]) -> tuple[Any, Cache]:
            (weights, lora), prefix = xs
            context = first._replace(cache=prefix) if isinstance(first, PrefixAttention) else first
            variables = {"params": restored(weights), "lora": restored(lora)}
            out: Any = block.apply(variables, x, rotation, context)
            return out[0], Cache(*(leaf.astype(self.cache_dtype) for leaf in out[1]))

        x, caches = jax.lax.scan(layer, x, (trees, prefixes))
        layers = range(self.config.num_layers)
        return self.final_norm(params, x), tuple(Cache(caches.k[i], caches.v[i]) for i in layers)


def _stacked(tree: PyTree) -> PyTree:
    """Stacks a tuple of one tree a layer; a stacked tree, or none, unchanged."""
    if isinstance(tree, tuple):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree)
    return tree or {}


def _serving(implementation: str) -> str:
    """Attention implementation of prompts, which must support every length."""
    if implementation in ("xla", "blocked"):
        return implementation
    return "blocked" if jax.default_backend() == "cpu" else "xla"


def _layer(tree: PyTree, i: int) -> PyTree:
    if not tree:
        return {}
    return tree[i] if isinstance(tree, tuple) else jax.tree.map(lambda leaf: leaf[i], tree)
