"""Training, evaluation and per-user metrics of one recommender, for each seed."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.arrays import write_npz
from xrec_jax.data.histories import Histories
from xrec_jax.data.packed_windows import PackedWindows
from xrec_jax.data.pipeline import BatchSource, Negatives, PairRows, Rows, WindowRows, iterate
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation.ranking.evaluator import PerUser, RankingEvaluator
from xrec_jax.evaluation.ranking.protocol import RankingProtocol
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.recommenders.content import ContentTower, with_content
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import CompiledStep, LoopOptions, LoopProgress, compile_step, fit
from xrec_jax.training.optimizers import optimizer
from xrec_jax.training.state import TrainState, check_divisible, initializer, with_rows
from xrec_jax.training.steps import recommend_step


def build_model(system: Any, data: RunData) -> recommenders.Recommender:
    """Creates the recommender of a config entry, sized for the data."""
    model = recommenders.create(
        system.model,
        dict(system.hparams),
        num_users=data.dataset.num_users,
        num_items=data.dataset.num_items,
    )
    vectors = data.item_vectors
    width = None if vectors is None else vectors.values.shape[1]
    return with_content(model, system.get("content"), width)


def frozen_arrays(model: recommenders.Recommender, data: RunData) -> recommenders.Frozen:
    """Arrays that a recommender takes from the training events, item table and item vectors."""
    parts = [model.frozen(data.learned.user, data.learned.item)]
    base = model
    if isinstance(model, ContentTower):
        assert data.item_vectors is not None  # or there would be no tower
        parts.append(model.describe_content(*data.item_vectors))
        base = model.base
    # A large table is not converted for nothing.
    if type(base).describe_items is not recommenders.Recommender.describe_items:
        table = data.dataset.items
        columns = None if table is None else table.to_dict(as_series=False)
        parts.append(base.describe_items(columns))
    return recommenders.Frozen(
        {name: array for part in parts for name, array in part.arrays.items()},
        {name: axes for part in parts for name, axes in part.axes.items()},
    )


class RecommenderTask:
    """One recommender of the `recommend` stage, trained and evaluated for each seed.

    Compiled functions and evaluation batches are made once and shared by the seeds.

    Args:
      config: the whole config.
      name: the system.
      data: prepared data.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      rundir: the run directory.

    Raises:
      UserError: if the model refuses its hyper-parameters or the batch does not fit the mesh.
    """

    def __init__(self, config: Any, name: str, *, data: RunData, mesh: Mesh, rundir: RunDir):
        self.name, self.train = name, config.recommend[name].train
        self.model = build_model(config.recommend[name], data)
        self.data, self.mesh, self.rundir = data, mesh, rundir
        self.trained = self.model.batches != "none"
        self._ks = tuple(config.ranking.ks)
        self._protocol = RankingProtocol(config.ranking.rows, config.ranking.mask_seen)
        # Each device takes an equal share of the rows.
        if self.trained and self.train.batch_size % batch_divisor(mesh):
            raise UserError(
                f"recommend.{name}.train.batch_size={self.train.batch_size} must be divisible by "
                f"the {batch_divisor(mesh)} devices along the batch"
            )

    def check(self) -> None:
        """Validates the optimizer's configuration and the mesh before anything is written.

        Raises:
          UserError: on an optimiser, schedule or rate that is not valid.
        """
        check_divisible(self.model.init, self.mesh)
        if self.trained:
            _ = self._tx  # building it checks the values

    def stage(self, seed: int) -> str:
        """Name of a seed's folder and of its lines in the metric log."""
        return f"recommend/{self.name}/{seed}"

    @functools.cached_property
    def _negatives(self) -> Negatives:
        # Items of held-out events may be drawn: leaving them out would tell of the test set.
        histories = Histories.of([self.data.learned], self.model.num_users)
        return Negatives(
            histories,
            self.model.num_items,
            per_row=self.model.negatives_per_row,
            sampling=self.model.sampling,
            seed=0,
        )

    def _windows(self, seed: int) -> WindowRows:
        model, negatives = self.model, self._negatives.reseeded(seed)
        return WindowRows.of(
            negatives.histories,
            negatives,
            length=model.history_length,
            context=model.min_context,
            seed=seed,
            clocks=model.reads_times,
            latest=model.latest_windows,
        )

    @functools.cached_property
    def _packed(self) -> PackedWindows:
        """The rows of all seeds: which windows share one does not depend on the seed."""
        return PackedWindows.of(self._windows(0), self.model.packing_length)

    def batch_source(self, seed: int) -> BatchSource:
        """Training batches of this process as a function of the global step."""
        rows: Rows
        if self.model.batches != "sequences":
            negatives = self._negatives.reseeded(seed)
            rows = PairRows.of(negatives.histories, negatives)
        elif self.model.packing_length:
            rows = dataclasses.replace(self._packed, windows=self._windows(seed))
        else:
            rows = self._windows(seed)
        return BatchSource(
            rows,
            batch_size=self.train.batch_size,
            seed=seed,
            process=jax.process_index(),
            processes=jax.process_count(),
        )

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Number of updates in which every training row is seen once."""
        return self.batch_source(0).steps_per_epoch

    @functools.cached_property
    def _tx(self) -> optax.GradientTransformation:
        return optimizer(self.train, self.total_steps)

    @functools.cached_property
    def initial_state(self) -> Callable[[int], TrainState]:
        """Function from a seed to a drawn sharded state with the model's frozen arrays."""
        frozen = frozen_arrays(self.model, self.data)
        return initializer(
            self.model.init,
            self._tx if self.trained else optax.identity(),
            mesh=self.mesh,
            frozen=frozen.arrays,
            frozen_axes=frozen.axes,
        )

    @functools.cached_property
    def _initial_rows(self) -> dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
        """What is initialised from the training events, by parameter."""
        rows = dict(self.model.initial_rows(self.data.learned.user, self.data.learned.item))
        for path, (numbers, _) in rows.items():
            if is_primary():
                log(
                    f"recommend.{self.name}: {len(numbers):,} rows of {'/'.join(path)} are "
                    "initialised from the training events"
                )
        return rows

    @functools.cached_property
    def _evaluators(self) -> dict[str, RankingEvaluator]:
        split = self.data.split
        # Per group: events whose items are not ranked again, and events to find.
        events = {
            "valid": ([split.train], split.valid),
            "test": ([split.train, split.valid], split.test),
        }
        return {
            group: RankingEvaluator(
                self.model,
                seen=seen,
                held_out=held_out,
                mesh=self.mesh,
                ks=self._ks,
                protocol=self._protocol,
                learned=self.data.learned,
            )
            for group, (seen, held_out) in events.items()
        }

    @functools.cached_property
    def _step(self) -> CompiledStep:
        step = functools.partial(recommend_step, model=self.model, optimizer=self._tx)
        return compile_step(step, self.initial_state(0))

    def evaluate(self, group: str, params: Any, frozen: Any) -> PerUser:
        """Metrics of every user on the "valid" or "test" events."""
        return self._evaluators[group](params, frozen)

    def run(self, seed: int, writer: MetricWriter, *, steps_before: int = 0) -> None:
        """Trains (or resumes) and evaluates one seed; its per-user file marks the seed as done."""
        begin = time.perf_counter()
        note = ""
        if self.trained:
            state, progress = self.fit(seed, writer, steps_before=steps_before)
            params, frozen = state.best_params, state.frozen
            note = f", best of {int(state.step)} steps at {progress.best_step}"
        else:
            params, frozen = self.restore(seed)
        self.write_per_user(seed, params, frozen)
        if is_primary():
            log(f"{self.stage(seed)}: done in {time.perf_counter() - begin:.1f} s{note}")

    @property
    def total_steps(self) -> int:
        """Number of updates of a seed that is not stopped early."""
        return self.train.epochs * self.steps_per_epoch if self.trained else 0

    def fit(
        self, seed: int, writer: MetricWriter, *, steps_before: int = 0
    ) -> tuple[TrainState, LoopProgress]:
        """Trains one seed, from its newest checkpoint if there is one."""
        train, epoch = self.train, self.steps_per_epoch
        packed = self._packed if self.model.packing_length else None
        if packed is not None and packed.num_rows < train.batch_size and is_primary():
            log(
                f"recommend.{self.name}.train.batch_size={train.batch_size}: more than the "
                f"{packed.num_rows} packed rows of an epoch, each of which is taken several times"
            )
        windows_per_row = 1.0 if packed is None else packed.windows.num_rows / packed.num_rows
        options = LoopOptions(
            total_steps=self.total_steps,
            log_every=train.log_every or epoch,
            evaluate_every=train.evaluate_every * epoch,
            checkpoint_every=train.checkpoint_every * epoch,
            patience=train.patience,
            metric=train.metric,
            examples_per_step=round(train.batch_size * windows_per_row),
            steps_per_epoch=epoch,
            steps_before=steps_before,
        )
        source = self.batch_source(seed)
        state = self.initial_state(seed)
        with Checkpoints(self.rundir.checkpoints(self.stage(seed))) as checkpoints:
            if checkpoints.latest is None:
                state = with_rows(state, self._initial_rows)
            return fit(
                state,
                self._step,
                iterate(source, prefetch=train.prefetch),
                stage=self.stage(seed),
                mesh=self.mesh,
                options=options,
                checkpoints=checkpoints,
                writer=writer,
                evaluate=lambda s: self.evaluate("valid", s.params, s.frozen).means("valid"),
            )

    def _lost(self, seed: int) -> UserError:
        """Error for a seed without a checkpoint, with advice."""
        advice = "run `xrec run` first"
        if (file := self.rundir.per_user(self.stage(seed))).exists():
            advice = f"put it back, or delete {file} and run `xrec run`, which trains it again"
        folder = self.rundir.checkpoints(self.stage(seed))
        return UserError(f"{self.stage(seed)} has no checkpoint in {folder}; {advice}")

    def check_checkpoint(self, seed: int) -> None:
        """Checks that the checkpoint folder of a trained seed exists.

        Raises:
          UserError: if it does not.
        """
        if self.trained and not self.rundir.checkpoints(self.stage(seed)).exists():
            raise self._lost(seed)

    def restore(self, seed: int) -> tuple[Any, Any]:
        """Best parameters of the newest checkpoint, and the frozen arrays.

        Raises:
          UserError: if nothing was saved.
        """
        state = self.initial_state(seed)
        if not self.trained:
            return state.params, state.frozen
        self.check_checkpoint(seed)
        folder = self.rundir.checkpoints(self.stage(seed))
        with Checkpoints(folder, read_only=True) as checkpoints:
            if checkpoints.latest is None:
                raise self._lost(seed)
            state, _, _ = checkpoints.restore(state)
        return state.best_params, state.frozen

    def write_per_user(self, seed: int, params: Any, frozen: Any) -> None:
        """Evaluates on validation and test events, and saves the metrics of every user."""
        arrays: dict[str, Any] = {}
        for group in ("valid", "test"):
            result = self.evaluate(group, params, frozen)
            arrays[f"{group}_users"] = result.users
            for kind, rows in (("repeat", result.repeat), ("cold", result.cold)):
                if rows is not None:
                    arrays[f"{group}_{kind}"] = rows
            arrays |= {f"{group}/{name}": v for name, v in result.masked.items()}
            arrays |= {f"{group}_unmasked/{name}": v for name, v in result.unmasked.items()}
        if is_primary():
            write_npz(self.rundir.per_user(self.stage(seed)), arrays)


STAGE = "recommend"


def seeds_of(config: Any, name: str) -> tuple[int, ...]:
    """Seeds that a recommender is run with: only the first for models without training."""
    untrained = recommenders.get(config.recommend[name].model).batches == "none"
    return tuple(config.seeds)[:1] if untrained else tuple(config.seeds)
