"""API for notebooks: opening a run, and the functions behind the verbs, one module a verb.

`restore` opens a run directory: recommendations from its best parameters, and explanations. The
modules hold the functions that the command line calls: `run.run`, `run.evaluate`,
`recommend.recommend`, `explain.explain`, `compare.compare`, `rate.make`, `rate.collect`,
`audit.audit`, `report.report` and `convert.import_model`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_identity import open_data
from xrec_jax.inference import bulk, explainers
from xrec_jax.inference.explainers import Spec
from xrec_jax.inference.options import GenerationOptions
from xrec_jax.inference.recommendations import Record, recommend_records
from xrec_jax.parallel.mesh import saved_mesh, use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.tasks.requests import RequestBuilder, request_builder
from xrec_jax.text.records.explanations import Explanation


class Run:
    """A run opened for use, finished or not.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names, if they are not imported yet.

    Attributes:
      rundir: its directory.
      config: its configuration.
      data: its data, split as in the run.

    Raises:
      UserError: if this is no run directory, or its config names modules that are not imported and
        may not be.
    """

    def __init__(self, workdir: epath.PathLike, *, allow_imports: bool = False):
        self.rundir = RunDir(workdir, allow_imports=allow_imports)
        self.config = read_config(self.rundir)
        self.data = open_data(self.config, self.rundir)
        # Ids are compared as text, since a table may hold them as numbers.
        self._row = {str(name): row for row, name in enumerate(self.data.dataset.user_ids)}
        self._explainers: dict[Any, Any] = {}

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The run's mesh; over all devices of this machine where they differ from the run's."""
        return saved_mesh(self.config)

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the run's recommenders."""
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
        yield from recommend_records(
            self.config, self.data, self.rundir, self.mesh, users=rows, top_k=top_k, system=system
        )

    def explain(
        self,
        pairs: Sequence[Any],
        *,
        explainer: str = "",
        adapter: str = "",
        max_new_tokens: int = 0,
    ) -> list[Explanation]:
        """Explains why items suit users, from all events of a user; nothing is written to disk.

        The model stays loaded for the next call. Several processes all call it with the same pairs
        and get the same records.

        Args:
          pairs: (user, item) ids, or records with the keys `user` and `item` as `recommend` gives.
          explainer: "template", "base" or "tuned"; with `adapter` a name for it. Default: the best
            that the run has, in the reverse of this order.
          adapter: directory of another adapter for the run's base.
          max_new_tokens: of an answer; 0: as the run.

        Returns:
          A record a pair, in order; see `text.records.Explanation`.

        Raises:
          UserError: on an unknown id or explainer, or if what it needs is missing.
        """
        # A single pair would be iterated by its characters or keys.
        if isinstance(pairs, (str, Mapping)):
            raise UserError("pairs must be a list, even of one: [(user, item)]")
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens={max_new_tokens} must not be negative")
        spec = explainers.choose(
            self.config, self.rundir, explainer=explainer, adapter=adapter, base=""
        )
        options = GenerationOptions(max_new_tokens=max_new_tokens)
        builder, writer, mesh = self._explainer(spec, options)
        requests = builder.many([builder.user_item(pair) for pair in pairs])
        with use_mesh(mesh):
            texts = explainers.answers(writer, requests, lambda count: None)
        return [
            explainers.record(writer, builder, request, written)
            for request, written in zip(requests, texts, strict=True)
        ]

    def _explainer(
        self, spec: Spec, options: GenerationOptions
    ) -> tuple[RequestBuilder, explainers.Explainer, Mesh]:
        """An explainer ready to write, kept for calls with the same options."""
        key = (spec, options)
        if key not in self._explainers:
            config = options.applied(self.config, self.data)
            builder = request_builder(config, self.rundir, self.data)
            # The process's own devices where the base can be split over them, as in `xrec explain`.
            mesh = bulk.workplace(self.mesh).mesh
            with use_mesh(mesh):
                made = explainers.load([spec], config, self.rundir, mesh, builder)[0]
            # One model at a time: a base may fill the devices.
            self._explainers = {key: (builder, made, mesh)}
        return self._explainers[key]


def restore(workdir: epath.PathLike, *, allow_imports: bool = False) -> Run:
    """Opens any run directory, finished or not.

    Args:
      workdir: local or `gs://`.
      allow_imports: import the modules that the run's config names: code of whoever made the run.

    Raises:
      UserError: if this is not a run directory, or it names modules that are not imported yet and
        `allow_imports` is false.
    """
    return Run(workdir, allow_imports=allow_imports)
