"""Host side of generation: assigns prompts to rows and refills finished rows."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.trees import PyTree
from xrec_jax.llm.generation import engine
from xrec_jax.llm.generation.prefixes import Group, bucket, groups
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.model.llama import Llama, SoftPrompt
from xrec_jax.parallel.mesh import gather

Stop = Callable[[list[int]], "int | None"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
      ids: token ids, at least one.
      max_new_tokens: most tokens to generate.
      seed: random seed; the same seed gives the same answer in any batch.
      soft_positions: columns of `ids` whose embeddings are replaced.
      soft_vectors: `[len(soft_positions), hidden]` embeddings.
    """

    ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    soft_positions: Sequence[int] = ()
    soft_vectors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """Generated answer to a prompt.

    Attributes:
      ids: token ids, including the end-of-text token.
      log_probs: log-probability of each token, see `sampling.choose`.
      stop: "eos", "length" or "string".
    """

    ids: list[int]
    log_probs: list[float]
    stop: str


@dataclasses.dataclass
class Work:
    """Cost of a call, for benchmarks and logs.

    Attributes:
      steps: decoding steps of the whole batch.
      prompt_tokens: prompt tokens computed, without padding.
      shared_tokens: prompt tokens saved by shared prefixes.
      new_tokens: generated tokens.
    """

    steps: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of a batch.

    Attributes:
      eos: tokens that end an answer.
      batch: number of rows.
      refill: number of free rows that justify a pause to admit prompts.
      multiple: number of prompts admitted at once is a multiple of this.
      check_every: steps between checks for stop strings.
      share_prefixes: compute common prefixes once.
      prompt_tokens: most tokens of prompts computed together, padding included; 0 for no limit.
    """

    eos: tuple[int, ...]
    batch: int
    refill: int
    multiple: int
    check_every: int
    share_prefixes: bool
    prompt_tokens: int = 0


@functools.lru_cache(maxsize=32)
def _compiled(model: Llama, sampling: Sampling, eos: tuple[int, ...]) -> dict[str, Any]:
    """Jitted functions, shared by all runs with the same settings."""
    cpu = jax.default_backend() == "cpu"
    # On a CPU the full optimisation takes longer to compile than it saves.
    options = {"xla_backend_optimization_level": 1} if cpu else None
    bound = (model, sampling, eos)
    sizes = ("batch", "slots", "most", "vocab")
    return {
        "admit": jax.jit(
            functools.partial(engine.admit, *bound), donate_argnums=2, compiler_options=options
        ),
        "decode": jax.jit(
            functools.partial(engine.decode, *bound), donate_argnums=2, compiler_options=options
        ),
        "prefix": jax.jit(functools.partial(engine.read_prefix, model), compiler_options=options),
        "empty": jax.jit(functools.partial(engine.empty_rows, model), static_argnames=sizes),
        "finish": jax.jit(lambda rows, done: rows.replace(done=done), donate_argnums=0),
    }


class Run:
    """One pass of a list of requests through a batch.

    Args:
      model: the model's functions.
      params: parameters of the base.
      requests: validated requests.
      lora: scaled adapter layers, or None.
      sampling: sampling options.
      plan: settings of the batch.
      stop: see `Sampler.generate`.
    """

    def __init__(
        self,
        model: Llama,
        params: PyTree,
        requests: Sequence[Request],
        *,
        lora: PyTree,
        sampling: Sampling,
        plan: Plan,
        stop: Stop | None,
    ):
        self.work = Work()
        self._params, self._lora, self._requests = params, lora, requests
        self._plan, self._stop = plan, stop
        self._call = _compiled(model, sampling, plan.eos)
        self._hidden = model.config.hidden_size
        self._soft = max(len(request.soft_positions) for request in requests)
        prompts = [request.ids for request in requests]
        # A shared prefix ends before the first soft vector: those differ between equal tokens.
        plain = [
            request.ids[: min(request.soft_positions) + 1]
            if len(request.soft_positions)
            else request.ids
            for request in requests
        ]
        self._queue = collections.deque(
            self._ordered(g) for g in groups(plain, share=plan.share_prefixes)
        )
        self._prefix: engine.Prefix | None = None
        self._prefix_of = -1
        # One cache for all requests: the longest prompt and answer, rounded up to few shapes.
        longest = max(len(ids) for ids in prompts)
        most = bucket(max(request.max_new_tokens for request in requests))
        self._vocab = model.config.vocab_size if sampling.penalises else 0
        self._rows = self._call["empty"](
            batch=plan.batch, slots=bucket(longest) + most, most=most, vocab=self._vocab
        )
        # Index of the request in each row; None for a free row.
        self._seats: list[int | None] = [None] * plan.batch

    def _ordered(self, group: Group) -> Group:
        """Sorts long answers first, so that the batch does not wait for a single one at the end."""
        requests = self._requests

        def key(i: int) -> tuple[int, int]:
            return -requests[i].max_new_tokens, -len(requests[i].ids)

        return dataclasses.replace(group, members=tuple(sorted(group.members, key=key)))

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Admits prompts, decodes and collects answers until all requests are done."""
        plan = self._plan
        while self._queue or any(seat is not None for seat in self._seats):
            if len(self._free()) >= plan.refill:
                while self._queue and (free := self._free()):
                    self._admit(free)
            # Without stop strings, decoding runs until enough rows are free; the host looks no
            # earlier.
            steps = plan.check_every if self._stop else 1 << 30
            before = int(self._rows.tick)
            self._rows = self._call["decode"](
                self._params,
                self._lora,
                self._rows,
                jnp.int32(steps),
                jnp.int32(plan.refill if self._queue else plan.batch),
            )
            yield from self._collect()
            self.work.steps += int(self._rows.tick) - before

    def _free(self) -> list[int]:
        return [row for row, seat in enumerate(self._seats) if seat is None]

    def _admit(self, free: list[int]) -> None:
        """Admits prompts of the first group into free rows."""
        group = self._queue.popleft()
        count = min(len(free), self._at_once(group))
        chosen, remaining = group.members[:count], group.members[count:]
        if remaining:
            self._queue.appendleft(dataclasses.replace(group, members=remaining))
        if group.prefix and self._prefix_of != group.number:
            self._read_prefix(group)
        new = self._prompts(chosen, free, group.prefix)
        self._rows = self._call["admit"](
            self._params, self._lora, self._rows, new, self._prefix if group.prefix else None
        )
        for index, row in zip(chosen, free, strict=False):
            self._seats[row] = index

    def _at_once(self, group: Group) -> int:
        """Number of prompts to compute together: as many as the caches of the processor hold."""
        if not self._plan.prompt_tokens:
            return self._plan.batch
        width = bucket(max(len(self._requests[i].ids) for i in group.members) - group.prefix)
        count = self._plan.multiple
        while 2 * count * width <= self._plan.prompt_tokens:
            count *= 2
        return count

    def _read_prefix(self, group: Group) -> None:
        ids = list(self._requests[group.members[0]].ids[: group.prefix])
        width = bucket(group.prefix)
        padded = np.tile([0] * (width - len(ids)) + ids, (self._plan.multiple, 1))
        self._prefix = self._call["prefix"](
            self._params, self._lora, padded.astype(np.int32), jnp.int32(group.prefix)
        )
        self._prefix_of = group.number
        self.work.prompt_tokens += group.prefix

    def _prompts(self, chosen: Sequence[int], free: Sequence[int], prefix: int) -> engine.Prompts:
        """Arrays of some prompts, padded to a power of two of them: few shapes are compiled."""
        requests = [self._requests[i] for i in chosen]
        count = self._plan.multiple
        while count < len(requests):
            count *= 2
        count = min(count, self._plan.batch)
        lengths = np.ones(count, np.int32)
        lengths[: len(requests)] = [len(r.ids) - prefix for r in requests]
        width = bucket(int(lengths.max()))
        ids = np.zeros((count, width), np.int32)
        rows = np.full(count, self._plan.batch, np.int32)
        limits, seeds = np.ones(count, np.int32), np.zeros(count, np.uint32)
        seen = np.zeros((count, self._vocab), bool)
        positions = np.full((count, self._soft), -1, np.int32)
        vectors = np.zeros((count, self._soft, self._hidden), np.float32)
        for k, request in enumerate(requests):
            ids[k, width - lengths[k] :] = request.ids[prefix:]
            rows[k], limits[k], seeds[k] = free[k], request.max_new_tokens, request.seed
            if self._vocab:
                seen[k, list(request.ids)] = True
            if len(request.soft_positions):
                used = len(request.soft_positions)
                # Left padding and the removed prefix shift the columns of soft vectors.
                moved = width - lengths[k] - prefix
                positions[k, :used] = np.asarray(request.soft_positions) + moved
                vectors[k, :used] = request.soft_vectors
            self.work.prompt_tokens += int(lengths[k])
            self.work.shared_tokens += prefix
        soft = SoftPrompt(jnp.asarray(positions), jnp.asarray(vectors)) if self._soft else None
        return engine.Prompts(ids, lengths, rows, limits, seeds, soft, seen)

    def _collect(self) -> Iterator[tuple[int, Answer]]:
        """Yields the answers of finished rows and frees the rows."""
        rows = self._rows
        done, counts, tokens, log_probs = gather(
            (rows.done, rows.count, rows.tokens, rows.log_probs)
        )
        done, stopped = done.copy(), False
        for row, index in enumerate(self._seats):
            if index is None:
                continue
            ids = tokens[row, : counts[row]].tolist()
            reason = "eos" if ids[-1] in self._plan.eos else "length"
            # A stop string ends a row that the device believes to be running; it is told below.
            keep = self._stop(ids) if self._stop else None
            if keep is not None:
                stopped |= not done[row]
                ids, reason, done[row] = ids[:keep], "string", True
            if done[row]:
                self._seats[row] = None
                self.work.new_tokens += len(ids)
                yield index, Answer(ids, log_probs[row, : len(ids)].tolist(), reason)
        if stopped:
            self._rows = self._call["finish"](self._rows, done)
