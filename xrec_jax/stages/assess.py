"""The `assess` stage: what can be measured on explanations without a judge.

Reads `explanations/` and writes two parts of `evaluation.json`. `assess`: text figures, grounding,
planted reasons, counterfactual faithfulness and, against the held-out references, overlap. `bias`:
differences between groups of users. With `explain.systems` a third, `recommenders`: figures on what
each of several recommenders recommends, as "EXPLAINER on RECOMMENDER".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation import bias
from xrec_jax.evaluation.faithfulness import planted
from xrec_jax.evaluation.faithfulness.counterfactual import counterfactual
from xrec_jax.evaluation.statistics.intervals import Estimate
from xrec_jax.evaluation.tables import text_table
from xrec_jax.evaluation.texts.grounding import (
    Grounder,
    Grounding,
    ground_pairs,
    grounding_metrics,
    vocabulary_of,
)
from xrec_jax.evaluation.texts.mentions import cell_values
from xrec_jax.evaluation.texts.overlap import derangement
from xrec_jax.evaluation.texts.text_metrics import MOST_WORDS, mean_of, text_metrics
from xrec_jax.inference import explainers, run_records
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.stages.base import Context, Stage
from xrec_jax.tasks.titles import title_column, titles
from xrec_jax.text.records.explanations import Pair, join
from xrec_jax.text.words import word_count
from xrec_jax.training.recommender import RecommenderTask, seeds_of

NAME, BIAS, RECOMMENDERS = "assess", "bias", "recommenders"
TUNED, BASE, SHUFFLED = "tuned", "base", "tuned shuffled"
_MOST_VALUES = 60  # a column with more different values describes nothing that a text can name
_SHOWN = (
    "planted/precision",
    "planted/recall",
    "planted/f1",
    "grounding/item_named",
    "grounding/hallucinated_titles",
    "grounding/attributes_precision",
    "counterfactual/comprehensiveness",
)

# Of a pair.
_READ = ("title", "system", "history", "attributes", "profile_attributes", "planted")

Table = dict[str, dict[str, Estimate]]


def section() -> ConfigDict:
    """What can be measured on the explanations of a run."""
    return ConfigDict(
        dict(
            groups=("gender", "age_band"),  # columns of the user table whose groups are compared
            resamples=1000,
            draws=8,  # random sets of uncited history entries, beside those that a text cites
        )
    )


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it."""
    config.assess.resamples = 100


def check(ctx: Context) -> None:
    """Refuses values that cannot work, before anything is written.

    Raises:
      UserError: names the key and what is valid.
    """
    config = ctx.config
    there = explainers.folder(ctx.rundir) / "pairs.jsonl"
    if "explain" not in config.stages and not there.exists():
        raise UserError("stage 'assess' needs stage 'explain' before it in config.stages")
    if config.assess.resamples < 0:
        raise UserError(f"assess.resamples={config.assess.resamples} must not be negative")
    if config.assess.draws < 1:
        raise UserError(f"assess.draws={config.assess.draws} must be positive")
    users = ctx.data.dataset.users
    columns = [] if users is None else users.columns
    for column in config.assess.groups:
        if column not in columns:
            raise UserError(
                f"assess.groups names {column!r}, which the user table does not have"
                f"{did_you_mean(column, columns)}"
            )


def run(ctx: Context, writer: MetricWriter) -> None:
    """Measures, where that is not done yet."""
    del writer
    parts = {NAME, BIAS, *([RECOMMENDERS] if ctx.config.explain.systems else [])}
    if not parts <= ctx.rundir.evaluation().keys():
        evaluate(ctx)
        barrier("assess")


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    del ctx
    return Left([], (BIAS, RECOMMENDERS))


def evaluate(ctx: Context) -> None:
    """Measures the explanations of the run again.

    Raises:
      UserError: if the stage `explain` is not finished.
    """
    config, rundir = ctx.config, ctx.rundir
    # What stands in the texts: one pass that most of the figures share.
    pairs, texts = read_explanations(config, rundir)
    groundings = ground(ctx.data, pairs, texts)
    draws: Any = {"users": users_of(pairs), "resamples": config.assess.resamples}
    # Tables of figures by explainer; each is empty where the run has nothing to measure it on.
    table = text_tables(texts, groundings, **draws)
    _add(table, planted_tables(pairs, texts, **draws))
    _add(table, counterfactual_tables(ctx, pairs, groundings))
    _add(table, held_out_tables(rundir, resamples=config.assess.resamples))
    differences = group_differences(config, pairs, texts, groundings)
    more = {BIAS: bias.bias_estimates(differences)}
    own = recommender_tables(ctx, pairs, texts, groundings)
    if own:
        more[RECOMMENDERS] = own
    if is_primary():
        rundir.write_evaluation(NAME, table, **more)
        log(summary(table, differences))
        if own:
            log("\n".join(["assess, each recommender's own:", *figures_lines(own)]))


def read_explanations(config: Any, rundir: RunDir) -> tuple[list[Pair], dict[str, list[str]]]:
    """The pairs of the `explain` stage and, for each explainer, a text a pair.

    Raises:
      UserError: if a file is missing or does not belong to the others.
    """
    folder = explainers.folder(rundir)
    pairs = run_records.pairs(rundir, *_READ)
    if not pairs:
        raise UserError(f"{folder / 'pairs.jsonl'}: no pair; run stage 'explain' first")
    texts = {}
    for spec in explainers.specs(config, rundir):
        path = folder / f"{spec.name}.jsonl"
        records = run_records.explanations(rundir, path)
        texts[spec.name] = [
            answer.explanation["text"] for answer in join(pairs, records, where=path)
        ]
    return pairs, texts


def users_of(pairs: Sequence[Pair]) -> list[str]:
    """User of every pair: texts for the same user are not independent."""
    return [pair["user"] for pair in pairs]


def ground(
    data: RunData, pairs: Sequence[Pair], texts: Mapping[str, Sequence[str]]
) -> dict[str, list[Grounding]]:
    """Mentions of titles and attribute values in every text."""
    table = data.dataset.items
    title = title_column(data.dataset)
    columns = [c for c in pairs[0]["attributes"] if c != title and _tells(pairs, c)]
    rows = [] if table is None else table.to_dicts()
    grounder = Grounder(
        titles(data.dataset).tolist(),
        vocabulary_of(rows, [name for name in columns if rows and name in rows[0]]),
    )
    return {name: ground_pairs(grounder, pairs, answers) for name, answers in texts.items()}


def _tells(pairs: Sequence[Pair], column: str) -> bool:
    """Whether a column's values, those of lists each, are words that a text may name."""
    values = {value for pair in pairs for value in cell_values(pair["attributes"].get(column))}
    return 1 < len(values) <= _MOST_VALUES


def text_tables(
    texts: Mapping[str, Sequence[str]],
    groundings: Mapping[str, Sequence[Grounding]],
    *,
    users: Sequence[str] | None = None,
    resamples: int,
) -> Table:
    """Length, variety, readability, features and grounding of each explainer's texts."""
    table: Table = {}
    for name, answers in texts.items():
        features = [grounding.features for grounding in groundings[name]]
        figures = text_metrics(answers, features=features, users=users, resamples=resamples)
        grounded = grounding_metrics(groundings[name], users=users, resamples=resamples)
        table[name] = {**figures.corpus, **grounded.corpus}
    return table


def planted_tables(
    pairs: Sequence[Pair],
    texts: Mapping[str, Sequence[str]],
    *,
    users: Sequence[str] | None = None,
    resamples: int,
) -> Table:
    """Planted reasons in the texts, and what tuning changes; empty outside of a planted world.

    "tuned shuffled" are the tuned model's texts, each read for another pair: the chance level.
    """
    truth = [pair["planted"] for pair in pairs]
    if any(reasons is None for reasons in truth):
        return {}
    scores = {name: planted.score_texts(answers, truth) for name, answers in texts.items()}
    if TUNED in texts and len(pairs) > 1:  # what its texts would reach by chance
        order = derangement(len(pairs), seed=0)
        moved = [texts[TUNED][place] for place in order]
        scores[SHUFFLED] = planted.score_texts(moved, truth)
    draws: Any = {"users": users, "resamples": resamples}
    table: Table = {name: score.estimates(**draws) for name, score in scores.items()}
    for other in scores:
        if TUNED in scores and other != TUNED:
            table[f"{TUNED} vs {other}"] = planted.compare(scores[TUNED], scores[other], **draws)
    return table


def counterfactual_tables(
    ctx: Context, pairs: Sequence[Pair], groundings: Mapping[str, Sequence[Grounding]]
) -> Table:
    """Whether the cited entries moved the recommender; empty where it has no user side."""
    config, data, mesh = ctx.config, ctx.data, ctx.mesh
    system = pairs[0]["system"]
    if system is None or any(pair["system"] != system for pair in pairs):
        return {}
    # Pairs name users and items by id; the recommender wants rows.
    dataset, split = data.dataset, data.split
    user_row = {str(id_): row for row, id_ in enumerate(dataset.user_ids)}
    item_row = {str(id_): row for row, id_ in enumerate(dataset.item_ids)}
    history = Histories.of([split.train, split.valid, split.test], dataset.num_users)
    users = [user_row[pair["user"]] for pair in pairs]
    with use_mesh(mesh):
        task = RecommenderTask(config, system, data=data, mesh=mesh, rundir=ctx.rundir)
        params, frozen = task.restore(seeds_of(config, system)[0])
    # Of each explainer the history entries that its texts cite, of those that the prompt showed.
    shown = [[item_row[entry["item"]] for entry in pair["history"]] for pair in pairs]
    table: Table = {}
    for name, mentions in groundings.items():
        named = [grounding.names("history") for grounding in mentions]
        cited = [
            [item_row[entry["item"]] for entry in pair["history"] if entry["title"] in cited]
            for pair, cited in zip(pairs, named, strict=True)
        ]
        try:
            result = counterfactual(
                task.model,
                params,
                frozen,
                users=users,
                items=[item_row[pair["item"]] for pair in pairs],
                histories=[
                    history.items[history.start[row] : history.start[row + 1]] for row in users
                ],
                cited=cited,
                shown=shown,
                mesh=mesh,
                draws=config.assess.draws,
            )
        except UserError as error:  # a recommender without users: nothing to measure
            if is_primary():
                log(f"assess: {error}")
            return {}
        table[name] = result.estimates(users=users_of(pairs), resamples=config.assess.resamples)
    return table


def recommender_tables(
    ctx: Context,
    pairs: Sequence[Pair],
    texts: Mapping[str, Sequence[str]],
    groundings: Mapping[str, Sequence[Grounding]],
) -> Table:
    """Figures of the texts about what each recommender recommends; empty with a single one.

    A text about an item that two recommenders recommend counts for both.
    """
    table: Table = {}
    for system in ctx.config.explain.systems:
        places = [place for place, pair in enumerate(pairs) if system in pair.get("systems", {})]
        if not places:
            continue
        of_system: list[Pair] = [{**pairs[place], "system": system} for place in places]
        answers = {name: [column[place] for place in places] for name, column in texts.items()}
        mentions = {name: [rows[place] for place in places] for name, rows in groundings.items()}
        draws: Any = {"users": users_of(of_system), "resamples": ctx.config.assess.resamples}
        own = text_tables(answers, mentions, **draws)
        for name, column in answers.items():
            short = np.array([word_count(text) <= MOST_WORDS for text in column], np.float64)
            own[name]["text/within_75_words"] = mean_of(short, **draws)
        _add(own, planted_tables(of_system, answers, **draws))
        _add(own, counterfactual_tables(ctx, of_system, mentions))
        table |= {f"{name} on {system}": figures for name, figures in own.items()}
    return table


def held_out_tables(rundir: RunDir, *, resamples: int) -> Table:
    """Overlap with the references of the instruction set's held-out prompts, named `held_out/`."""
    records = run_records.held_out_answers(rundir)
    table: Table = {}
    for name in (BASE, TUNED):
        answered = [record for record in records if name in record and record.get("reference")]
        if len(answered) < 2:
            continue
        figures = text_metrics(
            [record[name] for record in answered],
            [record["reference"] for record in answered],
            resamples=resamples,
        )
        table[name] = {
            f"held_out/{metric.removeprefix('text/').replace('/', '_')}": value
            for metric, value in figures.corpus.items()
            if any(word in metric for word in ("bleu", "rouge"))
        }
    return table


def group_differences(
    config: Any,
    pairs: Sequence[Pair],
    texts: Mapping[str, Sequence[str]],
    groundings: Mapping[str, Sequence[Grounding]],
) -> list[bias.Comparison]:
    """Differences between groups of users in the texts that they get."""
    groups = {
        column: [pair["profile_attributes"].get(column) for pair in pairs]
        for column in config.assess.groups
    }
    if not groups:
        return []
    figures: dict[str, Mapping[str, np.ndarray]] = {
        name: bias.explanation_figures(answers, groundings[name]) for name, answers in texts.items()
    }
    return bias.compare_groups(figures, groups, users=[pair["user"] for pair in pairs])


def _add(table: Table, more: Table) -> None:
    for name, figures in more.items():
        table.setdefault(name, {}).update(figures)


def figures_lines(table: Table) -> list[str]:
    """The main figures as a table, and what tuning changes in F1."""
    shown = [name for name in _SHOWN if any(name in row for row in table.values())]
    rows = [
        [system, *(f"{row[name]['value']:.3f}" if name in row else "-" for name in shown)]
        for system, row in table.items()
        if any(name in row for name in shown)
    ]
    lines = [text_table(["explainer", *shown], rows)]
    for system, row in table.items():
        if "planted/f1_difference" in row:
            f1 = row["planted/f1_difference"]
            lines.append(
                f"planted F1, {system}: {f1['value']:+.3f} "
                f"[{f1['low'] or 0:+.3f}, {f1['high'] or 0:+.3f}], p "
                f"{row['planted/p']['value']:.2g}"
            )
    return lines


def summary(table: Table, differences: Sequence[bias.Comparison]) -> str:
    """The main figures as text."""
    clear = [str(comparison) for comparison in differences if comparison.p < 0.05]
    groups = (
        f"group differences: {len(clear)} of {len(differences)} comparisons stand after Holm's "
        "correction"
    )
    return "\n".join(["assess:", *figures_lines(table), groups, *clear[:5]])


STAGE = Stage(
    name=NAME, section=section, shrink=shrink, check=check, run=run, left=left, evaluate=evaluate
)
