"""One seed of a joint run: warm start, rounds, and the checkpoints between them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.runtime.distributed import is_primary, sigterm
from xrec_jax.core.storage import files
from xrec_jax.joint import explanations, guards
from xrec_jax.joint.explanations import readable
from xrec_jax.joint.guards import GuardState
from xrec_jax.joint.held_out import baseline, held_out
from xrec_jax.joint.round import learn, roll_out
from xrec_jax.joint.setup import ROUNDS_AT
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import Explanations, JointState, Rollout, part_of
from xrec_jax.parallel.mesh import gather, put_replicated
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import Interrupted, stop_requested
from xrec_jax.training.rl.kl import controller

WARM = 0  # the round of the warm start

Metrics = dict[str, Any]


def train(sides: Sides, writer: MetricWriter) -> tuple[Sides, JointState]:
    """Trains a seed until its rounds are done or a guard stops them.

    A run that was cut off goes on from its newest checkpoint, to the same bits.

    Args:
      sides: of the seed, from `open_sides`.
      writer: metric log.

    Returns:
      Both sides with the warm start's policy and the baseline, and the last state, whose `best` has
      the best round's parameters.

    Raises:
      UserError: on rewards or log-probabilities that are worthless (see `joint.guards`).
      Interrupted: after SIGTERM, with everything saved.
    """
    shared, stage = sides.shared, sides.stage
    _check_identity(sides)
    with Checkpoints(shared.rundir.checkpoints(f"{stage}/rounds")) as checkpoints:
        state: JointState | None = None
        guard, history = GuardState(), []
        if checkpoints.latest is not None:
            state, data, _ = checkpoints.restore(state_shape(sides))
            guard, history = GuardState.from_json(data["guard"]), list(data["rounds"])
        # Restored where it was tuned before: it is the reference of the KL in every round.
        warm_policy = sides.actor.warm_start(sides.seed, sides.users, f"{stage}/sft", writer)
        fresh = state is None
        if state is None:
            writer.rewind(stage, -1)  # what a kill left of an earlier beginning
            state = warm_start(sides, warm_policy)
        sides = ready(sides, state, warm_policy)
        if fresh:
            guard, metrics = _measure_warm_start(sides, state, guard, writer)
            history = [metrics]
            _save(checkpoints, state, guard, history)
        # Log and history follow the checkpoint: records of steps after it are written again.
        writer.rewind(stage, int(state.step) // 2)
        _write_history(sides, history)
        seconds = 0.0
        with sigterm() as terminated:
            # A round takes two steps, with a checkpoint after its rollout and after its updates.
            while int(state.step) < 2 * shared.cfg.rounds and not _stopped(history):
                number = int(state.step) // 2 + 1
                if int(state.step) % 2 == 0:
                    begin = time.perf_counter()
                    state = roll_out(sides, state, number)
                    seconds = time.perf_counter() - begin
                else:
                    state, guard, metrics, verdict = learn(
                        sides, state, guard, number, rollout_seconds=seconds
                    )
                    history.append(metrics)
                    writer.write(stage, number, _numbers(metrics))
                    _write_history(sides, history)
                    if is_primary():
                        log(f"{stage}: {_line(metrics)}; {verdict.line()}")
                _save(checkpoints, state, guard, history)
                done = shared.steps_before(sides.seed) + ROUNDS_AT + int(state.step)
                if stop_requested(terminated, done):
                    checkpoints.wait()
                    raise Interrupted(stage, number, terminated.number)
        checkpoints.wait()
    return sides, state


def ready(sides: Sides, state: JointState, warm_policy: Any) -> Sides:
    """Both sides with what is fixed once the warm start is done.

    Args:
      sides: of the seed.
      state: any of the seed.
      warm_policy: policy parameters after the warm start.
    """
    return dataclasses.replace(sides, warm_policy=warm_policy, baseline=baseline(sides, state))


# States.


def warm_start(sides: Sides, policy: Any) -> JointState:
    """The state before the first round: both sides trained apart, then introduced.

    Args:
      sides: of the seed.
      policy: policy parameters that were tuned on the teacher's explanations.
    """
    shared, setup = sides.shared, sides.setup
    # All that rounds read is explained once, by the explainer that has learned from examples only.
    rows = np.concatenate([setup.cached, sides.tracked])
    texts = explanations.explain(sides, policy, rows, WARM)
    cache = explanations.written(explanations.empty(setup), rows, texts)
    # Encodings are standardised as these texts are, for good: rounds must not move the scale.
    constants = _constants(sides, cache, rows)
    recommender, _ = sides.recommender.train(
        sides.recommender.initial(sides.seed, sides.alone.params),
        sides.recommender.frozen(sides.alone.frozen, constants),
        readable(cache),
        steps=shared.cfg.recommender.warm_steps,
        seed=sides.seed,
    )
    best = {"policy": policy, "recommender": recommender.params}
    return _state(
        sides,
        both=sides.actor.initial(sides.seed, policy),
        recommender=recommender,
        beta=shared.cfg.kl.beta,
        cache=cache,
        constants=constants,
        best=jax.tree.map(jnp.copy, best),
    )


def state_shape(sides: Sides) -> JointState:
    """A state with the shapes and shardings of a saved one, to restore a checkpoint into."""
    both = sides.actor.initial(sides.seed, sides.actor.fresh(sides.seed))
    recommender = sides.recommender.initial(sides.seed, sides.alone.params)
    cache = explanations.empty(sides.setup)
    return _state(
        sides,
        both=both,
        recommender=recommender,
        beta=0.0,
        cache=cache,
        constants=_constants(sides, cache, np.arange(len(cache.length))),
        best={"policy": both.params["policy"], "recommender": recommender.params},
    )


def _state(
    sides: Sides,
    *,
    both: Any,
    recommender: Any,
    beta: float,
    cache: Explanations,
    constants: dict[str, np.ndarray],
    best: dict[str, Any],
) -> JointState:
    """A state before any rollout, on its devices."""
    first: dict[str, np.ndarray] = {}
    if not sides.recommender.reads_others:  # else no round compares texts one by one
        first = {name: array[sides.tracked] for name, array in readable(cache).items()}
    mesh = sides.shared.mesh
    return JointState(
        step=put_replicated(np.int32(0), mesh),
        policy=part_of(both),
        recommender=part_of(recommender),
        controller=put_replicated(controller(beta), mesh),
        cache=put_replicated(cache, mesh),
        first=put_replicated(first, mesh),
        buffer=put_replicated(_no_rollout(sides), mesh),
        constants=put_replicated(constants, mesh),
        best=best,
    )


def _constants(sides: Sides, cache: Explanations, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What standardises encodings, measured on some rows, and the recommender's temperature."""
    temperature = sides.recommender.temperature(sides.alone.params, sides.alone.frozen)
    constants = sides.recommender.constants(readable(cache), rows)
    return constants | {"temperature": np.asarray(temperature)}


def _no_rollout(sides: Sides) -> Rollout:
    n, size = sides.shared.cfg.rollout.per_round, sides.shared.size
    return Rollout(
        state=np.zeros(n, np.int32),
        tokens=np.zeros((n, size), np.int32),
        length=np.zeros(n, np.int32),
        ended=np.zeros(n, bool),
        log_probs=np.zeros((n, size), np.float32),
        round=np.int32(-1),
    )


def _measure_warm_start(
    sides: Sides, state: JointState, guard: GuardState, writer: MetricWriter
) -> tuple[GuardState, Metrics]:
    """Round 0: what the warm start is worth, so that a run that only gets worse keeps it."""
    begin = time.perf_counter()
    metrics: Metrics = {"round": WARM} | held_out(sides, state, WARM)
    metrics["time/evaluation"] = time.perf_counter() - begin
    guard, verdict = guards.check_round(metrics, guard, sides.shared.guards, number=WARM)
    # A weak beginning is no reason to stop; it is what the rounds are for.
    metrics |= verdict.record() | {"stopped": 0}
    writer.write(sides.stage, WARM, _numbers(metrics))
    if is_primary():
        log(f"{sides.stage}: {_line(metrics)}")
    return guard, metrics


# Files.


def _check_identity(sides: Sides) -> None:
    """Keeps what the seed was started with; refuses to go on with something else.

    Raises:
      UserError: names what is another one.
    """
    states = sides.setup.states
    now = {
        "base": sides.shared.base.identity().fingerprint,
        "prompts": _digest([*states.prompts]),
        "warm start's texts": _digest(sorted(states.teacher.items())),
        "recommender": _tree_digest(sides.alone.params),
    }
    sides.shared.rundir.keep_identity(sides.folder / "identity.json", now, started=sides.stage)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tree_digest(tree: Any) -> str:
    """A digest of all leaves of a tree and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gather(tree)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _save(checkpoints: Checkpoints, state: JointState, guard: GuardState, history: Any) -> None:
    data = {"guard": guard.to_json(), "rounds": history}
    checkpoints.save(state, data, {"rounds": len(history)})


def _stopped(history: list[Metrics]) -> bool:
    return bool(history and history[-1].get("stopped"))


def _write_history(sides: Sides, history: list[Metrics]) -> None:
    """Writes `rounds.jsonl` and `samples.jsonl` of a seed, whole."""
    if is_primary():
        sides.folder.mkdir(parents=True, exist_ok=True)
        # Keys in one order, whether a round was just done or comes from a checkpoint.
        history = json.loads(json.dumps(files.plain(history), sort_keys=True))
        rounds = [{k: v for k, v in record.items() if k != "samples"} for record in history]
        files.write_text(sides.folder / "rounds.jsonl", files.json_lines(rounds))
        samples = [sample for record in history for sample in record.get("samples", ())]
        files.write_text(sides.folder / "samples.jsonl", files.json_lines(samples))


def _numbers(metrics: Metrics) -> dict[str, float]:
    """What of a round is logged: figures whose name has a group."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if "/" in name and isinstance(value, (int, float))
    }


def _line(metrics: Metrics) -> str:
    """A round in one line."""
    shown = {
        "valid/gain": "gain {:+.1%}",
        "valid/log_prob_gain": "log-probability {:+.4f}",
        "valid/planted_f1": "F1 {:.3f}",
        "reward/score": "reward {:.3f}",
        "ppo/kl": "KL {:.3f}",
        "rollout/length": "length {:.1f}",
    }
    parts = [text.format(metrics[name]) for name, text in shown.items() if name in metrics]
    return f"round {metrics['round']}: {', '.join(parts)}"
