"""The `explain` stage: the same recommendations, explained by several explainers.

Leaves `explanations/pairs.jsonl`, what was asked, and `explanations/EXPLAINER.jsonl`, the answers
to the same pairs in the same order (see `text.records`). No pair is asked about whose prompt stands
in the set that the adapter was tuned on.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

from etils import epath
from jax.sharding import Mesh

from xrec_jax.core import files
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter, say
from xrec_jax.parallel.distributed import is_first, meet
from xrec_jax.parallel.exclusive import exclusive, of_file, refuse_second
from xrec_jax.pipelines import asking, bulk, explainers, export, language, run_records, shards
from xrec_jax.pipelines.cases import Asked, CaseMaker, case_maker, choose_prompts
from xrec_jax.pipelines.datasets import RunData, need_events
from xrec_jax.pipelines.explainers import Explainer, Spec
from xrec_jax.pipelines.instruct import figures_table, text_figures
from xrec_jax.pipelines.rundir import Left, RunDir
from xrec_jax.pipelines.session import Run, recommended_pairs, system_named
from xrec_jax.pipelines.shards import Parts

STAGE = bulk.STAGE


def folder(rundir: RunDir) -> epath.Path:
    """Where the stage's files lie."""
    return rundir.path / "explanations"


def specs(config: Any, rundir: RunDir) -> list[Spec]:
    """The explainers that a config names.

    Raises:
      UserError: if there is none, one is not known, or two have one name.
    """
    asked = config.explain.explainers
    if not asked:
        raise UserError(
            f"explain.explainers is empty; valid: {', '.join(explainers.KINDS)}, DIR of an adapter"
        )
    found = [explainers.parse(text, rundir) for text in asked]
    names = [spec.name for spec in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"explain.explainers names {name!r} twice; give one as NAME=DIR")
    return found


def check(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    asked, stages = config.explain, config.stages
    need_events(data, STAGE)
    for key, least in (("users", 0), ("top_k", 1), ("shard", 1)):
        if asked[key] < least:
            raise UserError(f"explain.{key}={asked[key]} must be at least {least}")
    if "recommend" not in stages and "recommend" not in rundir.evaluation():
        raise UserError("stage 'explain' needs stage 'recommend' before it in config.stages")
    if asked.system and asked.system not in config.recommend:
        hint = did_you_mean(asked.system, config.recommend)
        raise UserError(f"explain.system={asked.system!r} is no system of the run{hint}")
    chosen = specs(config, rundir)
    if explainers.needs_model(chosen):
        language.check(config, mesh, rundir)
    for spec in chosen:
        base = language.base_path(config, rundir)
        if spec.name != "template" and not (
            config.llm.path or "pretrain" in stages or base.exists()
        ):
            raise UserError(
                f"explain.explainers: {spec.name!r} needs a base: set llm.path, put 'pretrain' "
                "before 'explain' in config.stages, or leave only 'template'"
            )
        if spec.name == "tuned" and not ("instruct" in stages or epath.Path(spec.adapter).exists()):
            raise UserError(
                "explain.explainers: 'tuned' needs stage 'instruct' before it in config.stages"
            )
    CaseMaker(config, data).probe()


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Explains, where that is not done yet, and measures the texts."""
    del writer
    chosen = specs(config, rundir)
    paths = [folder(rundir) / f"{spec.name}.jsonl" for spec in chosen]
    pairs_path = folder(rundir) / "pairs.jsonl"
    if STAGE in rundir.evaluation() and all(path.exists() for path in (pairs_path, *paths)):
        return
    maker = case_maker(config, rundir, data)
    if not pairs_path.exists():
        meet("pairs looked for")
        asking.write_pairs(pairs_path, config, data, rundir, mesh, maker)
        meet("pairs written")
    place = bulk.workplace(mesh)

    @functools.cache
    def loaded() -> list[Explainer]:
        return explainers.load(chosen, config, rundir, place.mesh, maker)

    def explainer(number: int) -> Explainer:
        return loaded()[number]

    for number, (spec, path) in enumerate(zip(chosen, paths, strict=True)):
        if path.exists():
            if is_first():
                shards.remove_parts(path)
            continue
        meet(f"{spec.name} looked for")
        given = {"pairs": asking.digest(pairs_path)}
        parts = Parts(
            path, asking.identity(config, rundir, maker, spec, given), shard=config.explain.shard
        )
        done = bulk.produce(
            parts, pairs=lambda: asking.read_asked(pairs_path, maker), maker=maker, place=place,
            explainer=functools.partial(explainer, number), label=f"{STAGE} {spec.name}",
        )  # fmt: skip
        if is_first():
            say(f"explain: {done}, by {spec.name}")
    evaluate(config, data=data, mesh=mesh, rundir=rundir)
    meet("explain")


def left(config: Any, rundir: RunDir) -> Left:
    """What the finished stage leaves."""
    names = ("pairs", *(spec.name for spec in specs(config, rundir)))
    return Left([folder(rundir) / f"{name}.jsonl" for name in names])


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Measures the texts of the finished stage again.

    Raises:
      UserError: if it is not finished; nothing is changed then.
    """
    del data, mesh
    table = {}
    for spec in specs(config, rundir):
        path = folder(rundir) / f"{spec.name}.jsonl"
        if not path.exists():
            raise UserError(f"{path}: missing; stage 'explain' is not finished")
        records = run_records.explanations(rundir, path, "stop")
        table[spec.name] = text_figures(records, resamples=config.ranking.resamples)
    if is_first():
        rundir.write_evaluation(STAGE, table)
        say(figures_table(table))


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
    export.check_output(output, pairs=pairs, users=users)
    refuse_second(of_file(output))
    for name, value in (
        ("history", history), ("max_new_tokens", max_new_tokens), ("batch", batch),
        ("shard", shard),
    ):  # fmt: skip
        if value < 0:
            raise UserError(f"--{name}={value} must not be negative; 0: as the run says")
    if top_k < 1:
        raise UserError(f"--top_k={top_k} must be positive")
    if math.isnan(temperature) or temperature == math.inf:
        raise UserError(f"--temperature={temperature} must be a finite number")
    if pairs and (system or users != "all"):
        raise UserError("--pairs says what is explained: leave --system and --users out")
    run = Run(workdir, allow_imports=allow_imports)
    need_events(run.data, STAGE)
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
        asked: dict[str, Any] = {"pairs": asking.digest(epath.Path(pairs))}
    else:
        wanted = export.wanted_users(run, users)
        rows = None if wanted is None else run.user_rows(wanted)
        system = system_named(config, run.rundir, system)
        listed = "all" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()[:16]
        asked = {"system": system, "users": listed, "top_k": top_k}
    parts = Parts(
        output, asking.identity(config, run.rundir, maker, spec, asked),
        shard=shard or config.explain.shard,
    )  # fmt: skip
    place = bulk.workplace(run.mesh)

    def found() -> Iterator[Asked]:
        if pairs:
            return asking.read_asked(pairs, maker)
        return recommended_pairs(
            config, run.data, run.rundir, run.mesh, users=rows, top_k=top_k, system=system
        )

    with exclusive(of_file(output)):
        if is_first():
            files.remove_leftovers(output)
            files.remove_leftovers(parts.folder, below=True)
        done = bulk.produce(
            parts,
            pairs=found,
            maker=maker,
            place=place,
            explainer=lambda: explainers.load([spec], config, run.rundir, place.mesh, maker)[0],
        )
    if is_first():
        if maker.cut:
            say(f"explain: {maker.cut:,} prompts cut to what the model takes")
        say(f"explain: {done}, by {spec.name}, written to {output}")
