"""The `recommend` stage: every system with every seed, then one table with intervals."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.run_data import RunData, need_events
from xrec_jax.data.world import oracle
from xrec_jax.evaluation.statistics.intervals import Estimate, estimates, exact
from xrec_jax.evaluation.tables import ranking_table
from xrec_jax.inference.run_records import per_user_ids, per_user_values
from xrec_jax.stages.base import Context, Stage, steps_before
from xrec_jax.training import defaults, recommender
from xrec_jax.training.recommender import RecommenderTask, seeds_of

NAME = recommender.STAGE


def section() -> ConfigDict:
    """One entry a system, filled by the config file; see `defaults.system`."""
    return ConfigDict()


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it."""
    for system in config.recommend.values():
        system.train.update(dict(batch_size=64, epochs=2, evaluate_every=1, patience=0))
        hparams = system.hparams
        if "content" in system:  # a smoke test has no vectors
            system.content.mode = ""
        for key, value in dict(dim=16, inner=32, length=12, context=4, negatives=2).items():
            if key in hparams:
                hparams[key] = min(hparams[key], value)
        if hparams.get("packing"):  # a row holds several windows
            hparams.packing = 2 * hparams.length
            system.train.batch_size = 16
        # A world's places have neither of the columns that a file's have.
        for key in ("category", "latitude", "longitude"):
            if key in hparams:
                hparams[key] = ""


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config = ctx.config
    need_events(ctx.data, NAME)
    if not config.recommend:
        raise UserError("config.recommend names no system; add one with defaults.system(...)")
    kinds = ("recall", "hit", "ndcg", "mrr")
    metrics = [f"valid/{kind}@{k}" for kind in kinds for k in config.ranking.ks]
    if config.ranking.mask_seen:
        metrics += [name.replace("/", "_unmasked/") for name in metrics]
    for name, system in config.recommend.items():
        defaults.check_training(system.train, f"recommend.{name}.train", metrics)
        _task(ctx, name).check()


def _task(ctx: Context, name: str) -> RecommenderTask:
    return RecommenderTask(ctx.config, name, data=ctx.data, mesh=ctx.mesh, rundir=ctx.rundir)


def run(ctx: Context, writer: MetricWriter) -> None:
    """Trains what is not done yet and writes the stage's part of `evaluation.json`."""
    done = steps_before(NAME)
    for name in ctx.config.recommend:
        task = _task(ctx, name)
        for seed in seeds_of(ctx.config, name):
            if not ctx.rundir.per_user(task.stage(seed)).exists():
                task.run(seed, writer, steps_before=done)
            done += task.total_steps  # what was trained before a resume counts, too
    _finish(ctx)


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    return Left(
        [
            ctx.rundir.per_user(f"{NAME}/{name}/{seed}")
            for name in ctx.config.recommend
            for seed in seeds_of(ctx.config, name)
        ]
    )


def evaluate(ctx: Context) -> None:
    """Evaluates every saved system again, from its checkpoints.

    Raises:
      UserError: if training is not finished; nothing is changed then.
    """
    config, rundir = ctx.config, ctx.rundir
    for name in config.recommend:
        for seed in seeds_of(config, name):
            if not rundir.per_user(f"{NAME}/{name}/{seed}").exists():
                raise UserError(
                    f"{NAME}/{name}/{seed} is not finished in {rundir.path}; run `xrec run` first"
                )
    tasks = [_task(ctx, name) for name in config.recommend]
    # A damaged checkpoint is found before anything is changed.
    for task in tasks:
        for seed in seeds_of(config, task.name):
            task.check_checkpoint(seed)
    rundir.reopen(NAME)
    for task in tasks:
        for seed in seeds_of(config, task.name):
            task.write_per_user(seed, *task.restore(seed))
    _finish(ctx)


def _finish(ctx: Context) -> None:
    """Writes the stage's part of `evaluation.json` and prints it, on the first process."""
    if is_primary():
        table = aggregate(ctx.config, ctx.data, ctx.rundir)
        ctx.rundir.write_evaluation(NAME, table)
        log(ranking_table(table))
    barrier("evaluation.json")  # nobody reads the figures before they are written


def aggregate(config: Any, data: RunData, rundir: RunDir) -> dict[str, dict[str, Estimate]]:
    """Means over seeds and users with bootstrap intervals, and the bound where one is known."""
    resamples = config.ranking.resamples
    table: dict[str, dict[str, Estimate]] = {}
    for name in config.recommend:
        values = per_user_values(config, name, rundir)
        ids = per_user_ids(config, name, rundir)
        table[name] = {}
        for group in ("valid", "test"):  # each has its own users
            chosen = {key: v for key, v in values.items() if key.startswith(group)}
            users = ids[f"{group}_users"]
            table[name] |= estimates(chosen, users=users, resamples=resamples)
            repeat, cold = ids.get(f"{group}_repeat"), ids.get(f"{group}_cold")
            kinds = {}
            if repeat is not None and not config.ranking.mask_seen:
                kinds = {"repeat": repeat, "new": ~repeat}
            elif repeat is not None and repeat.any():  # repeats, which are masked, are all missed
                kinds = {"new": ~repeat}
            if cold is not None:
                kinds["cold"] = cold
            for kind, rows in kinds.items():
                if rows.any():
                    # By the protocol alone, not unmasked beside it.
                    own = {key: v for key, v in chosen.items() if key.startswith(f"{group}/")}
                    some = {key.replace("/", f"_{kind}/"): v[:, rows] for key, v in own.items()}
                    table[name] |= estimates(some, users=users[rows], resamples=resamples)
    if data.world is not None:
        held_out = data.split.test
        bound = oracle(data.world, held_out, ks=tuple(config.ranking.ks)).mean_expected()
        table["upper_bound"] = {
            f"test/{key}": exact(value, len(held_out)) for key, value in bound.items()
        }
    return table


STAGE = Stage(
    name=NAME,
    section=section,
    shrink=shrink,
    check=check,
    run=run,
    left=left,
    evaluate=evaluate,
    trains=True,
    shapes_explanations=True,
)
