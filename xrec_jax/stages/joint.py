"""The `joint` stage: recommender and explainer trained together, and the controls.

Leaves in the run directory `joint/SEED/rounds.jsonl` and `samples.jsonl`, the numbers and some
texts of every round; `joint/SEED/systems/`, texts and per-user figures of joint and of every
control; `explanations/joint_SEED.jsonl`, the final texts; `adapter_joint/SEED`, the best explainer
in PEFT's format (without its soft prompt, which no other program reads); and checkpoints that hold
everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.run_data import RunData
from xrec_jax.joint import checks
from xrec_jax.joint.controls import Systems
from xrec_jax.joint.recommender.fused import system_of
from xrec_jax.joint.results import STAGE, aggregate, figures_table, leave_seed, texts_path
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.sides import open_sides
from xrec_jax.joint.trainer import train
from xrec_jax.llm import run_base
from xrec_jax.training.recommender import RecommenderTask

check = checks.check


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Runs every seed that is not done, then compares the systems."""
    if STAGE in rundir.evaluation():
        return
    missing = [s for s in config.seeds if not rundir.per_user(f"{STAGE}/{s}").exists()]
    setup = _setup(config, data, mesh, rundir)
    if missing and is_primary():
        states = setup.states
        log(
            f"joint: {len(states):,} states of {len(np.unique(states.user)):,} users, "
            f"{len(states.teacher)} taught, prompts of up to {setup.prompts.ids.shape[1]} tokens"
            + "".join(f"; {note}" for note in states.notes)
        )
    task = RecommenderTask(config, system_of(config), data=data, mesh=mesh, rundir=rundir)
    if missing and "judge" in setup.weights:
        _ = setup.judge  # what is wrong with it must show before the warm start
    for seed in missing:
        sides, state = train(open_sides(setup, task, seed), writer)
        systems = Systems(sides, state)
        figures = systems.test()
        leave_seed(sides, state, systems, figures)
    _finish(config, setup, rundir)


def left(config: Any, rundir: RunDir) -> Left:
    """What the finished stage leaves."""
    left = [rundir.path / STAGE, rundir.path / "adapter_joint"]
    for seed in config.seeds:
        left += [rundir.per_user(f"{STAGE}/{seed}"), texts_path(rundir, seed)]
    return Left(left)


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Compares the systems again, from their saved per-user figures and texts.

    Raises:
      UserError: if a seed is not finished.
    """
    for seed in config.seeds:
        if not rundir.per_user(f"{STAGE}/{seed}").exists():
            raise UserError(
                f"{STAGE}/{seed} is not finished in {rundir.path}; run `xrec run` first"
            )
    _finish(config, _setup(config, data, mesh, rundir), rundir)


def _setup(config: Any, data: RunData, mesh: Mesh, rundir: RunDir) -> JointSetup:
    base = run_base.load_base(config, rundir, mesh)
    return JointSetup(config, data, base, mesh=mesh, rundir=rundir)


# Figures.


def _finish(config: Any, setup: JointSetup, rundir: RunDir) -> None:
    if is_primary():
        table = aggregate(config, setup, rundir)
        rundir.write_evaluation(STAGE, table)
        log(figures_table(table, setup.best_k))
    barrier("evaluation.json")
