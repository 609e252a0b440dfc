"""`xrec explain`: explanations of any number of pairs of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.api import Run, recommend
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import need_events
from xrec_jax.inference import bulk, explainers, requests_io
from xrec_jax.inference.options import AS_THE_RUN, GenerationOptions
from xrec_jax.inference.recommendations import recommended_pairs, system_named
from xrec_jax.parallel.exclusive import exclusive, of_file, refuse_second
from xrec_jax.stages.base import keys_apart
from xrec_jax.tasks.requests import RequestBuilder, UserItem, request_builder


def explain(
    workdir: epath.PathLike,
    *,
    users: str = "all",
    top_k: int = 10,
    output: str = "",
    system: str = "",
    pairs: str = "",
    options: GenerationOptions = AS_THE_RUN,
    allow_imports: bool = False,
) -> None:
    """Writes explanations of a run's recommendations, or of given pairs, to a file.

    A call that was killed goes on when it is made again; each pair is in the file exactly once.

    Args:
      workdir: the run.
      users: see `recommend.parse_users`.
      top_k: items a user.
      output: `.jsonl` or `.parquet`.
      system: which recommender; default the best on validation.
      pairs: a file of pairs to explain instead, such as `xrec recommend` writes.
      options: who writes, from which prompts, and how.
      allow_imports: import the modules that the run's config names.

    Raises:
      UserError: on anything that is unknown, missing, or does not fit together.
    """
    # What is wrong in the command itself, before the run is opened
    recommend.check_output(output, pairs=pairs, users=users)
    refuse_second(of_file(output))
    options.check()
    if top_k < 1:
        raise UserError(f"--top_k={top_k} must be positive")
    if pairs and (system or users != "all"):
        raise UserError("--pairs says what is explained: leave --system and --users out")

    # Who writes, from which prompts, and about what: together they are the output's identity
    run = Run(workdir, allow_imports=allow_imports)
    need_events(run.data, bulk.STAGE)
    config = options.applied(run.config, run.data)
    spec = explainers.choose(
        config, run.rundir, explainer=options.explainer, adapter=options.adapter, base=options.base
    )
    builder = request_builder(config, run.rundir, run.data)
    # One prompt is rendered first: a column that is missing shows before the base is loaded.
    builder.probe()
    requests = (
        _pairs_of_file(pairs, builder)
        if pairs
        else _recommended(run, config, users=users, top_k=top_k, system=system)
    )
    parts = requests_io.parts(
        output,
        config,
        run.rundir,
        builder,
        spec,
        requests.identity,
        ignored=keys_apart(),
        shard=options.shard or config.explain.shard,
    )

    # The shards that are missing, then the output; one process at a time may write it
    workplace = bulk.workplace(run.mesh)
    with exclusive(of_file(output)):
        if is_primary():
            files.remove_leftovers(output)
            files.remove_leftovers(parts.folder, below=True)
        done = bulk.produce(
            parts,
            pairs=requests.pairs,
            builder=builder,
            place=workplace,
            explainer=lambda: explainers.load([spec], config, run.rundir, workplace.mesh, builder)[
                0
            ],
        )
    if is_primary():
        if builder.cut:
            log(f"explain: {builder.cut:,} prompts cut to what the model takes")
        log(f"explain: {done}, by {spec.name}, written to {output}")


class _Requests(NamedTuple):
    """Pairs to be explained.

    Attributes:
      identity: settings and digests that determine the pairs.
      pairs: function that iterates over them.
    """

    identity: dict[str, Any]
    pairs: Callable[[], Iterator[UserItem]]


def _pairs_of_file(path: str, builder: RequestBuilder) -> _Requests:
    """The pairs that a file holds.

    Raises:
      UserError: if there is no such file.
    """
    if not epath.Path(path).is_file():
        raise UserError(f"--pairs={path}: no such file")
    identity = {"pairs": requests_io.digest(epath.Path(path))}
    return _Requests(identity, lambda: requests_io.read_pairs(path, builder))


def _recommended(run: Run, config: ConfigDict, *, users: str, top_k: int, system: str) -> _Requests:
    """Pairs that a recommender of the run recommends to users.

    Raises:
      UserError: on an unknown user or system.
    """
    names = recommend.wanted_users(run, users)
    rows = None if names is None else run.user_rows(names)
    system = system_named(config, run.rundir, system)
    # Of the rows in their order, which is that of the output too.
    listed = "all" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    identity = {"system": system, "users": listed, "top_k": top_k}
    return _Requests(
        identity,
        lambda: recommended_pairs(
            config, run.data, run.rundir, run.mesh, users=rows, top_k=top_k, system=system
        ),
    )
