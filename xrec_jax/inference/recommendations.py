"""Recommendations of a finished run: the best recommender and its top-k lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from xrec_jax.tasks.requests import UserItem
from xrec_jax.training.recommender import RecommenderTask, seeds_of

Record = dict[str, Any]


def best_system(config: Any, rundir: RunDir) -> str:
    """Name of the finished recommender that is best on validation.

    By the metric that selected the parameters if it is the same for all trained recommenders,
    otherwise by NDCG.

    Raises:
      UserError: if none is finished, or none has a value of the metric.
    """
    done = rundir.evaluation().get("recommend", {})
    finished = [name for name in config.recommend if name in done]
    if not finished:
        raise UserError(f"{rundir.path}: no recommender is finished; run `xrec run` first")
    # By the metric that all trained ones are selected by; untrained ones have none.
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
    """Checks the name of a recommender of the run; "" is replaced by the best on validation.

    Raises:
      UserError: if there is no recommender of that name.
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
) -> Iterator[UserItem]:
    """Yields recommendations of a recommender's first seed, user by user, in bounded memory.

    Args:
      config: configuration of the run.
      data: data of the run.
      rundir: directory of the run.
      mesh: devices.
      users: `[users]` rows; None for all.
      top_k: number of items per user.
      system: name of the recommender; "" for the best on validation.

    Raises:
      UserError: if `top_k` is not positive, or there is no such recommender.
    """
    if top_k < 1:
        raise UserError(f"top_k={top_k} must be positive")
    name = system_named(config, rundir, system)
    dataset, split = data.dataset, data.split
    rows = np.arange(dataset.num_users) if users is None else users
    if not len(rows):
        return
    # With the held-out events: in use, nothing that the user has seen is recommended again.
    history = Histories.of([split.train, split.valid, split.test], dataset.num_users)
    with use_mesh(mesh):
        task = RecommenderTask(config, name, data=data, mesh=mesh, rundir=rundir)
        params, frozen = task.restore(seeds_of(config, name)[0])
    lists = recommend(
        task.model,
        params,
        frozen,
        history=history,
        users=rows,
        k=top_k,
        mesh=mesh,
        mask_seen=config.ranking.mask_seen,
    )
    for batch in lists:
        for row, items, scores in zip(batch.users, batch.items, batch.scores, strict=True):
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1):
                # Places beyond the unseen items of a user are -1.
                if item >= 0:
                    yield UserItem(int(row), int(item), rank, float(score), name)


def recommended_by_several(
    config: Any,
    data: RunData,
    rundir: RunDir,
    mesh: Mesh,
    *,
    users: np.ndarray,
    top_k: int,
    systems: Sequence[str],
) -> list[tuple[UserItem, dict[str, int]]]:
    """Recommendations of several recommenders, user by user; what two recommend stands once.

    Args:
      config: configuration of the run.
      data: data of the run.
      rundir: directory of the run.
      mesh: devices.
      users: `[users]` rows.
      top_k: number of items per user and recommender.
      systems: names of the recommenders.

    Returns:
      Each pair as the first of them recommends it, with its rank in the list of each that does.
    """
    merged: dict[tuple[int, int], tuple[UserItem, dict[str, int]]] = {}
    for name in systems:
        for user_item in recommended_pairs(
            config, data, rundir, mesh, users=users, top_k=top_k, system=name
        ):
            first = merged.setdefault((user_item.user, user_item.item), (user_item, {}))
            first[1][name] = user_item.rank or 0
    # Pairs of one user stand together, since their prompts begin alike; the sort is stable.
    place = {int(row): number for number, row in enumerate(users)}
    return sorted(merged.values(), key=lambda entry: place[entry[0].user])


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
    """Yields recommendations as records with ids; see `recommended_pairs` and `Run.recommend`."""
    dataset = data.dataset
    recommended = recommended_pairs(
        config, data, rundir, mesh, users=users, top_k=top_k, system=system
    )
    for user_item in recommended:
        yield {
            "user": str(dataset.user_ids[user_item.user]),
            "rank": user_item.rank,
            "item": str(dataset.item_ids[user_item.item]),
            "score": user_item.score,
            "system": user_item.system,
        }
