"""Batched generation: a queue of prompts passes through the rows of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.generation import fused
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Answer, Plan, Request, Run, Work
from xrec_jax.llm.model import layer_scan
from xrec_jax.llm.model.layout import Parameter, build
from xrec_jax.llm.model.llama import Llama, unstack
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.model.quantize import bytes_of, is_quantized
from xrec_jax.parallel.mesh import current_parts, sharding

SCHEDULES = ("continuous", "static")
# Activations of more prompts leave the caches of a CPU between one operation and the next.
_CPU_ACTIVATION_BYTES = 6 << 20
# Larger layers are not held in the forms that save a small model's decoding and compilation time.
_FUSED_BYTES = 1 << 30


class Sampler:
    """Generator for one base and any of its adapters.

    Attributes:
      model: the model's functions.
      work: cost of the last call.

    Args:
      model: the model's functions.
      params: parameters of the base, unboxed; sharded or not.
      eos: token or tokens that end an answer.
      batch: number of rows generated at once; divisible by the batch shards.
      schedule: "continuous" refills finished rows from the queue, "static" waits for all.
      refill: number of finished rows that justify a pause; 0 for a quarter of the batch.
      check_every: steps between checks for stop strings.
      share_prefixes: compute common prefixes of prompts once.
      unstack_layers: keep one array a layer and kernel, a second copy of the base in memory. The
        default on CPUs, where a slice of a stacked array is copied at every step. A model of more
        than 8 layers, of less than 1 GiB, has a third there, which prompts are computed from.

    Raises:
      UserError: for an invalid value.
    """

    def __init__(
        self,
        model: Llama,
        params: PyTree,
        *,
        eos: int | Sequence[int],
        batch: int = 16,
        schedule: str = "continuous",
        refill: int = 0,
        check_every: int = 16,
        share_prefixes: bool = True,
        unstack_layers: bool | None = None,
    ):
        # Validate the arguments.
        if schedule not in SCHEDULES:
            hint = did_you_mean(schedule, SCHEDULES)
            raise UserError(f"schedule={schedule!r} is not valid{hint}")
        for name, value in (("batch", batch), ("check_every", check_every)):
            if value < 1:
                raise UserError(f"{name}={value} must be positive")
        if refill < 0:
            raise UserError(f"refill={refill} must not be negative; 0 chooses")
        self.model = model
        cpu = jax.default_backend() == "cpu"
        divisor = current_parts("batch")
        if batch % divisor:
            raise UserError(
                f"batch={batch} must be divisible by the {divisor} devices along the batch"
            )
        # A static schedule is one that refills only when the whole batch is free.
        refill = min(batch, refill or max(1, batch // 4))
        self._plan = Plan(
            eos=(int(eos),) if isinstance(eos, int) else tuple(map(int, eos)),
            batch=batch,
            refill=batch if schedule == "static" else refill,
            multiple=divisor,
            check_every=check_every,
            share_prefixes=share_prefixes,
            prompt_tokens=_CPU_ACTIVATION_BYTES // (4 * model.config.intermediate_size)
            if cpu
            else 0,
        )
        # Parameters are prepared once, for all calls.
        self._unstack = cpu if unstack_layers is None else unstack_layers
        self._fuses = self._may_fuse(params["layers"])
        self._shapes = fused.shapes(params["layers"]) if self._fuses else None
        self._params = self._split(params)
        self.work = Work()

    def _may_fuse(self, layers: PyTree) -> bool:
        """True for plain kernels of one CPU device that are small enough to be held again."""
        leaves = jax.tree.leaves(layers, is_leaf=is_quantized)
        plain = not isinstance(layers, tuple) and not any(map(is_quantized, leaves))
        alone = current_parts("batch") * current_parts("heads") == 1
        return (
            jax.default_backend() == "cpu"
            and self._unstack
            and plain
            and alone
            and bytes_of(layers) <= _FUSED_BYTES
        )

    def _split(self, params: PyTree) -> PyTree:
        params = _for_serving(params, self.model)
        if not self._unstack or isinstance(params["layers"], tuple):
            return params
        layers, count = params["layers"], self.model.config.num_layers
        if not self._fuses:
            return {**params, "layers": unstack(layers, count)}
        # Prompts are computed from stacked layers, new tokens from those of their own.
        layers = fused.fuse(layers)
        split = {**params, "layers": unstack(layers, count)}
        if self.model.scans_prompts:
            split["scanned"] = layer_scan.stored(layers)
        return split

    def _lora(self, adapter: Adapter | None) -> PyTree:
        if adapter is None:
            return None
        layers = jax.tree.map(lambda x: x.astype(self.model.dtype), adapter.scaled()["layers"])
        if self._fuses:
            layers = fused.fuse_lora(layers, self._shapes)
        return unstack(layers, self.model.config.num_layers) if self._unstack else layers

    def generate(
        self,
        requests: Sequence[Request],
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
        adapter: Adapter | None = None,
        stop: Callable[[list[int]], int | None] | None = None,
    ) -> list[Answer]:
        """Generates an answer to every request, in order.

        Args:
          requests: the prompts.
          sampling: sampling options.
          adapter: None for the base.
          stop: maps an answer's tokens so far to the number of tokens to keep, or None to continue;
            called every `check_every` steps.

        Raises:
          UserError: if a prompt is empty, holds an invalid token, or is too long with its answer.
        """
        answers: list[Answer | None] = [None] * len(requests)
        for index, answer in self.stream(requests, sampling=sampling, adapter=adapter, stop=stop):
            answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def stream(
        self,
        requests: Sequence[Request],
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
        adapter: Adapter | None = None,
        stop: Callable[[list[int]], int | None] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """As `generate`, but yields `(index, answer)` as rows finish."""
        if not requests:
            return
        self._check(requests)
        run = Run(
            self.model,
            self._params,
            requests,
            lora=self._lora(adapter),
            sampling=sampling,
            plan=self._plan,
            stop=stop,
        )
        self.work = run.work
        yield from run.answers()

    def _check(self, requests: Sequence[Request]) -> None:
        for number, request in enumerate(requests):
            self._check_one(f"prompt {number}", request)

    def _check_one(self, name: str, request: Request) -> None:
        config, length = self.model.config, len(request.ids)
        if not length:
            raise UserError(f"{name} is empty")
        if request.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={request.max_new_tokens} of {name} must be positive")
        if length + request.max_new_tokens > config.max_positions:
            raise UserError(
                f"{name} has {length} tokens and may get {request.max_new_tokens} more, but the "
                f"model takes {config.max_positions}; shorten the history or lower max_new_tokens"
            )
        for token in (min(request.ids), max(request.ids)):
            if not 0 <= token < config.vocab_size:
                raise UserError(
                    f"{name} holds token {token}, outside the vocabulary of {config.vocab_size}; "
                    "is this the model's own tokenizer?"
                )
        if not 0 <= request.seed < 1 << 32:
            raise UserError(f"{name} has seed={request.seed}, which must be from 0 to 2**32 - 1")
        places, vectors = request.soft_positions, request.soft_vectors
        if any(not 0 <= place < length for place in places) or len(set(places)) < len(places):
            raise UserError(
                f"{name}: soft_positions={list(places)} must be different columns of its {length} "
                "tokens"
            )
        if not len(places) and vectors is None:
            return
        shape = [len(places), config.hidden_size]
        actual = "missing" if vectors is None else list(vectors.shape)
        if actual != shape:
            raise UserError(f"{name}: soft_vectors must have shape {shape}, but are {actual}")


def _for_serving(params: PyTree, model: Llama) -> PyTree:
    """Gathers FSDP-sharded parameters, if they fit into a quarter of the device memory.

    Otherwise each decoding step would gather every kernel again. They are cast to the model's
    dtype, so that a step reads no more bytes than it needs.
    """
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    split = getattr(leaves[0], "sharding", None)
    if not isinstance(split, NamedSharding) or any(map(is_quantized, leaves)):
        return params
    mesh: Any = split.mesh
    shards = mesh.shape.get("fsdp", 1)
    stats = jax.local_devices()[0].memory_stats() or {}
    size = sum(x.size for x in leaves) * jnp.dtype(model.dtype).itemsize
    size //= mesh.shape.get("tensor", 1)
    if shards == 1 or size > stats.get("bytes_limit", 1 << 36) // 4:
        return params

    def gathered(parameter: Parameter) -> NamedSharding:
        axes = [None if axis == "embed" else axis for axis in parameter.axes]
        return sharding(mesh, *axes)

    cast = jax.jit(
        lambda tree: jax.tree.map(lambda x: x.astype(model.dtype), tree),
        out_shardings=build(model.config, gathered),
    )
    return cast(params)
