"""The `recommend` stage: every system with every seed, then one table with intervals."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.run_data import RunData, need_events
from xrec_jax.data.world import oracle
from xrec_jax.evaluation.statistics.intervals import Estimate, estimates, exact
from xrec_jax.evaluation.tables import ranking_table
from xrec_jax.inference.run_records import per_user_values
from xrec_jax.training import defaults
from xrec_jax.training.recommender import STAGE, RecommenderTask, seeds_of


def check(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    need_events(data, STAGE)
    if not config.recommend:
        raise UserError("config.recommend names no system; add one with defaults.system(...)")
    kinds = ("recall", "hit", "ndcg", "mrr")
    metrics = [f"valid/{kind}@{k}" for kind in kinds for k in config.ranking.ks]
    metrics += [name.replace("/", "_unmasked/") for name in metrics]
    for name, system in config.recommend.items():
        defaults.check_training(system.train, f"recommend.{name}.train", metrics)
        RecommenderTask(config, name, data=data, mesh=mesh, rundir=rundir).check()


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Trains what is not done yet and writes the stage's part of `evaluation.json`."""
    steps_before = 0
    for name in config.recommend:
        task = RecommenderTask(config, name, data=data, mesh=mesh, rundir=rundir)
        for seed in seeds_of(config, name):
            if not rundir.per_user(task.stage(seed)).exists():
                task.run(seed, writer, steps_before=steps_before)
            steps_before += task.total_steps
    _finish(config, data, rundir)


def left(config: Any, rundir: RunDir) -> Left:
    """What the finished stage leaves."""
    stages = [f"{STAGE}/{name}/{s}" for name in config.recommend for s in seeds_of(config, name)]
    return Left([rundir.per_user(stage) for stage in stages])


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Evaluates every saved system again, from its checkpoints.

    Raises:
      UserError: if training is not finished; nothing is changed then.
    """
    for name in config.recommend:
        for seed in seeds_of(config, name):
            if not rundir.per_user(f"{STAGE}/{name}/{seed}").exists():
                raise UserError(
                    f"{STAGE}/{name}/{seed} is not finished in {rundir.path}; run `xrec run` first"
                )
    tasks = [
        RecommenderTask(config, name, data=data, mesh=mesh, rundir=rundir)
        for name in config.recommend
    ]
    for task in tasks:
        for seed in seeds_of(config, task.name):
            task.check_checkpoint(seed)
    rundir.reopen(STAGE)
    for task in tasks:
        for seed in seeds_of(config, task.name):
            task.write_per_user(seed, *task.restore(seed))
    _finish(config, data, rundir)


def _finish(config: Any, data: RunData, rundir: RunDir) -> None:
    """Writes the stage's part of `evaluation.json` and prints it, on the first process."""
    if is_primary():
        table = aggregate(config, data, rundir)
        rundir.write_evaluation(STAGE, table)
        log(ranking_table(table))
    barrier("evaluation.json")  # nobody reads the figures before they are written


def aggregate(config: Any, data: RunData, rundir: RunDir) -> dict[str, dict[str, Estimate]]:
    """Means over seeds and users with bootstrap intervals, and the bound where one is known."""
    resamples = config.ranking.resamples
    table: dict[str, dict[str, Estimate]] = {}
    for name in config.recommend:
        values = per_user_values(config, name, rundir)
        table[name] = {}
        for group in ("valid", "test"):  # each has its own users
            chosen = {key: v for key, v in values.items() if key.startswith(group)}
            table[name] |= estimates(chosen, resamples=resamples)
    if data.world is not None:
        held_out = data.split.test
        bound = oracle(data.world, held_out, ks=tuple(config.ranking.ks)).mean_expected()
        table["upper_bound"] = {
            f"test/{key}": exact(value, len(held_out)) for key, value in bound.items()
        }
    return table
