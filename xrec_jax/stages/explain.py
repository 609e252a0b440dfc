"""The `explain` stage: the same recommendations, explained by several explainers.

Leaves `explanations/pairs.jsonl`, what was asked, and `explanations/EXPLAINER.jsonl`, the answers
to the same pairs in the same order (see `text.records`). No pair is asked about whose prompt stands
in the set that the adapter was tuned on.
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.run_data import need_events
from xrec_jax.evaluation.tables import figures_table
from xrec_jax.evaluation.texts.text_metrics import text_figures
from xrec_jax.inference import bulk, explainers, requests_io, run_records, shards
from xrec_jax.inference.explainers import Explainer, folder, specs
from xrec_jax.llm import run_base
from xrec_jax.stages.base import Context, Stage, keys_apart
from xrec_jax.tasks.requests import RequestBuilder, request_builder

NAME = bulk.STAGE


def section() -> ConfigDict:
    """The first recommendations of some users, explained by several explainers.

    Answers are drawn as `instruct.samples` says. Users who are not in the tuning set come first,
    and no prompt of that set is asked about. `xrec explain` takes `shard` from here, too.
    """
    return ConfigDict(
        dict(
            # or one of your own, the directory of an adapter, NAME=DIR
            explainers=("template", "base", "tuned"),
            system="",  # recommender; "": the best on validation
            systems=(),  # or several, whose recommendations `assess` tells apart
            users=200,  # in a drawn order; 0: all
            top_k=1,
            shard=4096,  # pairs that are written at once
        )
    )


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it."""
    config.explain.update(dict(users=4, top_k=1))


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config, rundir = ctx.config, ctx.rundir
    cfg, stages = config.explain, config.stages
    need_events(ctx.data, NAME)
    for key, least in (("users", 0), ("top_k", 1), ("shard", 1)):
        if cfg[key] < least:
            raise UserError(f"explain.{key}={cfg[key]} must be at least {least}")
    if "recommend" not in stages and "recommend" not in rundir.evaluation():
        raise UserError("stage 'explain' needs stage 'recommend' before it in config.stages")
    _check_systems(config)
    chosen = specs(config, rundir)
    if explainers.needs_model(chosen):
        run_base.check(config, ctx.mesh, rundir)
    for spec in chosen:
        needs = explainers.registration(spec).needs
        base = "pretrain" in stages or run_base.has_base(config, rundir)
        if needs != "nothing" and not base:
            raise UserError(
                f"explain.explainers: {spec.name!r} needs a base: set llm.path, put 'pretrain' "
                "before 'explain' in config.stages, or leave only 'template'"
            )
        if needs == "tuned" and not ("instruct" in stages or epath.Path(spec.adapter).exists()):
            raise UserError(
                f"explain.explainers: {spec.name!r} needs stage 'instruct' before it in "
                "config.stages"
            )
    RequestBuilder(config, ctx.data).probe()


def _check_systems(config: Any) -> None:
    """Refuses recommenders that the run does not have, or that are named twice."""
    cfg = config.explain
    if cfg.system and cfg.systems:
        raise UserError(
            f"explain.system={cfg.system!r} and explain.systems: give one of them; systems names "
            "several recommenders"
        )
    for key, names in (("system", (cfg.system,) if cfg.system else ()), ("systems", cfg.systems)):
        for name in names:
            if name not in config.recommend:
                hint = did_you_mean(name, config.recommend)
                raise UserError(f"explain.{key}={name!r} is no system of the run{hint}")
            if names.count(name) > 1:
                raise UserError(f"explain.{key} names {name!r} twice")


def run(ctx: Context, writer: MetricWriter) -> None:
    """Explains, where that is not done yet, and measures the texts."""
    del writer
    config, rundir = ctx.config, ctx.rundir
    chosen = specs(config, rundir)
    paths = [folder(rundir) / f"{spec.name}.jsonl" for spec in chosen]
    pairs_path = folder(rundir) / "pairs.jsonl"
    if NAME in rundir.evaluation() and all(path.exists() for path in (pairs_path, *paths)):
        return
    # All explainers are asked about the same pairs, which are chosen once.
    builder = request_builder(config, rundir, ctx.data)
    if not pairs_path.exists():
        barrier("pairs looked for")
        requests_io.write_pairs(pairs_path, config, ctx.data, rundir, ctx.mesh, builder)
        barrier("pairs written")
    place = bulk.workplace(ctx.mesh)

    # Models are loaded only where a text is missing.
    @functools.cache
    def loaded() -> list[Explainer]:
        return explainers.load(chosen, config, rundir, place.mesh, builder)

    def explainer(number: int) -> Explainer:
        return loaded()[number]

    for number, (spec, path) in enumerate(zip(chosen, paths, strict=True)):
        if path.exists():
            if is_primary():
                shards.remove_parts(path)  # a kill may have left them behind the whole file
            continue
        barrier(f"{spec.name} looked for")
        parts = requests_io.parts(
            path,
            config,
            rundir,
            builder,
            spec,
            {"pairs": requests_io.digest(pairs_path)},
            ignored=keys_apart(),
            shard=config.explain.shard,
        )
        done = bulk.produce(
            parts,
            pairs=lambda: requests_io.read_pairs(pairs_path, builder),
            builder=builder,
            place=place,
            explainer=functools.partial(explainer, number),
            label=f"{NAME} {spec.name}",
        )
        if is_primary():
            log(f"explain: {done}, by {spec.name}")
    evaluate(ctx)
    barrier("explain")


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    names = ("pairs", *(spec.name for spec in specs(ctx.config, ctx.rundir)))
    return Left([folder(ctx.rundir) / f"{name}.jsonl" for name in names])


def evaluate(ctx: Context) -> None:
    """Measures the texts of the finished stage again.

    Raises:
      UserError: if it is not finished; nothing is changed then.
    """
    config, rundir = ctx.config, ctx.rundir
    table = {}
    for spec in specs(config, rundir):
        path = folder(rundir) / f"{spec.name}.jsonl"
        if not path.exists():
            raise UserError(f"{path}: missing; stage 'explain' is not finished")
        records = run_records.explanations(rundir, path, "stop")
        table[spec.name] = text_figures(records, resamples=config.ranking.resamples)
    if is_primary():
        explainers.keep(rundir, specs(config, rundir))
        rundir.write_evaluation(NAME, table)
        log(figures_table(table))


STAGE = Stage(
    name=NAME, section=section, shrink=shrink, check=check, run=run, left=left, evaluate=evaluate
)
