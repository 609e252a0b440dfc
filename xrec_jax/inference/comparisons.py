"""Pairwise comparisons by a judge of several systems' explanations for the same prompts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.evaluation import judging
from xrec_jax.evaluation.audit.contents import ContentIndex, read_content
from xrec_jax.evaluation.statistics.intervals import Estimate
from xrec_jax.evaluation.tables import cell, text_table
from xrec_jax.inference import run_records
from xrec_jax.text.records.explanations import join, prompt_hash
from xrec_jax.text.records.fields import value_of

_FITS = 200  # bootstrap samples of the length-controlled ratio, each of which needs a fit
Figures = dict[str, dict[str, Estimate]]


class ComparisonSet(NamedTuple):
    """Texts of several systems to be compared.

    Attributes:
      source: origin of the texts, for messages.
      prompts: prompts that the systems answered.
      texts: text of each system for each prompt, or None.
      users: user id of each prompt, or None.
      items: item id of each prompt, or None.
      groups: group of each prompt, for which there are separate win ratios; "" for none.
    """

    source: str
    prompts: list[str]
    texts: dict[str, list[str | None]]
    users: list[str | None]
    items: list[str | None]
    groups: list[str]


class Result(NamedTuple):
    """Result of a comparison.

    Attributes:
      figures: metrics by system, and by "A vs B".
      verdicts: records of `judge/verdicts.jsonl`, one for each pair in each order.
      note: message about the number of compared and skipped pairs.
      table: all comparisons.
    """

    figures: Figures
    verdicts: list[dict[str, Any]]
    note: str
    table: judging.Comparisons


def check(config: Any) -> None:
    """Validates the files of explanations that a config names.

    Raises:
      UserError: names the file and the problem.
    """
    for spec in config.judge.explanations:
        read_comparison_set(spec, by=config.judge.by)


def load(
    config: ConfigDict, rundir: RunDir, *, learned: Set[str] = frozenset()
) -> list[ComparisonSet]:
    """Loads the explanations of a run and the files that its config names.

    Args:
      config: configuration of the run.
      rundir: directory of the run.
      learned: prompts that the judge was trained on, whose requests are excluded.

    Raises:
      UserError: if a file cannot be read, or none of its prompts is left.
    """
    sets = []
    own = read_run(config, rundir)
    if own is not None:
        sets.append(own)
    sets += [read_comparison_set(spec, by=config.judge.by) for spec in config.judge.explanations]
    # The exclusion comes before the draw, which then still gives `count` prompts if there are as
    # many.
    count, seed = config.judge.prompts, config.seeds[0]
    return [draw(without(comparison_set, learned), count, seed=seed) for comparison_set in sets]


def without(comparison_set: ComparisonSet, learned: Set[str]) -> ComparisonSet:
    """Excludes prompts that the judge was trained on.

    A prompt is excluded if a learned one asks about the same recommendation, in whatever wording or
    length (`audit.contents.same_request`): published sets ask one question in several lengths.

    Raises:
      UserError: if no prompt is left.
    """
    index = ContentIndex([read_content(text) for text in sorted(learned)])
    kept = [
        n for n, text in enumerate(comparison_set.prompts) if index.find(read_content(text)) is None
    ]
    removed = len(comparison_set.prompts) - len(kept)
    if not removed:
        return comparison_set
    if not kept:
        raise UserError(f"{comparison_set.source}: the judge was trained on all of its prompts")
    return _part(
        comparison_set,
        kept,
        f"{comparison_set.source} without {removed} prompts the judge learned from",
    )


def without_hashes(comparison_set: ComparisonSet, learned: Set[str]) -> ComparisonSet:
    """Excludes prompts by their `prompt_hash`, as listed in `judge/split.json`.

    Raises:
      UserError: if no prompt is left.
    """
    kept = [n for n, text in enumerate(comparison_set.prompts) if prompt_hash(text) not in learned]
    if len(kept) == len(comparison_set.prompts):
        return comparison_set
    if not kept:
        raise UserError(f"{comparison_set.source}: the judge was trained on all of its prompts")
    return _part(comparison_set, kept, comparison_set.source)


def read_run(config: Any, rundir: RunDir, *, least: int = 2) -> ComparisonSet | None:
    """Reads the explanations of a run's `explain` stage; None with fewer than `least` systems.

    Raises:
      UserError: if its files do not belong together.
    """
    folder = rundir.path / "explanations"
    pairs = run_records.pairs(rundir)
    texts: dict[str, list[str | None]] = {}
    for path in run_records.explainer_files(rundir) if pairs else []:
        records = run_records.explanations(rundir, path)
        texts[path.stem] = [
            joined.explanation["text"] for joined in join(pairs, records, where=path)
        ]
    if len(texts) < least:
        return None
    # The order of the config: the system that is named earlier is shown first in `win/one_order`.
    named = [name for name in _names(config) if name in texts]
    order = [*named, *(name for name in texts if name not in named)]
    return ComparisonSet(
        str(folder),
        [pair["prompt"] for pair in pairs],
        {name: texts[name] for name in order},
        [pair["user"] for pair in pairs],
        [pair["item"] for pair in pairs],
        [""] * len(pairs),
    )


def _names(config: Any) -> list[str]:
    """Names of the explainers of a config, which has NAME or NAME=DIR."""
    return [str(text).split("=")[0] for text in config.explain.explainers]


def read_comparison_set(spec: str, *, by: str = "") -> ComparisonSet:
    """Reads PROMPTS+EXPLANATIONS: two JSONL files, joined by `prompt_id`.

    Args:
      spec: paths of the two files. Prompts have `prompt_id`, `prompt` and optionally `user` and
        `item`; explanations have `prompt_id`, `model` and `completion`, one line for each system
        and prompt.
      by: key of the prompts' file with the groups; "" for none.

    Raises:
      UserError: names the file, the record and the problem.
    """
    paths = files.joined(spec) if isinstance(spec, str) else []
    if len(paths) != 2:
        raise UserError(f"judge.explanations: {spec!r} must be two files, PROMPTS+EXPLANATIONS")
    prompt_records: list[dict[str, Any]] = []
    need = ("prompt_id", "prompt", *([by] if by else []))
    # Rows of prompts by id, in the order of the file.
    place: dict[Any, int] = {}
    for number, record in files.numbered_records(paths[0]):
        _need(record, need, f"{paths[0]}, line {number}")
        if record["prompt_id"] in place:
            raise UserError(
                f"{paths[0]}, line {number}: prompt_id={record['prompt_id']!r} stands there twice"
            )
        place[record["prompt_id"]] = len(prompt_records)
        prompt_records.append(record)
    if not prompt_records:
        raise UserError(f"{paths[0]}: no record in it")
    texts: dict[str, list[str | None]] = {}
    # A row for each system; what it did not answer stays None.
    for number, record in files.numbered_records(paths[1]):
        where = f"{paths[1]}, line {number}"
        if record.get("completion", "") is None:  # an empty answer
            record["completion"] = ""
        _need(record, ("prompt_id", "model", "completion"), where)
        if record["prompt_id"] not in place:
            raise UserError(
                f"{where}: prompt_id={record['prompt_id']!r} is not among the prompts of {paths[0]}"
            )
        row = texts.setdefault(str(record["model"]), [None] * len(prompt_records))
        index = place[record["prompt_id"]]
        if row[index] is not None:
            raise UserError(f"{where}: {record['model']} answers that prompt twice")
        row[index] = str(record["completion"])
    if len(texts) < 2:
        raise UserError(f"{paths[1]}: a comparison needs two models or more, it has {len(texts)}")

    def ids(key: str) -> list[str | None]:
        return [None if record.get(key) is None else str(record[key]) for record in prompt_records]

    groups = [str(record[by]) if by else "" for record in prompt_records]
    prompts = [str(record["prompt"]) for record in prompt_records]
    source = "+".join(os.path.basename(path) for path in paths)
    return ComparisonSet(source, prompts, texts, ids("user"), ids("item"), groups)


def _need(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        value_of(record, key, where)


def draw(comparison_set: ComparisonSet, count: int, *, seed: int) -> ComparisonSet:
    """Draws `count` prompts, spread evenly over the groups; 0 for all."""
    if not count or count >= len(comparison_set.prompts):
        return comparison_set
    order = rng.permutation(rng.fold(seed, Stream.SHARED_53), len(comparison_set.prompts)).tolist()
    turns: dict[str, int] = {}
    # The first of each group comes first, then the second of each, and so on.
    ranked: list[tuple[int, int, int]] = []
    for number in order:
        group = comparison_set.groups[number]
        turns[group] = turns.get(group, -1) + 1
        ranked.append((turns[group], len(ranked), number))
    kept = sorted(number for *_, number in sorted(ranked)[:count])
    source = f"{comparison_set.source} ({count} of {len(comparison_set.prompts)} prompts, drawn)"
    return _part(comparison_set, kept, source)


def _part(comparison_set: ComparisonSet, kept: list[int], source: str) -> ComparisonSet:
    return ComparisonSet(
        source,
        [comparison_set.prompts[i] for i in kept],
        {name: [texts[i] for i in kept] for name, texts in comparison_set.texts.items()},
        [comparison_set.users[i] for i in kept],
        [comparison_set.items[i] for i in kept],
        [comparison_set.groups[i] for i in kept],
    )


def compare(judge: judging.Judge, comparison_set: ComparisonSet, config: Any) -> Result:
    """Compares all pairs of systems on all prompts in both orders, and summarises the verdicts.

    Args:
      judge: the judge.
      comparison_set: texts to compare.
      config: configuration of the run: `judge.margin` and `ranking.resamples`.
    """
    compared = judging.compare(judge, comparison_set.prompts, comparison_set.texts)
    margin, resamples = config.judge.margin, config.ranking.resamples
    # `judging.compare` gives equal numbers to prompts of equal text, and so must we.
    known: dict[str, int] = {}
    numbers = [known.setdefault(prompt, len(known)) for prompt in comparison_set.prompts]
    group_of = dict(zip(numbers, comparison_set.groups, strict=True))
    groups = np.array([group_of[number] for number in compared.table.prompts])
    # Several prompts of a user are dependent, so intervals resample users.
    table = by_user(compared.table, dict(zip(numbers, comparison_set.users, strict=True)))
    systems = figures(table, margin=margin, resamples=resamples)
    for group in sorted(set(comparison_set.groups) - {""}):
        subset = table.select(groups == group)
        # No prompt of the group has texts of two systems.
        if not len(subset):
            continue
        ratios = judging.win_ratios(subset, margin=margin, resamples=resamples)
        for name, value in ratios.items():
            systems[name][f"win/ratio_{group}"] = value
    pairs = judging.pair_figures(table, margin=margin, resamples=resamples)
    # Backwards, so that the first of several equal prompts is the one that is kept.
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    note = (
        f"{len(table)} pairs of explanations of {len(set(compared.table.prompts.tolist()))} "
        f"prompts in both "
        f"orders; {compared.missing} pairs without two texts, {compared.refused} too long to read"
    )
    verdicts = _verdicts(comparison_set, compared.table, first)
    return Result(systems | pairs, verdicts, note, table)


def by_user(table: judging.Comparisons, user_of: Mapping[int, str | None]) -> judging.Comparisons:
    """Clusters comparisons by user instead of by prompt.

    Args:
      table: comparisons clustered by prompt.
      user_of: user of each prompt; a prompt without one forms its own cluster.
    """
    known: dict[Any, int] = {}
    # The kind is part of the key, as an id may look like the number of a prompt.
    owners = [
        ("prompt", n) if user_of[n] is None else ("user", user_of[n])
        for n in table.prompts.tolist()
    ]
    numbers = np.array([known.setdefault(owner, len(known)) for owner in owners], np.int64)
    return dataclasses.replace(table, prompts=numbers)


def figures(table: judging.Comparisons, *, margin: float, resamples: int) -> Figures:
    """Metrics of each system.

    `win/one_order` is the win ratio without the second order and without ties: every pair is judged
    once, with the system that is named earlier shown first.
    """
    options: dict[str, Any] = {"margin": margin, "resamples": resamples}
    columns = {
        "win/ratio": judging.win_ratios(table, **options),
        "win/ratio_soft": judging.win_ratios(table, soft=True, resamples=resamples),
        # The turned first verdict in place of the second one: no pair can be a tie of the two.
        "win/one_order": judging.win_ratios(
            dataclasses.replace(table, backward=1.0 - table.forward), resamples=resamples
        ),
        "win/ties": judging.tie_rates(table, **options),
        "win/length_controlled": judging.length_controlled(
            table, margin=margin, resamples=min(_FITS, resamples)
        ),
        "bradley_terry/strength": judging.strengths(table, **options),
    }
    return {
        system: {name: by_system[system] for name, by_system in columns.items()}
        for system in table.systems
    }


def _verdicts(
    comparison_set: ComparisonSet, table: judging.Comparisons, first: dict[int, int]
) -> list[dict[str, Any]]:
    """Records of all comparisons, one for each order; `first` is the row of each prompt."""
    hashes = [prompt_hash(prompt) for prompt in comparison_set.prompts]
    records = []
    for number, first_system, second_system, forward, backward in zip(
        table.prompts.tolist(),
        table.one.tolist(),
        table.other.tolist(),
        table.forward.tolist(),
        table.backward.tolist(),
        strict=True,
    ):
        place = first[number]
        begin = {
            "prompt_hash": hashes[place],
            "user": comparison_set.users[place],
            "item": comparison_set.items[place],
        }
        names = table.systems[first_system], table.systems[second_system]
        for (a, b), p in ((names, forward), (names[::-1], backward)):
            records.append(begin | {"first": a, "second": b, "p_first": p})
    return records


def comparison_table(result: Result) -> str:
    """Formats the metrics of all systems as a table."""
    systems = [result.figures[name] for name in result.table.systems]
    columns = [name for name in systems[0] if name != "win/ratio_soft"]
    rows = [
        [name, *(cell(result.figures[name].get(column)) for column in columns)]
        for name in result.table.systems
    ]
    everything = judging.clustered_mean(
        judging.consistent(result.table) * 1.0, result.table.prompts, resamples=0
    )
    return (
        text_table(["system", *columns], rows)
        + f"\nboth orders agree on {100 * everything['value']:.1f} % of the pairs"
    )
