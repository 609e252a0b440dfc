"""Batched generation: a queue of prompts flows through the rows of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.llm.llama import Llama, unstack
from xrec_jax.llm.lora import Adapter
from xrec_jax.llm.sampling import Sampling
from xrec_jax.llm.schedule import Answer, Plan, Request, Run, Work
from xrec_jax.parallel.mesh import current_batch_divisor

SCHEDULES = ("continuous", "static")


class Sampler:
    """Generates with one base and any of its adapters.

    Attributes:
      model: the model's functions.
      work: what the last call cost.

    Args:
      model: the model's functions.
      params: of the base, unboxed; sharded or not.
      eos: every token that ends an answer.
      batch: rows that generate at once; divisible by the devices along the batch.
      schedule: "continuous" refills finished rows from the queue, "static" waits for all.
      refill: finished rows that are worth a pause; 0 chooses. Few are best on a CPU, where reading
        one prompt costs what its tokens cost.
      check_every: steps between looks for stop strings.
      share_prefixes: read what prompts have in common once.
      unstack_layers: keep one array a layer and kernel, a second copy of the base in memory. On a
        CPU a slice of a stacked array is copied at every step, so there it is the default.

    Raises:
      UserError: on a value that is not valid.
    """

    def __init__(
        self,
        model: Llama,
        params: Any,
        *,
        eos: Sequence[int],
        batch: int = 16,
        schedule: str = "continuous",
        refill: int = 0,
        check_every: int = 16,
        share_prefixes: bool = True,
        unstack_layers: bool | None = None,
    ):
        if schedule not in SCHEDULES:
            hint = did_you_mean(schedule, SCHEDULES)
            raise UserError(f"schedule={schedule!r} is not valid{hint}")
        if batch < 1:
            raise UserError(f"batch={batch} must be positive")
        self.model = model
        cpu = jax.default_backend() == "cpu"
        divisor = current_batch_divisor()
        if batch % divisor:
            raise UserError(
                f"batch={batch} must be divisible by the {divisor} devices along the batch"
            )
        refill = min(batch, refill or (max(1, batch // 16) if cpu else max(1, batch // 4)))
        self._plan = Plan(
            eos=tuple(int(token) for token in eos), batch=batch,
            refill=batch if schedule == "static" else refill, multiple=divisor,
            check_every=check_every, share_prefixes=share_prefixes,
        )  # fmt: skip
        self._unstack = cpu if unstack_layers is None else unstack_layers
        self._params = self._split(params)
        self.work = Work()

    def _split(self, params: Any) -> Any:
        if not self._unstack or isinstance(params["layers"], tuple):
            return params
        return {**params, "layers": unstack(params["layers"], self.model.config.num_layers)}

    def _lora(self, adapter: Adapter | None) -> Any:
        if adapter is None:
            return None
        layers = jax.tree.map(lambda x: x.astype(self.model.dtype), adapter.scaled()["layers"])
        return unstack(layers, self.model.config.num_layers) if self._unstack else layers

    def generate(
        self,
        requests: Sequence[Request],
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
        adapter: Adapter | None = None,
        stop: Callable[[list[int]], int | None] | None = None,
    ) -> list[Answer]:
        """Answers every request, in order.

        Args:
          requests: the prompts.
          sampling: how tokens are chosen.
          adapter: None is the base.
          stop: from an answer's tokens so far to how many of them to keep, or None to go on; looked
            at every `check_every` steps.

        Raises:
          UserError: if a prompt is empty, holds an unknown token, or is too long with its answer.
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
        """As `generate`, but yields `(index, answer)` as soon as each is finished."""
        if not requests:
            return
        self._check(requests)
        run = Run(
            self.model, self._params, requests, lora=self._lora(adapter), sampling=sampling,
            plan=self._plan, stop=stop,
        )  # fmt: skip
        self.work = run.work
        yield from run.answers()

    def _check(self, requests: Sequence[Request]) -> None:
        config = self.model.config
        for number, request in enumerate(requests):
            if not len(request.ids):
                raise UserError(f"prompt {number} is empty")
            if request.max_new_tokens < 1:
                raise UserError(
                    f"max_new_tokens={request.max_new_tokens} of prompt {number} must be positive"
                )
            total = len(request.ids) + request.max_new_tokens
            if total > config.max_positions:
                raise UserError(
                    f"prompt {number} has {len(request.ids)} tokens and may get "
                    f"{request.max_new_tokens} more, but the model takes {config.max_positions}; "
                    "shorten the history or lower max_new_tokens"
                )
            worst = max(request.ids)
            if min(request.ids) < 0 or worst >= config.vocab_size:
                raise UserError(
                    f"prompt {number} holds token {worst}, beyond the vocabulary of "
                    f"{config.vocab_size}; is this the model's own tokenizer?"
                )
