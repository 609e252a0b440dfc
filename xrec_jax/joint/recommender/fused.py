"""The recommender of a joint run: the fused model, its steps, what it says of rollouts."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import Stream
from xrec_jax.core.trees import not_finite
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking.evaluator import PerUser, RankingEvaluator, check_scored
from xrec_jax.joint.guards import check_updates
from xrec_jax.joint.recommender.rows import another, even, row_means, user_batch, users_batch
from xrec_jax.joint.states.base import TEST, TRAIN, VALID
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.parallel.mesh import gather, put_replicated
from xrec_jax.recommenders.explained.build import fuse, fuse_features
from xrec_jax.recommenders.explained.calibration import fit_temperature
from xrec_jax.recommenders.explained.features import FeatureFused
from xrec_jax.recommenders.explained.fused import Fused
from xrec_jax.recommenders.explained.match import item_vectors, query_scale
from xrec_jax.recommenders.explained.reranking import rank_of
from xrec_jax.recommenders.whitening import measure, whitening
from xrec_jax.training.loop import compile_step
from xrec_jax.training.optimizers import optimizer
from xrec_jax.training.recommender import RecommenderTask
from xrec_jax.training.state import TrainState, initializer
from xrec_jax.training.steps import recommend_step

HPARAMS = (
    "bottleneck",
    "hidden",
    "null_dropout",
    "null_rows",
    "code_dropout",
    "reconstruction",
    "train_base",
    "base_dropout",
)


def system_of(config: Any) -> str:
    """The system of `recommend` that is fused.

    Raises:
      UserError: if there is none of that name.
    """
    name = config.joint.system or next(iter(config.recommend), "")
    if name not in config.recommend:
        raise UserError(
            f"joint.system={name!r}: no such system in config.recommend"
            f"{did_you_mean(name, list(config.recommend))}"
        )
    return name


class FusedTask:
    """One way to read the states: explanations, or plain features.

    Args:
      setup: what the seeds share.
      task: of the recommender alone.
      width: features of an encoding, or of plain features.
      features: plain features in place of explanations.
      sides: parts that are read; "" takes the config's.
    """

    reads_others: ClassVar[bool] = False  # whether `score` reads kept explanations

    def __init__(
        self,
        setup: StateSetup,
        task: RecommenderTask,
        *,
        width: int,
        features: bool = False,
        sides: str = "",
    ):
        self.setup, self.shared, self.task = setup, setup.shared, task
        cfg = self.shared.cfg.recommender
        values = {key: cfg[key] for key in HPARAMS}
        self.model: Fused
        if features:
            self.model = fuse_features(
                task.model,
                encoding=width,
                item_features=setup.states.item_features.shape[1],
                **values,
            )
        else:
            self.model = fuse(
                task.model,
                encoding=width,
                components=min(cfg.components, width),
                match=setup.match_features,
                sides=sides or cfg.sides,
                **values,
            )
        self.steps = cfg.warm_steps + self.shared.cfg.rounds * cfg.steps + cfg.final_steps
        self.tx = _held(optimizer(cfg.train, self.steps), cfg.train_base)
        self._compiled_step: Any = None

    @functools.cached_property
    def _initializer(self) -> Any:
        return initializer(self.model.init, self.tx, mesh=self.shared.mesh)

    def initial(self, seed: int, base: Any) -> TrainState:
        """A fresh fusion around trained parameters of the base; without frozen arrays."""
        state = self._initializer(seed)
        base = jax.tree.map(jnp.copy, base)
        return state.replace(params={**state.params, "base": base}, best_params=None)

    def temperature(self, base: Any, frozen: Any) -> np.float32:
        """Temperature at which the recommender alone is calibrated on the tracked users' events.

        A base is surer of its own training events than of new ones; without it the fusion would
        learn to correct that instead of what texts say.

        Args:
          base: parameters of the recommender alone.
          frozen: its frozen arrays.

        Raises:
          UserError: if its scores are NaN or infinite.
        """
        fixed = self.shared.cfg.recommender.temperature
        if fixed:
            return np.float32(fixed)
        states, held_out = self.setup.states, self.shared.data.split.valid
        rows = states.rows(VALID)
        rows = rows[np.isin(states.user[rows], self.setup.tracked_users)]
        # Once a user, however many candidates of theirs are explained.
        users, first = np.unique(states.user[rows], return_index=True)
        kept = np.isin(held_out.user, users)
        if not kept.any():
            return np.float32(1.0)
        user_states = self._user_states_of(base, frozen, rows[first])
        user_states = user_states[np.searchsorted(users, held_out.user[kept])]
        table = self._item_table(base, frozen)
        fitted = np.float32(gather(self._fit(user_states, table, held_out.item[kept])))
        check_scored(int(np.isfinite(fitted)), 1)
        return fitted

    @functools.cached_property
    def _item_table(self) -> Any:
        return jax.jit(lambda params, frozen: self.task.model.tables(params, frozen).item)

    @functools.cached_property
    def _fit(self) -> Any:
        model = self.task.model
        return jax.jit(
            functools.partial(fit_temperature, score=model.scores, items=model.num_items)
        )

    def constants(self, read: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """What standardises the encodings or features of some states."""
        if isinstance(self.model, FeatureFused):
            features = read["features"][rows][:, None]
            mean, std = measure(features, np.ones(features.shape[:2], bool))
            return {"mean": mean, "std": std}
        encoding, present = read["encoding"][rows], read["present"][rows]
        if self.model.components:
            mean, basis = whitening(encoding, present, self.model.components)
            constants = {"mean": mean, "basis": basis}
        else:
            mean, std = measure(encoding, present)
            constants = {"mean": mean, "std": std}
        if self.model.match:
            projection = self.setup.item_projection(self.model.match)
            constants["projection"] = projection
            constants["query_scale"] = query_scale(encoding, present, mean, projection)
        return constants

    def frozen(self, base: Any, constants: dict[str, Any]) -> dict[str, Any]:
        """Frozen arrays of the base, and the constants of what is read."""
        arrays = dict(base) | put_replicated(constants, self.shared.mesh)
        if isinstance(self.model, FeatureFused):
            items = {"item_features": self.setup.states.item_features}
            arrays |= put_replicated(items, self.shared.mesh)
        if self.model.match:
            # In the space of the constants, which may be a checkpoint's: of directions of equal
            # variance another machine may find others.
            projection = np.asarray(gather(constants["projection"]))
            vectors = {"item_match": item_vectors(*self.setup.item_encoding, projection)}
            arrays |= put_replicated(vectors, self.shared.mesh)
        return arrays

    def train(
        self, state: TrainState, frozen: Any, read: dict[str, np.ndarray], *, steps: int, seed: int
    ) -> tuple[TrainState, dict[str, float]]:
        """Updates on training states, drawn by the state's own step.

        Args:
          state: of the fused recommender.
          frozen: from `frozen`.
          read: `[S, ...]` what there is to read of every state.
          steps: updates.
          seed: of the order.

        Returns:
          The state after them, and mean metrics.

        Raises:
          UserError: if a metric or a parameter is not finite.
        """
        rows, size = self.trained_rows(), self.shared.cfg.recommender.train.batch_size
        state = state.replace(frozen=frozen)
        compiled = self._compiled(state)
        # Batches are drawn by the step alone, so a run that goes on draws the same ones.
        done, history = int(state.step), []
        for step in range(done, done + steps):
            chosen = rows[
                rng.random_integers(
                    rng.fold(seed, Stream.SHARED_61, step), np.arange(size), len(rows)
                )
            ]
            state, metrics = compiled(state, self.shared.put(self.batch(chosen, read)))
            history.append(metrics)
            # Steps must not run far ahead: their batches wait on the devices, and collectives of
            # several steps at a time can deadlock on CPU devices.
            if step % 8 == 0 or self.shared.mesh.size > 1:
                jax.block_until_ready(metrics)
        means = {
            name.replace("train/", "recommender/"): float(
                np.mean([gather(metrics[name]) for metrics in history])
            )
            for name in (history[0] if history else {})
        }
        # A finite loss says nothing of weights that its last update broke.
        broken = dict.fromkeys(not_finite(state.params), math.nan)
        check_updates(means | broken, "joint.recommender.train.learning_rate")
        return state.replace(frozen={}), means

    def trained_rows(self) -> np.ndarray:
        """What `batch` makes training rows of."""
        return np.arange(len(self.setup.training_rows.state))

    def batch(self, rows: np.ndarray, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Training rows by number: users, histories, targets, and what is read of their states."""
        training = self.setup.training_rows
        states = training.state[rows]
        return users_batch(self.setup.states.user[states], training.history, rows, self.model) | {
            "target": training.target[rows],
            "weight": np.ones(len(rows), np.float32),
            **{name: array[states] for name, array in read.items()},
        }

    def _compiled(self, state: TrainState) -> Any:
        if self._compiled_step is None:
            step = functools.partial(recommend_step, model=self.model, optimizer=self.tx)
            self._compiled_step = compile_step(step, state)
        return self._compiled_step

    # Ranking.

    def _groups(self) -> dict[str, tuple[list[Interactions], Interactions]]:
        """Seen and held-out events of each group that `evaluate` knows."""
        split = self.shared.data.split
        few = split.valid.take(np.isin(split.valid.user, self.setup.tracked_users))
        return {
            "few": ([split.train], few),
            "valid": ([split.train], split.valid),
            "test": ([split.train, split.valid], split.test),
        }

    @functools.cached_property
    def _evaluators(self) -> dict[str, RankingEvaluator]:
        ks = tuple(self.shared.config.ranking.ks)
        return {
            group: RankingEvaluator(
                self.model, seen=seen, held_out=held_out, mesh=self.shared.mesh, ks=ks
            )
            for group, (seen, held_out) in self._groups().items()
        }

    def evaluate(
        self, group: str, params: Any, frozen: Any, read: dict[str, np.ndarray]
    ) -> PerUser:
        """Metrics of users on "few" valid users, all of "valid", or "test".

        Args:
          group: which.
          params: of the fused recommender.
          frozen: from `frozen`.
          read: `[S, ...]` what there is to read of every state.
        """
        states = self.setup.states
        rows = states.rows(TEST if group == "test" else VALID)
        count = self.shared.data.dataset.num_users
        # Evaluators look up what is read by user; a user has one state of each held-out split.
        by_user = {}
        for name, array in read.items():
            whole = np.zeros((count, *array.shape[1:]), array.dtype)
            whole[states.user[rows]] = array[rows]
            by_user[name] = whole
        frozen = dict(frozen) | put_replicated(by_user, self.shared.mesh)
        return self._evaluators[group](params, frozen)

    # User states, and what rollouts are worth.

    @functools.cached_property
    def _user_states(self) -> Any:
        base = self.task.model

        @jax.jit
        def states(params, frozen, batch):
            tables = base.tables(params, frozen)
            return base.user_state(params, tables, batch).astype(jnp.float32)

        return states

    def user_states(self, base: Any, frozen: Any) -> np.ndarray:
        """User states `[S, D]` of the recommender alone, which soft prompts are made of."""
        return self._user_states_of(base, frozen, np.arange(len(self.setup.states)))

    def _user_states_of(self, base: Any, frozen: Any, states: np.ndarray) -> np.ndarray:
        setup, count = self.setup, len(states)
        size = even(1024, self.shared.mesh)
        parts = []
        for first in range(0, count, size):
            rows = states[np.minimum(np.arange(first, first + size), count - 1)]
            batch = self.shared.put(user_batch(setup, self.task.model, rows))
            parts.append(gather(self._user_states(base, frozen, batch)))
        return np.concatenate(parts)[:count]

    @functools.cached_property
    def _score(self) -> Any:
        model, items = self.model, self.shared.data.dataset.num_items

        @jax.jit
        def score(params, frozen, batch):
            tables = model.tables(params, frozen)
            alone = {k: v for k, v in batch.items() if k not in ("encoding", "present")}
            shuffled = alone | {
                "encoding": batch["other_encoding"],
                "present": batch["other_present"],
            }
            figures = {}
            for name, inputs in (("", batch), ("_null", alone), ("_shuffled", shuffled)):
                scores = model.item_scores(params, frozen, inputs, tables=tables)[:, :items]
                log_p = jax.nn.log_softmax(scores, axis=1)
                targets = batch["targets"]
                own = jnp.take_along_axis(log_p, jnp.maximum(targets, 0), axis=1)
                figures[f"log_prob{name}"] = row_means(own, targets >= 0)
                figures[f"rank{name}"] = rank_of(scores, batch["target"], batch["seen"])
            return figures

        return score

    def score(
        self,
        params: Any,
        frozen: Any,
        states: np.ndarray,
        encoding: np.ndarray,
        present: np.ndarray,
        *,
        key: int,
        read: dict[str, np.ndarray] | None = None,
        targets: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """What explanations of states do to the true next item, on frozen weights.

        Args:
          params: of the fused recommender.
          frozen: from `frozen`.
          states: `[n]`, each with a target.
          encoding: `[n, 2, E]`.
          present: `[n, 2]`.
          key: of the draw of other users' explanations.
          read: what the recommender reads of other states; nothing here depends on it.
          targets: `[n, T]` items of `log_prob`, -1 for none; None takes `StateSetup.targets`.

        Returns:
          `log_prob` (mean over the targets), `rank` of the next item, and both with `_null`
          and `_shuffled`: `[n]` each.
        """
        del read
        # Few shapes, so that rounds of different size do not compile anew.
        size = even(min(256, -(-len(states) // 8) * 8), self.shared.mesh)
        others = another(self.setup.states.user[states], key)
        targets = self.setup.targets[states] if targets is None else targets
        parts = []
        for first in range(0, len(states), size):
            places = np.minimum(np.arange(first, first + size), len(states) - 1)
            chosen, other = states[places], others[places]
            batch = user_batch(self.setup, self.model, chosen) | {
                "target": self.setup.states.target[chosen],
                "targets": targets[places],
                "seen": self._seen.padded(chosen, self._seen_width, fill=-1),
                "encoding": encoding[places],
                "present": present[places],
                "other_encoding": encoding[other],
                "other_present": present[other],
            }
            parts.append(gather(self._score(params, frozen, self.shared.put(batch))))
        return {
            name: np.concatenate([part[name] for part in parts])[: len(states)] for name in parts[0]
        }

    def held_out(self, states: np.ndarray) -> np.ndarray:
        """All held-out items of the users of valid states: `[n, T]` int32, -1 behind the last."""
        setup = self.setup
        events = Histories.of([self.shared.data.split.valid], self.shared.data.dataset.num_users)
        users = setup.states.user[states]
        return events.padded(users, int(events.lengths[users].max(initial=1)), fill=-1)

    @property
    def _seen(self) -> Histories:
        return self.setup.states.history

    @functools.cached_property
    def _seen_width(self) -> int:
        return int(self._seen.lengths[self.setup.states.rows(TRAIN)].max(initial=1))


def _held(tx: optax.GradientTransformation, train_base: bool) -> optax.GradientTransformation:
    """An optimizer that leaves the base as it is, unless it is trained.

    Frozen gradients alone would not do: weight decay would still move the base, and its gradients
    would still count in clipping.
    """
    if train_base:
        return tx

    def label(params: Any) -> Any:
        return {
            name: jax.tree.map(lambda _: "held" if name == "base" else "trained", part)  # noqa: B023
            for name, part in params.items()
        }

    return optax.multi_transform({"trained": tx, "held": optax.set_to_zero()}, label)
