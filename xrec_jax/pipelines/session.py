"""A run directory opened for use: recommendations from its best parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax import recommenders
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking import recommend
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.pipelines.datasets import RunData, prepare
from xrec_jax.pipelines.meshes import saved_mesh
from xrec_jax.pipelines.recommend import seeds_of
from xrec_jax.pipelines.rundir import RunDir
from xrec_jax.pipelines.train_recommender import RecommenderTask

Record = dict[str, Any]


def best_system(config: Any, rundir: RunDir) -> str:
    """The finished system that is best on validation.

    By the metric that chose the parameters, where all trained systems agree on it; else by NDCG.

    Raises:
      UserError: if none is finished.
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
    return max(finished, key=lambda name: done[name][metric]["value"])


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
    """Recommendations of a system's first seed, a record at a time; see `Run.recommend`.

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
    name = system or best_system(config, rundir)
    if name not in config.recommend:
        raise UserError(f"no system {name!r} in the run{did_you_mean(name, config.recommend)}")
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
                    yield {
                        "user": str(dataset.user_ids[row]),
                        "rank": rank,
                        "item": str(dataset.item_ids[item]),
                        "score": float(score),
                        "system": name,
                    }


class Run:
    """A run, finished or not.

    Args:
      workdir: its run directory.

    Raises:
      UserError: if this is not a run directory.
    """

    def __init__(self, workdir: epath.PathLike):
        self.rundir = RunDir(workdir)
        self.config = self.rundir.config()
        self.data = prepare(self.config.data)
        self._row = {str(name): row for row, name in enumerate(self.data.dataset.user_ids)}

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the recommenders in the run."""
        return tuple(self.config.recommend)

    def user_rows(self, users: Sequence[str]) -> np.ndarray:
        """Rows of users given by id.

        Raises:
          UserError: on an id that is not in the data; names the nearest.
        """
        rows = []
        for user in users:
            if str(user) not in self._row:
                raise UserError(f"no user {user!r} in the data{did_you_mean(user, self._row)}")
            rows.append(self._row[str(user)])
        return np.array(rows, np.int32)

    def recommend(
        self, users: Sequence[str] | None = None, *, top_k: int = 10, system: str = ""
    ) -> list[Record]:
        """The best items a user has no event with, over all of the user's events.

        Args:
          users: ids; None for all.
          top_k: items a user.
          system: which recommender; default the best on validation.

        Returns:
          Records `user`, `rank` (from 1), `item`, `score`, `system`, user after user.

        Raises:
          UserError: on an unknown user or system, or `top_k` below 1.
        """
        return list(self.iter_recommend(users, top_k=top_k, system=system))

    def iter_recommend(
        self, users: Sequence[str] | None = None, *, top_k: int = 10, system: str = ""
    ) -> Iterator[Record]:
        """As `recommend`, a record at a time, in bounded memory."""
        rows = None if users is None else self.user_rows(users)
        mesh = saved_mesh(self.config)
        yield from recommend_records(
            self.config, self.data, self.rundir, mesh, users=rows, top_k=top_k, system=system
        )


def restore(workdir: epath.PathLike) -> Run:
    """Opens any run directory, finished or not."""
    return Run(workdir)
