"""`xrec explain`: explanations of any number of pairs of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

from etils import epath

from xrec_jax.api import Run, recommend
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import need_events
from xrec_jax.inference import bulk, explainers, requests_io
from xrec_jax.inference.recommendations import recommended_pairs, system_named
from xrec_jax.inference.shards import Parts
from xrec_jax.parallel.exclusive import exclusive, of_file, refuse_second
from xrec_jax.tasks.requests import Asked, case_maker, choose_prompts


def explain(
    workdir: epath.PathLike,
    *,
    users: str = "all",
    top_k: int = 10,
    output: str = "",
    system: str = "",
    pairs: str = "",
    explainer: str = "",
    adapter: str = "",
    base: str = "",
    prompt: str = "",
    history: int = 0,
    max_new_tokens: int = 0,
    temperature: float = -1.0,
    batch: int = 0,
    shard: int = 0,
    allow_imports: bool = False,
) -> None:
    """`xrec explain`: recommendations of a run with explanations, written to a file.

    A call that was killed goes on when it is made again; each pair is in the file exactly once.

    Args:
      workdir: the run.
      users: see `export.parse_users`.
      top_k: items a user.
      output: `.jsonl` or `.parquet`.
      system: which recommender; default the best on validation.
      pairs: a file of pairs to explain instead, such as `xrec recommend` writes.
      explainer: template, base or tuned; with `adapter` a name for it. Default: the best there is.
      adapter: directory of another adapter for the run's base.
      base: directory of a base for a run without one, or instead of its own.
      prompt: a registered template of prompts, or "generic" for one of the tables' columns. Default
        the run's own; generic in a run that neither tunes nor has a world.
      history: most entries of a prompt; 0: as the run.
      max_new_tokens: of an answer; 0: as the run, like the next two.
      temperature: of sampling; negative: as the run.
      batch: rows that generate at once; 0: as the run.
      shard: pairs written at once; 0: as the run.
      allow_imports: import the modules that the run's config names.

    Raises:
      UserError: on anything that is unknown, missing, or does not fit together.
    """
    recommend.check_output(output, pairs=pairs, users=users)
    refuse_second(of_file(output))
    for name, value in (
        ("history", history),
        ("max_new_tokens", max_new_tokens),
        ("batch", batch),
        ("shard", shard),
    ):
        if value < 0:
            raise UserError(f"--{name}={value} must not be negative; 0: as the run says")
    if top_k < 1:
        raise UserError(f"--top_k={top_k} must be positive")
    if math.isnan(temperature) or temperature == math.inf:
        raise UserError(f"--temperature={temperature} must be a finite number")
    if pairs and (system or users != "all"):
        raise UserError("--pairs says what is explained: leave --system and --users out")
    run = Run(workdir, allow_imports=allow_imports)
    need_events(run.data, bulk.STAGE)
    config = run.config
    if base:
        config.llm.path = str(files.absolute(base))
    spec = explainers.choose(config, run.rundir, explainer=explainer, adapter=adapter, base=base)
    samples = config.instruct.samples
    samples.max_new_tokens = max_new_tokens or samples.max_new_tokens
    samples.temperature = samples.temperature if temperature < 0 else temperature
    config.instruct.history = history or config.instruct.history
    config.llm.generation_batch = batch or config.llm.generation_batch
    choose_prompts(config, run.data, prompt)
    maker = case_maker(config, run.rundir, run.data)
    maker.probe()
    if pairs:
        if not epath.Path(pairs).is_file():
            raise UserError(f"--pairs={pairs}: no such file")
        asked: dict[str, Any] = {"pairs": requests_io.digest(epath.Path(pairs))}
    else:
        wanted = recommend.wanted_users(run, users)
        rows = None if wanted is None else run.user_rows(wanted)
        system = system_named(config, run.rundir, system)
        listed = "all" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()[:16]
        asked = {"system": system, "users": listed, "top_k": top_k}
    parts = Parts(
        output,
        requests_io.identity(config, run.rundir, maker, spec, asked),
        shard=shard or config.explain.shard,
    )
    place = bulk.workplace(run.mesh)

    def found() -> Iterator[Asked]:
        if pairs:
            return requests_io.read_asked(pairs, maker)
        return recommended_pairs(
            config, run.data, run.rundir, run.mesh, users=rows, top_k=top_k, system=system
        )

    with exclusive(of_file(output)):
        if is_primary():
            files.remove_leftovers(output)
            files.remove_leftovers(parts.folder, below=True)
        done = bulk.produce(
            parts,
            pairs=found,
            maker=maker,
            place=place,
            explainer=lambda: explainers.load([spec], config, run.rundir, place.mesh, maker)[0],
        )
    if is_primary():
        if maker.cut:
            log(f"explain: {maker.cut:,} prompts cut to what the model takes")
        log(f"explain: {done}, by {spec.name}, written to {output}")
