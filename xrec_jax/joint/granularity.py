"""Granularity of joint training: whether an explanation is about a user or one of their candidates.

`joint.granularity` names a strategy. With `user` the states of a run are explained as they are, the
same in all seeds. With `user_item` a seed explains the candidates that its own recommender
retrieves; they are made when the seed begins and kept in `joint/SEED/candidates.npz`, so that a run
that goes on elsewhere has the same ones, to the last bit.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage.arrays import write_npz
from xrec_jax.data.run_data import RunData
from xrec_jax.inference import run_records
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.recommender.reranker import RerankTask, retrieved
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.states.base import TRAIN
from xrec_jax.joint.states.candidate_texts import WRITERS
from xrec_jax.joint.states.candidates import JointCases, cases_of, placed
from xrec_jax.joint.states.setup import StateSetup, state_setup, states_of
from xrec_jax.training.recommender import RecommenderTask


class Granularity(Protocol):
    """Strategy of what one explanation is about.

    Attributes:
      task: the recommender's side.
      fixed: whether the explained states are those of the run, whatever a seed's recommender is.
    """

    task: ClassVar[type[FusedTask]]
    fixed: ClassVar[bool]

    def check(self, config: Any, data: RunData) -> None:
        """Validates what the explained states are made of.

        Raises:
          UserError: names the key and the way out.
        """

    def of_seed(
        self, setup: StateSetup, task: RecommenderTask, params: Any, frozen: Any, seed: int
    ) -> StateSetup:
        """The setup of a seed that begins or goes on.

        Args:
          setup: of the run's plain states.
          task: of the recommender alone.
          params: its parameters.
          frozen: its frozen arrays.
          seed: which.
        """

    def of_finished(self, setup: StateSetup, seed: int) -> StateSetup:
        """The setup of a seed that was begun before, without its recommender."""


class UserGranularity:
    """One explanation a state: what the user looks for and what they avoid."""

    task: ClassVar[type[FusedTask]] = FusedTask
    fixed: ClassVar[bool] = True

    def check(self, config: Any, data: RunData) -> None:
        """Accepts everything: plain states check themselves."""

    def of_seed(
        self, setup: StateSetup, task: RecommenderTask, params: Any, frozen: Any, seed: int
    ) -> StateSetup:
        """The run's own setup."""
        return setup

    def of_finished(self, setup: StateSetup, seed: int) -> StateSetup:
        """The run's own setup."""
        return setup


class CandidateGranularity:
    """One explanation a candidate of a state: why this user would choose it, and why not."""

    task: ClassVar[type[FusedTask]] = RerankTask
    fixed: ClassVar[bool] = False

    def check(self, config: Any, data: RunData) -> None:
        """Validates that candidates are a choice.

        Raises:
          UserError: if all items would be candidates.
        """
        if config.joint.candidates >= data.dataset.num_items:
            raise UserError(
                f"joint.candidates={config.joint.candidates} leaves nothing to retrieve from "
                f"{data.dataset.num_items} items; lower it"
            )

    def of_seed(
        self, setup: StateSetup, task: RecommenderTask, params: Any, frozen: Any, seed: int
    ) -> StateSetup:
        """The setup of the seed's candidates, which are retrieved where no file has them."""
        path = _candidates_path(setup, seed)
        known = path.exists()
        barrier("candidates known")  # before anybody writes
        if not known:
            best = retrieved(setup, task, params, frozen, count=setup.shared.cfg.candidates)
            if is_primary():
                write_npz(path, {"candidates": placed(best, setup.states)})
            barrier("candidates kept")
        made = self.of_finished(setup, seed)
        if is_primary():
            states, prompts = made.states, made.prompts
            log(
                f"joint/{seed}: {len(states):,} cases, {len(states.teacher)} taught, prompts of up "
                f"to {prompts.ids.shape[1]} tokens; {states.notes[-1]}"
            )
        return made

    def of_finished(self, setup: StateSetup, seed: int) -> StateSetup:
        """The setup of the candidates in the seed's file."""
        shared, states = setup.shared, setup.states
        shape = (len(states), shared.cfg.candidates)
        candidates = run_records.candidates(shared.rundir, _candidates_path(setup, seed), shape)
        write = WRITERS[shared.cfg.states.source](shared.config, shared.data, states)
        made = candidate_setup(setup, cases_of(states, candidates, write))
        made.check_lengths()
        return made


GRANULARITIES: dict[str, Granularity] = {
    "user": UserGranularity(),
    "user_item": CandidateGranularity(),
}


def granularity_of(config: Any) -> Granularity:
    """The strategy that `joint.granularity` names, which has been checked."""
    return GRANULARITIES[config.joint.granularity]


def open_setup(shared: JointSetup) -> StateSetup:
    """The setup of a run's plain states, which those of its seeds are made of.

    Raises:
      UserError: if the states cannot be made, or a prompt leaves no place for an answer.
    """
    setup = state_setup(shared, states_of(shared.config, shared.data))
    # Where a seed's candidates are explained, only they have prompts.
    if granularity_of(shared.config).fixed:
        setup.check_lengths()
    return setup


def candidate_setup(setup: StateSetup, cases: JointCases) -> StateSetup:
    """The setup of the candidates of plain states.

    Args:
      setup: of the plain states.
      cases: their candidates.
    """
    learned, rolled_out = cases.divided(setup.shared.cfg.rollout.held_out)
    return StateSetup(
        setup.shared,
        cases,
        learned=learned,
        rolled_out=rolled_out,
        # What a sampled text is worth depends on the texts of its neighbours, learned or not.
        cached=cases.rows(TRAIN),
        # Drawn among users, so that all seeds and both granularities track the same ones.
        tracked_users=setup.tracked_users,
    )


def _candidates_path(setup: StateSetup, seed: int) -> epath.Path:
    return setup.shared.rundir.path / "joint" / str(seed) / "candidates.npz"
