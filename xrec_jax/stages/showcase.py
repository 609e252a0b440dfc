"""The `showcase` stage: what a run learned, in pictures and in words.

Draws the learning curves, prints one user's history and recommendations in readable text (with the
true reasons, where the data is a planted world), and says what lies where in the run directory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation.ranking.metrics import main_cutoff
from xrec_jax.evaluation.tables import side_by_side
from xrec_jax.inference import bulk, explainers, run_records
from xrec_jax.inference.explainers import BASE, TUNED
from xrec_jax.inference.recommendations import recommend_records, recommended_pairs
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.report.plots import learning_curves
from xrec_jax.stages.base import Context, Stage
from xrec_jax.tasks.requests import request_builder
from xrec_jax.tasks.titles import titles
from xrec_jax.text.records.explanations import join

_CONTENTS = (
    ("config.json", "the resolved configuration; `xrec run` with the same one resumes"),
    ("data.json", "what data the run was started on: digests, and counts of what was left out"),
    ("metrics.jsonl", "every logged number, one JSON object a line"),
    ("tensorboard/", "the same for TensorBoard"),
    ("checkpoints/STAGE/STEP/", "Orbax: parameters, optimiser, key, data position, best so far"),
    ("per_user/", "metrics of every user, for paired tests"),
    ("evaluation.json", "final figures with 95 % intervals"),
    ("plots/", "learning curves"),
)
_LANGUAGE_CONTENTS = (
    ("base/", "the base that was pre-trained, a Hugging Face directory"),
    ("adapter/", "the tuned LoRA adapter, in PEFT's format"),
    ("instructions/", "what it was tuned on, and what was held out"),
    ("explanations/", "pairs and what each explainer says about them"),
)
_SHOWN = 3  # users whose first recommendation is explained


def check(ctx: Context) -> None:
    """Raises a `UserError` unless there is something to show."""
    config = ctx.config
    if "instruct" in config.stages and ctx.data.dataset.items is None:
        raise UserError("stage 'showcase' explains recommendations, which needs a table of items")
    if "recommend" not in config.stages or not config.recommend:
        raise UserError("stage 'showcase' needs stage 'recommend' before it in config.stages")


def describe_user(config: Any, data: RunData, rundir: RunDir, mesh: Mesh, row: int) -> str:
    """One user's history and five recommendations of the best system, as text."""
    dataset, split, world = data.dataset, data.split, data.world
    history = Histories.of([split.train, split.valid, split.test], dataset.num_users)
    items = history.items[history.start[row] : history.start[row + 1]]
    records = list(
        recommend_records(config, data, rundir, mesh, users=np.array([row]), top_k=5, system="")
    )
    names = _unambiguous(titles(dataset), dataset.item_ids)
    row_of = {str(id_): k for k, id_ in enumerate(dataset.item_ids)}
    lines = [f"User {dataset.user_ids[row]}, {len(items)} events; the last five:"]
    if dataset.users is not None and "user_text" in dataset.users.columns:
        lines.insert(0, dataset.users["user_text"][row])
    lines += [f"  {names[item]}" for item in items[-5:]]
    if not records:
        return "\n".join([*lines, "Nothing is left to recommend."])
    lines.append(f"Recommended by {records[0]['system']}:")
    for record in records:
        item = row_of[record["item"]]
        lines.append(f"  {record['rank']}. {names[item]}")
        if world is not None:
            visits = np.array([len(items)])
            reasons = world.reasons(np.array([row]), np.array([item]), visits)[0]
            text = dataset.items["item_text"][item] if dataset.items is not None else ""
            lines += [f"     {text}", f"     true reasons: {reasons.describe()}"]
    return "\n".join(lines)


def _unambiguous(names: np.ndarray, ids: np.ndarray) -> list[str]:
    """Names of items, with the id behind those that several items have."""
    often = Counter(names.tolist())
    return [
        f"{name} ({id_})" if often[name] > 1 else name
        for name, id_ in zip(names.tolist(), ids.tolist(), strict=True)
    ]


def describe_directory(rundir: RunDir) -> str:
    """What lies where in a run directory."""
    width = max(len(name) for name, _ in _CONTENTS)
    language = [entry for entry in _LANGUAGE_CONTENTS if (rundir.path / entry[0]).exists()]
    lines = [f"{rundir.path}:"]
    return "\n".join(
        lines + [f"  {name:<{width}}  {text}" for name, text in (*_CONTENTS, *language)]
    )


def _of_stage(rundir: RunDir) -> list[dict[str, Any]]:
    """The first pairs of a finished `explain` stage, with the answers of base and tuned model."""
    folder = run_records.answers_folder(rundir)
    pairs = run_records.pairs(rundir, "title", "reasons", most=_SHOWN)
    answers = {}
    for name in (BASE, TUNED):
        records = run_records.explanations(rundir, folder / f"{name}.jsonl", most=_SHOWN)
        answers[name] = [answer.explanation["text"] for answer in join(pairs, records)]
    return [
        {"user": pair["user"], "title": pair["title"], "reasons": pair["reasons"]}
        | {name: texts[place] for name, texts in answers.items()}
        for place, pair in enumerate(pairs)
    ]


def _first(config: Any, data: RunData, rundir: RunDir, mesh: Mesh) -> list[dict[str, Any]]:
    """The first recommendation of the first users, explained by base and tuned model."""
    rows = np.arange(min(_SHOWN, data.dataset.num_users))
    recommended = recommended_pairs(config, data, rundir, mesh, users=rows, top_k=1, system="")
    builder, place = request_builder(config, rundir, data), bulk.workplace(mesh)
    requests = builder.many(list(recommended))
    records: list[dict[str, Any]] = [{**builder.pair(request)} for request in requests]
    specs = [explainers.parse(name, rundir) for name in (BASE, TUNED)]
    with use_mesh(place.mesh):
        for explainer in explainers.load(specs, config, rundir, place.mesh, builder):
            answers = explainers.answers(explainer, requests, lambda count: None)
            for record, written in zip(records, answers, strict=True):
                record[explainer.name] = written.text
    return records


def show_explanations(config: Any, data: RunData, rundir: RunDir, mesh: Mesh) -> str:
    """First recommendations of a few users, explained by base and tuned model side by side."""
    folder = rundir.path / "explanations"
    names = ("pairs", BASE, TUNED)
    if "explain" in config.stages and all((folder / f"{n}.jsonl").exists() for n in names):
        records = _of_stage(rundir)
    else:
        records = _first(config, data, rundir, mesh)
        if is_primary():
            files.write_text(folder / "recommended.jsonl", files.json_lines(records))
    blocks = []
    for record in records:
        head = f"Why {record['title']} for user {record['user']}?"
        reasons = f"\ntrue reasons: {record['reasons']}" if record["reasons"] else ""
        blocks.append(f"{head}{reasons}\n{side_by_side(record)}")
    return "\n\n".join(blocks)


def run(ctx: Context, writer: MetricWriter) -> None:
    """Draws, prints, explains."""
    del writer
    config, data, mesh, rundir = ctx.config, ctx.data, ctx.mesh, ctx.rundir
    # All processes take part in computing the texts; the first one shows them.
    text = describe_user(config, data, rundir, mesh, row=0)
    if "instruct" in config.stages:
        text += f"\n\n{show_explanations(config, data, rundir, mesh)}"
    if not is_primary():
        return
    log(f"\n{text}\n")
    evaluation = rundir.evaluation()["recommend"]
    k = main_cutoff(config.ranking.ks)
    bound = evaluation.get("upper_bound", {}).get(f"test/ndcg@{k}")
    records = run_records.metrics(rundir)
    path = rundir.path / "plots" / "learning_curves.png"
    if learning_curves(records, path, k=k, bound=bound and bound["value"]):
        log(f"learning curves: {path}")
    else:
        log("learning curves: not drawn, matplotlib is missing (pip install 'xrec_jax[report]')")
    log(describe_directory(rundir))


STAGE = Stage(name="showcase", check=check, run=run, always_runs=True)
