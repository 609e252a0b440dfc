"""The `joint` stage: recommender and explainer trained together, and the controls.

Leaves in the run directory `joint/SEED/rounds.jsonl` and `samples.jsonl`, the numbers and some
texts of every round; `joint/SEED/systems/`, texts and per-user figures of joint and of every
control; `explanations/joint_SEED.jsonl`, the final texts; `adapter_joint/SEED`, the best explainer
in PEFT's format (without its soft prompt, which no other program reads); and checkpoints that hold
everything.
"""

from __future__ import annotations

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.joint import checks, config, results, rewards
from xrec_jax.joint.controls.systems import Systems
from xrec_jax.joint.granularity import open_setup
from xrec_jax.joint.recommender.fused import system_of
from xrec_jax.joint.results import aggregate, figures_table, leave_seed, texts_path
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.sides import open_sides
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.joint.trainer import train
from xrec_jax.llm import run_base
from xrec_jax.stages.base import Context, Stage, steps_before
from xrec_jax.training.recommender import RecommenderTask

NAME = results.STAGE


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end; see `joint.checks`."""
    checks.check(ctx.config, data=ctx.data, mesh=ctx.mesh, rundir=ctx.rundir)


def run(ctx: Context, writer: MetricWriter) -> None:
    """Runs every seed that is not done, then compares the systems."""
    if NAME in ctx.rundir.evaluation():
        return
    missing = [s for s in ctx.config.seeds if not _is_done(ctx, s)]
    setup = _setup(ctx)
    if missing and is_primary():
        states = setup.states
        log(
            f"joint: {len(states):,} states of {len(np.unique(states.user)):,} users, "
            f"{len(states.teacher)} taught, prompts of up to {setup.prompts.ids.shape[1]} tokens"
            + "".join(f"; {note}" for note in states.notes)
        )
    task = RecommenderTask(
        ctx.config, system_of(ctx.config), data=ctx.data, mesh=ctx.mesh, rundir=ctx.rundir
    )
    if missing:
        _ = setup.evidence  # what is wrong with it must show before the warm start
    for seed in missing:
        sides, state = train(open_sides(setup, task, seed), writer)
        systems = Systems(sides, state)
        figures = systems.test()
        leave_seed(sides, state, systems, figures)
    _finish(ctx, setup)


def _is_done(ctx: Context, seed: int) -> bool:
    return ctx.rundir.per_user(f"{NAME}/{seed}").exists()


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    rundir = ctx.rundir
    paths = [rundir.path / NAME, rundir.path / "adapter_joint"]
    for seed in ctx.config.seeds:
        paths += [rundir.per_user(f"{NAME}/{seed}"), texts_path(rundir, seed)]
    return Left(paths)


def evaluate(ctx: Context) -> None:
    """Compares the systems again, from their saved per-user figures and texts.

    Raises:
      UserError: if a seed is not finished.
    """
    for seed in ctx.config.seeds:
        if not _is_done(ctx, seed):
            raise UserError(
                f"{NAME}/{seed} is not finished in {ctx.rundir.path}; run `xrec run` first"
            )
    _finish(ctx, _setup(ctx))


def _setup(ctx: Context) -> StateSetup:
    shared = JointSetup(
        ctx.config,
        ctx.data,
        run_base.load_base(ctx.config, ctx.rundir, ctx.mesh),
        mesh=ctx.mesh,
        rundir=ctx.rundir,
        steps_before=steps_before(NAME),
    )
    return open_setup(shared)


def _finish(ctx: Context, setup: StateSetup) -> None:
    """Writes the stage's part of `evaluation.json` and prints it, on the first process."""
    if is_primary():
        table = aggregate(ctx.config, setup, ctx.rundir)
        ctx.rundir.write_evaluation(NAME, table)
        log(figures_table(table, setup.shared.best_k))
    barrier("evaluation.json")


STAGE = Stage(
    name=NAME,
    section=config.joint,
    shrink=config.shrink,
    check=check,
    run=run,
    left=left,
    evaluate=evaluate,
    paths=("states.path", *rewards.paths()),
    not_paths=("run",),  # the judge of the same run
    trains=True,
    needs_base=True,
)
