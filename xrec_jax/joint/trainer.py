"""One seed of a joint run: warm start, rounds, and the state that a checkpoint holds."""

from __future__ import annotations

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
from xrec_jax.joint import granularity, guards
from xrec_jax.joint.actor import PolicyTask
from xrec_jax.joint.guards import GuardState
from xrec_jax.joint.round import Round
from xrec_jax.joint.setup import ROUNDS_AT, JointSetup
from xrec_jax.joint.state import Explanations, JointState, Rollout, part_of
from xrec_jax.joint.states.base import VALID
from xrec_jax.parallel.mesh import gather, put_replicated
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import Interrupted, stop_requested
from xrec_jax.training.recommender import RecommenderTask
from xrec_jax.training.rl.kl import controller

WARM = 0  # the round of the warm start


class SeedRun:
    """Everything of one seed.

    Args:
      setup: what the seeds share.
      task: of the recommender alone.
      seed: of all draws.
    """

    def __init__(self, setup: JointSetup, task: RecommenderTask, seed: int):
        self.seed, self.stage = seed, f"joint/{seed}"
        self.alone, self.base_frozen = task.restore(seed)
        setup = self.setup = granularity.of_seed(setup, task, self.alone, self.base_frozen, seed)
        self.fused = granularity.task_of(setup)(setup, task, width=setup.encoder.width)
        self.users = self.fused.user_states(self.alone, self.base_frozen)
        self.policy = PolicyTask(setup, user_dim=self.users.shape[1])
        self.folder = setup.rundir.path / "joint" / str(seed)
        rule = setup.states.rows(VALID)
        kept = np.isin(setup.states.user[rule], setup.valid_users)
        self.valid = rule[kept]  # the states that are looked at every round
        self.round = Round(self)

    # The warm start.

    def explain(self, policy: Any, states: np.ndarray, number: int) -> dict[str, np.ndarray]:
        """Texts of states as the recommender reads them: tokens, length, encoding, present."""
        made = self.policy.answer(policy, states, self.users, key=(self.seed, 71, number))
        encoding, present = self.setup.encode(self.setup.texts(made.tokens, made.length))
        return {
            "tokens": made.tokens,
            "length": made.length,
            "encoding": encoding,
            "present": present,
            "version": np.full(len(states), number, np.int32),
        }

    def warm(self, writer: MetricWriter) -> JointState:
        """The state before the first round: both sides trained apart, then introduced."""
        setup = self.setup
        policy = self.policy.warm_start(self.seed, self.users, f"{self.stage}/sft", writer)
        rows = np.concatenate([setup.cached, self.valid])
        cache = self._no_texts()
        for name, array in self.explain(policy, rows, WARM).items():
            cache[name][rows] = array
        constants = self._constants(cache, rows)
        recommender = self.fused.initial(self.seed, self.alone)
        frozen = self.fused.frozen(self.base_frozen, constants)
        recommender, _ = self.fused.train(
            recommender,
            frozen,
            _read(cache),
            steps=setup.asked.recommender.warm_steps,
            seed=self.seed,
        )
        both = self.policy.initial(self.seed, policy)
        mesh = setup.mesh
        found = Explanations(**put_replicated(cache, mesh))
        return JointState(
            step=put_replicated(np.int32(0), mesh),
            policy=part_of(both),
            recommender=part_of(recommender),
            controller=put_replicated(controller(setup.asked.kl.beta), mesh),
            cache=found,
            first=put_replicated(self._looked_at(cache), mesh),
            buffer=put_replicated(self._no_rollout(), mesh),
            constants=put_replicated(constants, mesh),
            best=_copy({"policy": policy, "recommender": recommender.params}),
        )

    def _constants(self, read: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        heat = self.fused.temperature(self.alone, self.base_frozen)
        return self.fused.constants(read, rows) | {"temperature": np.asarray(heat)}

    def _looked_at(self, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fused.reads_others:  # there no round compares texts one by one
            return {}
        return {name: array[self.valid] for name, array in _read(cache).items()}

    def others(self, state: JointState) -> dict[str, np.ndarray] | None:
        """Kept explanations, where the worth of one depends on others."""
        return _read(state.cache) if self.fused.reads_others else None

    # The rounds.

    def run(self, writer: MetricWriter) -> JointState:
        """Rounds until they are done or a guard stops them; goes on where a kill cut it off.

        Returns:
          The last state; `best` has the best round's parameters.

        Raises:
          UserError: on rewards or log-probabilities that are worthless (see `joint.guards`).
          Interrupted: after SIGTERM, with everything saved.
        """
        setup = self.setup
        self._same_as_before()
        with Checkpoints(setup.rundir.checkpoints(f"{self.stage}/rounds")) as checkpoints:
            state: JointState | None = None
            guard, history = GuardState(), []
            if checkpoints.latest is not None:
                state, data, _ = checkpoints.restore(self.shape())
                guard, history = GuardState.from_json(data["guard"]), list(data["rounds"])
            self.warm_policy = self.policy.warm_start(
                self.seed, self.users, f"{self.stage}/sft", writer
            )
            if state is None:
                writer.rewind(self.stage, -1)  # what a kill left of an earlier beginning
                state = self.warm(writer)
                state, guard, history = self._judge_warm(state, guard, writer)
                _save(checkpoints, state, guard, history)
            writer.rewind(self.stage, int(state.step) // 2)
            self._write_history(history)
            with sigterm() as terminated:
                while int(state.step) < 2 * setup.asked.rounds and not _stopped(history):
                    number = int(state.step) // 2 + 1
                    if int(state.step) % 2 == 0:
                        state = self.round.roll_out(state, number)
                    else:
                        state, guard, found, verdict = self.round.learn(state, guard, number)
                        history.append(found)
                        writer.write(self.stage, number, _numbers(found))
                        self._write_history(history)
                        if is_primary():
                            log(f"{self.stage}: {_line(found)}; {verdict.line()}")
                    _save(checkpoints, state, guard, history)
                    done = setup.steps_before(self.seed) + ROUNDS_AT + int(state.step)
                    if stop_requested(terminated, done):
                        checkpoints.wait()
                        raise Interrupted(self.stage, number, terminated.number)
            checkpoints.wait()
        return state

    def _same_as_before(self) -> None:
        """Keeps what the seed was started with; refuses to go on with something else.

        Raises:
          UserError: names what is another one.
        """
        states = self.setup.states
        now = {
            "base": self.setup.base.identity().fingerprint,
            "prompts": _digest([*states.prompts]),
            "warm start's texts": _digest(sorted(states.teacher.items())),
            "recommender": _tree_digest(self.alone),
        }
        self.setup.rundir.keep_identity(self.folder / "identity.json", now, started=self.stage)

    def shape(self) -> JointState:
        """A state with the shapes and shardings of a saved one."""
        mesh = self.setup.mesh
        both = self.policy.initial(self.seed, self.policy.fresh(self.seed))
        recommender = self.fused.initial(self.seed, self.alone)
        nothing = self._no_texts()
        constants = self._constants(nothing, np.arange(len(nothing["length"])))
        return JointState(
            step=put_replicated(np.int32(0), mesh),
            policy=part_of(both),
            recommender=part_of(recommender),
            controller=put_replicated(controller(0.0), mesh),
            cache=Explanations(**put_replicated(nothing, mesh)),
            first=put_replicated(self._looked_at(nothing), mesh),
            buffer=put_replicated(self._no_rollout(), mesh),
            constants=put_replicated(constants, mesh),
            best={"policy": both.params["policy"], "recommender": recommender.params},
        )

    def _no_texts(self) -> dict[str, np.ndarray]:
        count, width = len(self.setup.states), self.setup.encoder.width
        return {
            "tokens": np.zeros((count, self.setup.size), np.int32),
            "length": np.zeros(count, np.int32),
            "version": np.full(count, -1, np.int32),
            "encoding": np.zeros((count, 2, width), np.float32),
            "present": np.zeros((count, 2), bool),
        }

    def _no_rollout(self) -> Rollout:
        n, size = self.setup.asked.rollout.per_round, self.setup.size
        return Rollout(
            state=np.zeros(n, np.int32),
            tokens=np.zeros((n, size), np.int32),
            length=np.zeros(n, np.int32),
            ended=np.zeros(n, bool),
            log_probs=np.zeros((n, size), np.float32),
            round=np.int32(-1),
        )

    def _judge_warm(self, state: JointState, guard: GuardState, writer: MetricWriter) -> Any:
        """Round 0: what the warm start is worth, so that a run that only gets worse keeps it."""
        begin = time.perf_counter()
        found: dict[str, Any] = {"round": WARM} | self.round.held_out(state, WARM)
        found["time/evaluation"] = time.perf_counter() - begin
        guard, verdict = guards.check_round(found, guard, self.setup.guards, number=WARM)
        found["verdict"] = verdict.line()
        # A weak beginning is no reason to stop; it is what the rounds are for.
        found["stopped"] = 0
        writer.write(self.stage, WARM, _numbers(found))
        if is_primary():
            log(f"{self.stage}: {_line(found)}")
        return state, guard, [found]

    def _write_history(self, history: list[dict[str, Any]]) -> None:
        if is_primary():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Keys in one order, whether a round was just done or comes from a checkpoint.
            history = json.loads(json.dumps(files.plain(history), sort_keys=True))
            plain = [{k: v for k, v in one.items() if k != "samples"} for one in history]
            files.write_text(self.folder / "rounds.jsonl", files.json_lines(plain))
            samples = [sample for one in history for sample in one.get("samples", ())]
            files.write_text(self.folder / "samples.jsonl", files.json_lines(samples))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tree_digest(tree: Any) -> str:
    """A digest of all leaves of a tree and their names."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gather(tree)):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _read(cache: Any) -> dict[str, np.ndarray]:
    """What the recommender reads of a cache, on the host."""
    if isinstance(cache, dict):
        return {"encoding": cache["encoding"], "present": cache["present"]}
    return {"encoding": gather(cache.encoding), "present": gather(cache.present)}


def _save(checkpoints: Checkpoints, state: JointState, guard: GuardState, history: Any) -> None:
    data = {"guard": guard.to_json(), "rounds": history}
    checkpoints.save(state, data, {"rounds": len(history)})


def _stopped(history: list[dict[str, Any]]) -> bool:
    return bool(history and history[-1].get("stopped"))


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in found.items()
        if "/" in name and isinstance(value, (int, float))
    }


def _line(found: dict[str, Any]) -> str:
    shown = {
        "valid/gain": "gain {:+.1%}",
        "valid/log_prob_gain": "log-probability {:+.4f}",
        "valid/planted_f1": "F1 {:.3f}",
        "reward/score": "reward {:.3f}",
        "ppo/kl": "KL {:.3f}",
        "rollout/length": "length {:.1f}",
    }
    parts = [text.format(found[name]) for name, text in shown.items() if name in found]
    return f"round {found['round']}: {', '.join(parts)}"
