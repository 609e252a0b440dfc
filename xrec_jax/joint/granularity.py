"""Granularity `user_item` of the `joint` stage: what differs from one explanation a state.

A seed's cases come from its own recommender, so they are made when the seed begins and kept in
`joint/SEED/candidates.npz`: a run that goes on elsewhere has the same ones, to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
from xrec_jax.training.recommender import RecommenderTask

GRANULARITIES = ("user", "user_item")
# Of a setup, what depends on its states.
_OWN = (
    "states",
    "prompts",
    "content",
    "valid_users",
    "learned",
    "rolled_out",
    "judge",
    "taught_users",
    "targets",
    "lessons",
    "monitors",
)


def is_reranked(config: Any) -> bool:
    """Whether candidates are explained, not states."""
    return bool(config.joint.granularity == "user_item")


def check_cases(config: Any, data: RunData) -> None:
    """Refuses what the cases of a run could not be made of.

    Raises:
      UserError: names the key and the way out.
    """
    if not is_reranked(config):
        return
    asked = config.joint
    if asked.candidates >= data.dataset.num_items:
        raise UserError(
            f"joint.candidates={asked.candidates} leaves nothing to retrieve from "
            f"{data.dataset.num_items} items; lower it"
        )


class CaseSetup(JointSetup):
    """The setup of one seed, with its cases for states.

    Args:
      shared: of the run.
      cases: of the seed.
    """

    def __init__(self, shared: JointSetup, cases: JointCases):
        _ = shared.sampler, shared.valid_users  # made once, for all seeds
        self.__dict__.update({k: v for k, v in shared.__dict__.items() if k not in _OWN})
        self.states = cases
        self.__dict__["valid_users"] = shared.valid_users
        self.check_lengths()

    @property
    def cached(self) -> np.ndarray:
        """All training cases: what a sampled text is worth depends on those of its neighbours."""
        return self.states.rows(TRAIN)


def of_seed(
    setup: JointSetup, task: RecommenderTask, params: Any, frozen: Any, seed: int
) -> JointSetup:
    """The setup of a seed: the run's own, or one with the seed's cases.

    Args:
      setup: of the run.
      task: of the recommender alone.
      params: its parameters.
      frozen: its frozen arrays.
      seed: whose candidates are retrieved, or read where they are known.
    """
    if not is_reranked(setup.config):
        return setup
    path = _path(setup, seed)
    known = path.exists()
    barrier("candidates known")  # before anybody writes
    if not known:
        best = retrieved(setup, task, params, frozen, count=setup.asked.candidates)
        _keep(path, placed(best, setup.states))
        barrier("candidates kept")
    made = of_finished(setup, seed)
    if is_primary():
        states, prompts = made.states, made.prompts
        log(
            f"joint/{seed}: {len(states):,} cases, {len(states.teacher)} taught, prompts of up to "
            f"{prompts.ids.shape[1]} tokens; {states.notes[-1]}"
        )
    return made


def of_finished(setup: JointSetup, seed: int) -> JointSetup:
    """`of_seed` for a seed whose candidates are known."""
    if not is_reranked(setup.config):
        return setup
    shape = (len(setup.states), setup.asked.candidates)
    candidates = run_records.candidates(setup.rundir, _path(setup, seed), shape)
    write = WRITERS[setup.asked.states.source](setup.config, setup.data, setup.states)
    return CaseSetup(setup, cases_of(setup.states, candidates, write))


def task_of(setup: JointSetup) -> type[FusedTask]:
    """The recommender's side of a setup."""
    return RerankTask if isinstance(setup.states, JointCases) else FusedTask


def _path(setup: JointSetup, seed: int) -> epath.Path:
    return setup.rundir.path / "joint" / str(seed) / "candidates.npz"


def _keep(path: epath.Path, candidates: np.ndarray) -> None:
    if is_primary():
        write_npz(path, {"candidates": candidates})
