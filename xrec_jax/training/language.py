"""Training of a language model: what the `pretrain` and `instruct` stages share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.packing import Example, PackedRows
from xrec_jax.data.pipeline import BatchSource, iterate
from xrec_jax.llm.model import lora as lora_module
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.parallel.devices import peak_flops
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.training import defaults
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.held_out import HeldOutLoss, perplexity
from xrec_jax.training.instruct import instruct_step
from xrec_jax.training.loop import LoopOptions, compile_step, fit
from xrec_jax.training.optimizers import optimizer
from xrec_jax.training.state import TrainState, check_divisible, initializer

METRICS = ("valid/loss",)


def check(train: Any, where: str, mesh: Mesh) -> None:
    """Refuses training values that cannot work.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    defaults.check_training(train, where, METRICS)
    if train.accumulation < 1:
        raise UserError(f"{where}.accumulation={train.accumulation} must be positive")
    parts = batch_divisor(mesh) * train.accumulation
    if train.batch_size % parts:
        raise UserError(
            f"{where}.batch_size={train.batch_size} must be divisible by {parts}: "
            f"{batch_divisor(mesh)} devices along the batch, {train.accumulation} parts each"
        )
    if batch_divisor(mesh) % jax.process_count():
        raise UserError(
            f"mesh: the batch is split over {batch_divisor(mesh)} devices, which the "
            f"{jax.process_count()} processes do not share evenly; make data x fsdp a multiple"
        )
    optimizer(train, 1)


def lora_config(asked: Any) -> LoraConfig:
    """The adapter that a stage's `lora` values ask for."""
    return LoraConfig(asked.rank, asked.alpha, asked.dropout, tuple(asked.targets))


class LanguageTask:
    """One model in training: an adapter on a frozen base, or the model itself.

    Args:
      stage: name of the stage, its folder and its lines in the metric log.
      model: the model's functions.
      lora: the adapter's configuration, or None to train the model itself.
      base: frozen parameters under an adapter.
      train: the stage's training values.
      rows: to train on.
      held_out: to choose the best parameters by.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      rundir: the run directory.
      steps_before: updates of earlier stages of the run; see `training.loop.LoopOptions`.
    """

    def __init__(
        self,
        stage: str,
        *,
        model: Llama,
        lora: LoraConfig | None,
        base: Any,
        train: Any,
        rows: PackedRows,
        held_out: PackedRows,
        mesh: Mesh,
        rundir: RunDir,
        steps_before: int = 0,
    ):
        self.stage, self.model, self.lora, self.base = stage, model, lora, base
        self.train, self.mesh, self.rundir = train, mesh, rundir
        self._steps_before = steps_before
        self.rows, self.loss = (
            rows,
            HeldOutLoss(model, held_out, mesh=mesh, batch_size=train.batch_size),
        )

    def _source(self, seed: int) -> BatchSource:
        return BatchSource(
            self.rows,
            batch_size=self.train.batch_size,
            seed=seed,
            process=jax.process_index(),
            processes=jax.process_count(),
        )

    @functools.cached_property
    def _steps_per_epoch(self) -> int:
        return self._source(0).steps_per_epoch

    @functools.cached_property
    def _rule(self) -> Any:
        return optimizer(self.train, self._steps_per_epoch * self.train.epochs)

    def _init(self, key: jax.Array) -> Any:
        if self.lora is None:
            return self.model.init(key)
        return lora_module.init_params(self.lora, self.model.config, key)

    def initial_state(self, seed: int) -> TrainState:
        """A fresh sharded state."""
        check_divisible(self._init, self.mesh)
        state = initializer(self._init, self._rule, mesh=self.mesh)(seed)
        return state if self.lora is None else state.replace(frozen={"base": self.base})

    def fit(
        self,
        seed: int,
        writer: MetricWriter,
        *,
        evaluated: Callable[[TrainState], dict[str, float]] | None = None,
    ) -> Any:
        """Trains, or goes on where it stopped; returns the best parameters.

        Args:
          seed: of initial values, order and dropout.
          writer: metric log.
          evaluated: called with the state after each evaluation; what it returns is logged.
        """
        step = functools.partial(
            instruct_step,
            model=self.model,
            lora=self.lora,
            optimizer=self._rule,
            accumulation=self.train.accumulation,
        )
        state = self.initial_state(seed)

        def evaluate(state: TrainState) -> dict[str, float]:
            loss = self.loss(state.params, state.frozen.get("base"), self.lora)
            found = {"valid/loss": loss, "valid/perplexity": perplexity(loss)}
            return found | (evaluated(state) if evaluated is not None else {})

        train, epoch = self.train, self._steps_per_epoch
        options = LoopOptions(
            total_steps=epoch * train.epochs,
            log_every=train.log_every or epoch,
            evaluate_every=epoch * train.evaluate_every,
            checkpoint_every=epoch * train.checkpoint_every,
            patience=train.patience,
            metric=train.metric,
            lower_is_better=True,
            examples_per_step=train.batch_size,
            steps_per_epoch=epoch,
            # An adapter's backward pass needs no gradient of the base: 4N instead of 6N.
            flops_per_token=(4 if self.lora else 6) * self.model.config.matmul_parameters,
            peak_flops=peak_flops() * self.mesh.size,
            steps_before=self._steps_before,
        )
        batches = iterate(self._source(seed), prefetch=train.prefetch)
        with Checkpoints(self.rundir.checkpoints(self.stage)) as checkpoints:
            state, _ = fit(
                state,
                compile_step(step, state),
                batches,
                stage=self.stage,
                mesh=self.mesh,
                options=options,
                checkpoints=checkpoints,
                writer=writer,
                evaluate=evaluate,
            )
        return state.best_params


def packed(examples: Sequence[Example], *, length: int, together: bool, what: str) -> PackedRows:
    """Rows of a set; errors name the set.

    Raises:
      UserError: if the set is empty or an example does not fit.
    """
    if not examples:
        raise UserError(f"{what}: there is no example")
    try:
        return PackedRows(examples, length=length, together=together)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
