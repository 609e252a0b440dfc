"""Both sides of one seed of a joint run: what every round reads and none changes."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from xrec_jax.joint.actor import PolicyTask
from xrec_jax.joint.granularity import granularity_of
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.states.base import VALID
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.training.recommender import RecommenderTask


class Alone(NamedTuple):
    """The trained recommender without explanations, which both sides are built around.

    Attributes:
      params: its parameters.
      frozen: its frozen arrays.
    """

    params: Any
    frozen: Any


class Baseline(NamedTuple):
    """Figures of the recommender alone on the tracked validation users: the zero of every gain.

    Attributes:
      ndcg: mean NDCG at `StateSetup.best_k`.
      targets: `[v, T]` int32 held-out items of each tracked state, -1 behind the last; None where
        candidates are explained, since log-probabilities are over the whole catalogue.
      log_prob: `[v]` float32 mean log-probability of those items in nats; None likewise.
    """

    ndcg: float
    targets: np.ndarray | None = None
    log_prob: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """The two models of a seed with everything that stays the same over its rounds.

    What changes is in `joint.state.JointState`; functions of a round take both and return a new
    state.

    Attributes:
      seed: of all draws.
      setup: what is explained, with its prompts and targets.
      actor: the language model that explains.
      recommender: the fused recommender that reads explanations.
      alone: the recommender without explanations.
      users: `[S, D]` float32 user states of the recommender alone, which soft prompts are made of.
      tracked: states of the tracked validation users, whose figures are taken every round.
      warm_policy: policy parameters after the warm start, the reference of the KL; None before it.
      baseline: figures of the recommender alone; None before the warm start.
    """

    seed: int
    setup: StateSetup
    actor: PolicyTask
    recommender: FusedTask
    alone: Alone
    users: np.ndarray
    tracked: np.ndarray
    warm_policy: Any = None
    baseline: Baseline | None = None

    @property
    def shared(self) -> JointSetup:
        """What all seeds share."""
        return self.setup.shared

    @property
    def stage(self) -> str:
        """Name of the seed in logs and among checkpoints."""
        return f"joint/{self.seed}"

    @property
    def folder(self) -> epath.Path:
        """Directory of the seed's files."""
        return self.shared.rundir.path / "joint" / str(self.seed)


def open_sides(setup: StateSetup, task: RecommenderTask, seed: int) -> Sides:
    """Builds both models of a seed around its trained recommender; nothing is trained yet.

    Args:
      setup: of the run's plain states.
      task: of the recommender alone, which has been trained.
      seed: which of its seeds.
    """
    alone = Alone(*task.restore(seed))
    # With candidates, what is explained depends on the seed's recommender.
    granularity = granularity_of(setup.shared.config)
    setup = granularity.of_seed(setup, task, alone.params, alone.frozen, seed)
    recommender = granularity.task(setup, task, width=setup.shared.encoder.width)
    # Of the recommender alone, so soft prompts stay the same while the fusion is trained.
    users = recommender.user_states(alone.params, alone.frozen)
    valid = setup.states.rows(VALID)
    return Sides(
        seed=seed,
        setup=setup,
        actor=PolicyTask(setup, user_dim=users.shape[1]),
        recommender=recommender,
        alone=alone,
        users=users,
        tracked=valid[np.isin(setup.states.user[valid], setup.tracked_users)],
    )
