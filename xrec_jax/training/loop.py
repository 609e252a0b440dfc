"""Training loop shared by all stages: steps, logging, evaluation, checkpoints and resume."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, Progress
from xrec_jax.core.runtime.distributed import is_primary, sigterm
from xrec_jax.core.runtime.stopping import Stop
from xrec_jax.core.trees import host_value, not_finite
from xrec_jax.parallel.mesh import must_wait, put_batch
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.state import TrainState, shardings_of

Stepped = tuple[TrainState, dict[str, jax.Array]]
Step = Callable[[TrainState, Any, jax.Array], Stepped]
CompiledStep = Callable[[TrainState, Any], Stepped]


class Batches(Protocol):
    """A data iterator whose state is a small JSON object (see `data.pipeline.iterate`)."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Training was stopped by a signal, with everything saved; the same command resumes it.

    Args:
      stage: name of the interrupted stage.
      step: step of the saved checkpoint.
      number: signal number; 0 if another process received it.

    Attributes:
      status: exit status, `128 + signal` as in shells.
    """

    def __init__(self, stage: str, step: int, number: int = 0):
        name = signal.Signals(number or signal.SIGTERM).name
        super().__init__(f"{stage}: saved at step {step} after {name}; run the same command again")
        self.status = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """Schedule of the training loop. All intervals are optimizer steps.

    Attributes:
      total_steps: updates of the whole run.
      log_every: interval of fetching and logging metrics.
      evaluate_every: interval of `evaluate`; 0 never.
      checkpoint_every: interval of checkpoints; the last step always has one.
      patience: stop after this many evaluations in a row without a new best; 0 never.
      metric: name of the metric that selects the best parameters.
      lower_is_better: whether a lower value of that metric is better.
      examples_per_step: global batch size, for the logged rate.
      steps_per_epoch: for the logged epoch.
      flops_per_token: FLOPs of a training step per token counted by `train/read_tokens`, for the
        logged utilisation.
      peak_flops: FLOPs per second of all devices together; 0 logs no utilisation.
      steps_before: offset added to the step passed to `reached_preemption_sync_point`, which must
        increase over the whole run, not per stage.
    """

    total_steps: int
    log_every: int
    evaluate_every: int = 0
    checkpoint_every: int = 1000
    patience: int = 0
    metric: str = ""
    lower_is_better: bool = False
    examples_per_step: int = 1
    steps_per_epoch: int = 1
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    steps_before: int = 0


@dataclasses.dataclass
class LoopProgress:
    """Progress of the loop besides the training state; saved with every checkpoint.

    Attributes:
      best: the best score so far.
      best_step: step at which it was reached.
      bad_evaluations: evaluations since the best one.
      stopped: 1 once the metric has stopped improving.
      summed: number of steps since the last log line.
      sums: metrics summed over those steps.
    """

    best: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    stopped: int = 0
    summed: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)


def compile_step(step: Step, state: TrainState) -> CompiledStep:
    """Jits a step: state donated, its shardings kept, the run key folded with the step number.

    Args:
      step: a pure step function.
      state: example state with the shapes and shardings of the real one.
    """

    # The key depends on the step number alone, so a resumed run draws the same numbers.
    def train_step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        state, metrics = step(state.replace(frozen=frozen), batch, key)
        return state.replace(frozen={}), metrics

    shardings = shardings_of(state.replace(frozen={}))
    # On a CPU the lowest level that vectorises runs as fast as the highest and compiles sooner.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    jitted = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options
    )

    def compiled(state: TrainState, batch: Any) -> Stepped:
        # Frozen arrays are shared by all seeds, so they are not given away with the state.
        after, metrics = jitted(state.replace(frozen={}), state.frozen, batch)
        return after.replace(frozen=state.frozen), metrics

    return compiled


_AHEAD = 4  # steps that may be queued behind the one that runs


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


class _Pending:
    """Metrics of the steps since the last log line, fetched together so that no step waits.

    Sums go into the progress, which is saved: a resumed run logs the same means.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints, progress: LoopProgress):
        self._stage, self._checkpoints, self._progress = stage, checkpoints, progress
        self._steps: list[int] = []
        self._metrics: list[dict[str, jax.Array]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._steps.append(step)
        self._metrics.append(metrics)
        if len(self._metrics) > _AHEAD:  # SIGTERM should not have to wait for a long queue
            jax.block_until_ready(self._metrics[-1 - _AHEAD])

    def collect(self) -> None:
        """Fetches pending metrics from the device and adds them to the sums.

        Raises:
          UserError: if any value is not finite; names the first such step and the last checkpoint.
        """
        rows = jax.tree.map(host_value, self._metrics)
        for step, row in zip(self._steps, rows, strict=True):
            for name, value in row.items():
                if not math.isfinite(value):
                    self.refuse(f"{name} is {value}", step)
                self._progress.sums[name] = self._progress.sums.get(name, 0.0) + float(value)
            self._progress.summed += 1
        self._steps, self._metrics = [], []

    def means(self) -> dict[str, float]:
        """Means since the last call."""
        self.collect()
        sums, count = self._progress.sums, self._progress.summed
        self._progress.sums, self._progress.summed = {}, 0
        return {name: value / count for name, value in sums.items()}

    def refuse(self, problem: str, step: int) -> NoReturn:
        """Ends the run because of a value that is not finite.

        Raises:
          UserError: names the problem, the step and the last good checkpoint.
        """
        self._checkpoints.wait()
        good = self._checkpoints.latest
        kept = (
            f"the last good checkpoint is step {good}" if good else "no checkpoint was written yet"
        )
        raise UserError(
            f"{self._stage}: {problem} at step {step}; stopped, {kept}. "
            "Lower the learning rate or set clip_norm"
        )


def fit(
    state: TrainState,
    step: CompiledStep,
    batches: Batches,
    *,
    stage: str,
    mesh: Mesh,
    options: LoopOptions,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
) -> tuple[TrainState, LoopProgress]:
    """Trains until `total_steps` or until the metric stops improving; resumes by itself.

    Args:
      state: freshly initialised; replaced by the newest checkpoint if there is one.
      step: from `compile_step`.
      batches: this process's rows of global batches, in global order.
      stage: name in logs.
      mesh: devices; call inside `parallel.mesh.use_mesh`.
      options: intervals of logging, evaluation and checkpoints, and the stopping rule.
      checkpoints: checkpoints of the stage.
      writer: metric log.
      evaluate: returns metrics of a state, the same on every process.

    Returns:
      The last state, with `best_params` of the best evaluation (the last parameters if there is no
      evaluation), and the loop's progress.

    Raises:
      UserError: on a loss, parameters or a deciding score that is not finite.
      WriteError: if a checkpoint cannot be written.
      Interrupted: after SIGTERM, SIGINT or SIGHUP, with everything saved.
    """
    begin = time.perf_counter()
    progress = LoopProgress()
    # State, data position and progress come from one checkpoint, so that they always fit together.
    if checkpoints.latest is not None:
        state, data, saved = checkpoints.restore(state)
        batches.set_state(data)
        progress = LoopProgress(**saved)
    done = int(state.step)
    writer.rewind(stage, done)  # lines after the checkpoint are written again
    wait_each = must_wait(mesh)
    bar = Progress(stage, options.total_steps, initial=done, enabled=is_primary())
    scored = evaluate is not None and options.evaluate_every > 0
    pending = _Pending(stage, checkpoints, progress)
    last_time, last_step = time.perf_counter(), done

    def save():
        checkpoints.save(state, batches.get_state(), dataclasses.asdict(progress))

    with sigterm() as terminated:
        while done < options.total_steps and not progress.stopped:
            checkpoints.check()
            state, metrics = step(state, put_batch(next(batches), mesh))
            if wait_each:
                jax.block_until_ready(state)
            done += 1
            pending.add(done, metrics)
            last = done == options.total_steps
            evaluates = evaluate is not None and _due(done, options.evaluate_every, last)
            # Metrics are fetched only here: every fetch makes the host wait for the device.
            if last or evaluates or done % options.log_every == 0:
                logged: dict[str, float] = pending.means()
                now = time.perf_counter()
                rate = (done - last_step) * options.examples_per_step / max(now - last_time, 1e-9)
                logged["time/examples_per_second"] = rate
                logged |= _token_rates(logged, rate / options.examples_per_step, options)
                logged["train/epoch"] = done / options.steps_per_epoch
                if evaluates and evaluate is not None:
                    scores = evaluate(state)
                    score = _deciding(scores, options)
                    if not math.isfinite(score):
                        pending.refuse(f"{options.metric} is {score}", done)
                    state = _note_score(state, score, done, progress, options)
                    logged |= scores
                    logged["time/evaluation_seconds"] = time.perf_counter() - now
                logged["time/elapsed_seconds"] = time.perf_counter() - begin
                writer.write(stage, done, logged)
                bar.advance(done - last_step, _note(logged, options.metric))
                # Evaluation is not part of the rate of the next interval.
                last_time, last_step = time.perf_counter(), done
            # After the evaluation, so that a stop by patience is saved with this step.
            interrupted = stop_requested(terminated, options.steps_before + done)
            last = last or bool(progress.stopped)
            if last or interrupted or done % options.checkpoint_every == 0:
                pending.collect()  # a state that is not finite is never saved
                if broken := not_finite(state.params):
                    pending.refuse(f"parameters are not finite ({broken[0]})", done)
                if not scored:  # the newest parameters stand in for the best
                    state = state.replace(best_params=_copy(state.params))
                save()
            if interrupted:
                checkpoints.wait()
                bar.close()
                raise Interrupted(stage, done, terminated.number)
    checkpoints.wait()
    bar.close()
    return state, progress


def _token_rates(
    logged: dict[str, float], steps_per_second: float, options: LoopOptions
) -> dict[str, float]:
    """Tokens a second and model-FLOPs utilisation; empty for steps that count no tokens."""
    if "train/read_tokens" not in logged:
        return {}
    rate = logged["train/read_tokens"] * steps_per_second
    rates = {"time/tokens_per_second": rate}
    if options.peak_flops and options.flops_per_token:
        rates["time/mfu"] = rate * options.flops_per_token / options.peak_flops
    return rates


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def _deciding(scores: dict[str, float], options: LoopOptions) -> float:
    """The score that decides which parameters are best."""
    if options.metric not in scores:
        raise UserError(
            f"the stopping metric {options.metric!r} is not among {', '.join(sorted(scores))}"
        )
    return scores[options.metric]


def _note_score(
    state: TrainState, score: float, step: int, progress: LoopProgress, options: LoopOptions
) -> TrainState:
    """Keeps the parameters if they are the best so far, and decides whether to stop."""
    sign = -1.0 if options.lower_is_better else 1.0
    best = progress.best
    # A checkpoint may hold a best score that is NaN, from when those were taken.
    if best is None or not math.isfinite(best) or sign * score > sign * best:
        progress.best, progress.best_step, progress.bad_evaluations = score, step, 0
        return state.replace(best_params=_copy(state.params))
    progress.bad_evaluations += 1
    progress.stopped = int(0 < options.patience <= progress.bad_evaluations)
    return state


def stop_requested(stop: Stop, step: int) -> bool:
    """True if training is to stop at this step, the same on all processes."""
    # A process that stopped by itself would leave the others waiting in a collective operation.
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return stop.is_set()


def _note(logged: dict[str, float], metric: str) -> str:
    parts = [f"loss {logged['train/loss']:.4f}"] if "train/loss" in logged else []
    if metric in logged:
        parts.append(f"{metric} {logged[metric]:.4f}")
    return ", ".join(parts)
