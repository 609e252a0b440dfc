"""Recommendations of a finished run: the best system, its lists, and pairs drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from xrec_jax import recommenders
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation.ranking.evaluator import recommend
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.tasks.requests import Asked
from xrec_jax.training.recommender import RecommenderTask, seeds_of

Record = dict[str, Any]


def best_system(config: Any, rundir: RunDir) -> str:
    """The finished system that is best on validation.

    By the metric that chose the parameters, where all trained systems agree on it; else by NDCG.

    Raises:
      UserError: if none is finished, or none has a figure to choose by.
    """
    done = rundir.evaluation().get("recommend", {})
    finished = [name for name in config.recommend if name in done]
    if not finished:
        raise UserError(f"{rundir.path}: no recommender is finished; run `xrec run` first")
    metrics = {
        config.recommend[name].train.metric
        for name in finished
        if recommenders.get(config.recommend[name].model).batches != "none"
    }
    k = 10 if 10 in config.ranking.ks else config.ranking.ks[0]
    metric = metrics.pop() if len(metrics) == 1 else f"valid/ndcg@{k}"
    values = {name: done[name].get(metric, {}).get("value") for name in finished}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        raise UserError(
            f"{rundir.evaluation_path}: no recommender has a value of {metric}, by which the best "
            "is chosen; name one with --system"
        )
    return max(known, key=lambda name: known[name])


def system_named(config: Any, rundir: RunDir, system: str) -> str:
    """A recommender of the run; "" is the best on validation.

    Raises:
      UserError: if there is none of that name.
    """
    name = system or best_system(config, rundir)
    if name not in config.recommend:
        raise UserError(f"no system {name!r} in the run{did_you_mean(name, config.recommend)}")
    return name


def recommended_pairs(
    config: Any,
    data: RunData,
    rundir: RunDir,
    mesh: Mesh,
    *,
    users: np.ndarray | None,
    top_k: int,
    system: str,
) -> Iterator[Asked]:
    """Recommendations of a system's first seed as rows, user after user, in bounded memory.

    Args:
      config: of the run.
      data: its data.
      rundir: its directory.
      mesh: devices.
      users: `[users]` rows; None for all.
      top_k: items a user.
      system: its name; "" for the best on validation.
    """
    if top_k < 1:
        raise UserError(f"top_k={top_k} must be positive")
    name = system_named(config, rundir, system)
    dataset, split = data.dataset, data.split
    rows = np.arange(dataset.num_users) if users is None else users
    if not len(rows):
        return
    history = Histories.of([split.train, split.valid, split.test], dataset.num_users)
    with use_mesh(mesh):
        task = RecommenderTask(config, name, data=data, mesh=mesh, rundir=rundir)
        params, frozen = task.restore(seeds_of(config, name)[0])
    lists = recommend(task.model, params, frozen, history=history, users=rows, k=top_k, mesh=mesh)
    for found in lists:
        for row, items, scores in zip(found.users, found.items, found.scores, strict=True):
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1):
                if item >= 0:
                    yield Asked(int(row), int(item), rank, float(score), name)


def recommend_records(
    config: Any,
    data: RunData,
    rundir: RunDir,
    mesh: Mesh,
    *,
    users: np.ndarray | None,
    top_k: int,
    system: str,
) -> Iterator[Record]:
    """As `recommended_pairs`, but records with the ids; see `Run.recommend`."""
    dataset = data.dataset
    found = recommended_pairs(config, data, rundir, mesh, users=users, top_k=top_k, system=system)
    for asked in found:
        yield {
            "user": str(dataset.user_ids[asked.user]),
            "rank": asked.rank,
            "item": str(dataset.item_ids[asked.item]),
            "score": asked.score,
            "system": asked.system,
        }
