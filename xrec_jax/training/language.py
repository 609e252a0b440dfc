"""Training of a language model, shared by the stages that train a base or an adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

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
    """Validates the training section of a stage.

    Args:
      train: the stage's training section.
      where: its path in the config, for messages.
      mesh: devices that the batch is split over.

    Raises:
      UserError: names the key, the value and the valid ones.
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


def lora_config(cfg: ConfigDict) -> LoraConfig:
    """LoRA configuration from a stage's `lora` section."""
    return LoraConfig(cfg.rank, cfg.alpha, cfg.dropout, tuple(cfg.targets))


class LanguageTask:
    """Training of an adapter on a frozen base, or of the whole model.

    Args:
      stage: name of the stage, of its checkpoint folder and in the metric log.
      model: the model's functions.
      lora: the adapter's configuration, or None to train the whole model.
      base: frozen parameters under an adapter.
      train: the stage's training section.
      rows: training rows.
      held_out: rows whose loss selects the best parameters.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      rundir: the run directory.
      steps_before: offset of the step count, see `training.loop.LoopOptions`.
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
        self.rows = rows
        self.loss = HeldOutLoss(model, held_out, mesh=mesh, batch_size=train.batch_size)

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
    def _tx(self) -> optax.GradientTransformation:
        return optimizer(self.train, self._steps_per_epoch * self.train.epochs)

    def _init(self, key: jax.Array) -> Any:
        if self.lora is None:
            return self.model.init(key)
        return lora_module.init_params(self.lora, self.model.config, key)

    def initial_state(self, seed: int) -> TrainState:
        """Initialises a sharded state."""
        check_divisible(self._init, self.mesh)
        state = initializer(self._init, self._tx, mesh=self.mesh)(seed)
        return state if self.lora is None else state.replace(frozen={"base": self.base})

    def fit(
        self,
        seed: int,
        writer: MetricWriter,
        *,
        evaluate_also: Callable[[TrainState], dict[str, float]] | None = None,
    ) -> Any:
        """Trains, or resumes from the newest checkpoint, and returns the best parameters.

        Args:
          seed: seed of initial values, data order and dropout.
          writer: metric log.
          evaluate_also: returns further metrics of a state, logged with each evaluation.
        """
        step = functools.partial(
            instruct_step,
            model=self.model,
            lora=self.lora,
            optimizer=self._tx,
            accumulation=self.train.accumulation,
        )
        state = self.initial_state(seed)

        def evaluate(state: TrainState) -> dict[str, float]:
            loss = self.loss(state.params, state.frozen.get("base"), self.lora)
            scores = {"valid/loss": loss, "valid/perplexity": perplexity(loss)}
            return scores | (evaluate_also(state) if evaluate_also is not None else {})

        # Config intervals are epochs; the loop counts steps.
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
    """Packs examples into rows; errors name the set.

    Args:
      examples: tokenized examples.
      length: tokens of a row.
      together: whether several examples may share a row.
      what: name of the set in messages.

    Raises:
      UserError: if the set is empty or an example does not fit.
    """
    if not examples:
        raise UserError(f"{what}: there is no example")
    try:
        return PackedRows(examples, length=length, together=together)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
