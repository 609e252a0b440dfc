"""Explanations of several systems for the same prompts, and what a judge says about them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

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

_FITS = 200  # bootstrap samples of the length-controlled ratio, a fit each
Figures = dict[str, dict[str, Estimate]]


class Contest(NamedTuple):
    """What is compared.

    Attributes:
      source: where it came from, for messages.
      prompts: what the systems were asked.
      texts: by system, a text for each prompt or None.
      users: id of each prompt's user, None where there is none.
      items: the same of the items.
      groups: a name for each prompt, of a part that also gets ratios of its own; "" for none.
    """

    source: str
    prompts: list[str]
    texts: dict[str, list[str | None]]
    users: list[str | None]
    items: list[str | None]
    groups: list[str]


class Result(NamedTuple):
    """What came out of a contest.

    Attributes:
      figures: by system, and by "A vs B".
      verdicts: records of `judge/verdicts.jsonl`, one for each pair in each order.
      note: what was compared and what was left out, in words.
      table: all comparisons.
    """

    figures: Figures
    verdicts: list[dict[str, Any]]
    note: str
    table: judging.Comparisons


def check(config: Any) -> None:
    """Refuses files of explanations that cannot be compared.

    Raises:
      UserError: names the file and what is wrong.
    """
    for spec in config.judge.explanations:
        read_contest(spec, by=config.judge.by)


def load(config: Any, rundir: RunDir, *, learned: Set[str] = frozenset()) -> list[Contest]:
    """What a run has to compare: its own explanations, and the files that its config names.

    Args:
      config: of the run.
      rundir: its directory.
      learned: prompts that the judge was trained on; what they ask about is left out.

    Raises:
      UserError: if a file cannot be read, or nothing of it is left.
    """
    found = []
    own = read_run(config, rundir)
    if own is not None:
        found.append(own)
    found += [read_contest(spec, by=config.judge.by) for spec in config.judge.explanations]
    count, seed = config.judge.prompts, config.seeds[0]
    return [draw(without(contest, learned), count, seed=seed) for contest in found]


def without(contest: Contest, learned: Set[str]) -> Contest:
    """A contest without what the judge was trained on.

    A prompt is left out if one of those asks about the same recommendation, however it is worded or
    cut (`audit.contents.same_case`): published sets ask one question in several lengths.

    Raises:
      UserError: if nothing is left.
    """
    index = ContentIndex([read_content(text) for text in sorted(learned)])
    kept = [n for n, text in enumerate(contest.prompts) if index.find(read_content(text)) is None]
    gone = len(contest.prompts) - len(kept)
    if not gone:
        return contest
    if not kept:
        raise UserError(f"{contest.source}: the judge was trained on all of its prompts")
    return _part(contest, kept, f"{contest.source} without {gone} prompts the judge learned from")


def without_hashes(contest: Contest, learned: Set[str]) -> Contest:
    """A contest without some prompts, given by `prompt_hash` as `judge/split.json` has them.

    Raises:
      UserError: if nothing is left.
    """
    kept = [n for n, text in enumerate(contest.prompts) if prompt_hash(text) not in learned]
    if len(kept) == len(contest.prompts):
        return contest
    if not kept:
        raise UserError(f"{contest.source}: the judge was trained on all of its prompts")
    return _part(contest, kept, contest.source)


def read_run(config: Any, rundir: RunDir, *, least: int = 2) -> Contest | None:
    """The explanations of a run's `explain` stage; None if there are fewer than `least` systems.

    Raises:
      UserError: if its files do not belong together.
    """
    folder = rundir.path / "explanations"
    pairs = run_records.pairs(rundir)
    texts: dict[str, list[str | None]] = {}
    for path in run_records.explainer_files(rundir) if pairs else []:
        records = run_records.explanations(rundir, path)
        texts[path.stem] = [one.explanation["text"] for one in join(pairs, records, where=path)]
    if len(texts) < least:
        return None
    named = [name for name in _names(config) if name in texts]
    order = [*named, *(name for name in texts if name not in named)]
    return Contest(
        str(folder),
        [pair["prompt"] for pair in pairs],
        {name: texts[name] for name in order},
        [pair["user"] for pair in pairs],
        [pair["item"] for pair in pairs],
        [""] * len(pairs),
    )


def _names(config: Any) -> list[str]:
    """Names of the explainers as the config gives them: NAME, or NAME=DIR."""
    return [str(text).split("=")[0] for text in config.explain.explainers]


def read_contest(spec: str, *, by: str = "") -> Contest:
    """Reads PROMPTS+EXPLANATIONS: two JSONL files, joined by `prompt_id`.

    Args:
      spec: the prompts' file has `prompt_id` and `prompt`; that of the explanations `prompt_id`,
        `model` and `completion`, one line for each system and prompt. `user` and `item` are kept.
      by: key of the prompts' file whose values are parts with ratios of their own; "" for none.

    Raises:
      UserError: names the file, the record and what is wrong.
    """
    paths = files.joined(spec) if isinstance(spec, str) else []
    if len(paths) != 2:
        raise UserError(f"judge.explanations: {spec!r} must be two files, PROMPTS+EXPLANATIONS")
    asked: list[dict[str, Any]] = []
    need = ("prompt_id", "prompt", *([by] if by else []))
    place: dict[Any, int] = {}
    for number, record in files.numbered_records(paths[0]):
        _need(record, need, f"{paths[0]}, line {number}")
        if record["prompt_id"] in place:
            raise UserError(
                f"{paths[0]}, line {number}: prompt_id={record['prompt_id']!r} stands there twice"
            )
        place[record["prompt_id"]] = len(asked)
        asked.append(record)
    if not asked:
        raise UserError(f"{paths[0]}: no record in it")
    texts: dict[str, list[str | None]] = {}
    for number, record in files.numbered_records(paths[1]):
        where = f"{paths[1]}, line {number}"
        if record.get("completion", "") is None:  # a model that said nothing
            record["completion"] = ""
        _need(record, ("prompt_id", "model", "completion"), where)
        if record["prompt_id"] not in place:
            raise UserError(
                f"{where}: prompt_id={record['prompt_id']!r} is not among the prompts of {paths[0]}"
            )
        row = texts.setdefault(str(record["model"]), [None] * len(asked))
        at = place[record["prompt_id"]]
        if row[at] is not None:
            raise UserError(f"{where}: {record['model']} answers that prompt twice")
        row[at] = str(record["completion"])
    if len(texts) < 2:
        raise UserError(f"{paths[1]}: a comparison needs two models or more, it has {len(texts)}")

    def ids(key: str) -> list[str | None]:
        return [None if record.get(key) is None else str(record[key]) for record in asked]

    groups = [str(record[by]) if by else "" for record in asked]
    prompts = [str(record["prompt"]) for record in asked]
    source = "+".join(os.path.basename(path) for path in paths)
    return Contest(source, prompts, texts, ids("user"), ids("item"), groups)


def _need(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        value_of(record, key, where)


def draw(contest: Contest, count: int, *, seed: int) -> Contest:
    """A drawn part of the prompts, as even as can be over the groups; all of them for count 0."""
    if not count or count >= len(contest.prompts):
        return contest
    order = rng.permutation(rng.fold(seed, Stream.SHARED_53), len(contest.prompts)).tolist()
    turn: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for number in order:
        group = contest.groups[number]
        turn[group] = turn.get(group, -1) + 1
        ranked.append((turn[group], len(ranked), number))
    kept = sorted(number for *_, number in sorted(ranked)[:count])
    source = f"{contest.source} ({count} of {len(contest.prompts)} prompts, drawn)"
    return _part(contest, kept, source)


def _part(contest: Contest, kept: list[int], source: str) -> Contest:
    return Contest(
        source,
        [contest.prompts[i] for i in kept],
        {name: [texts[i] for i in kept] for name, texts in contest.texts.items()},
        [contest.users[i] for i in kept],
        [contest.items[i] for i in kept],
        [contest.groups[i] for i in kept],
    )


def hold(judge: judging.Judge, contest: Contest, config: Any) -> Result:
    """Lets a judge compare all pairs of systems on all prompts, in both orders."""
    compared = judging.compare(judge, contest.prompts, contest.texts)
    margin, resamples = config.judge.margin, config.ranking.resamples
    # `compare` numbers prompts of equal text alike.
    known: dict[str, int] = {}
    numbers = [known.setdefault(prompt, len(known)) for prompt in contest.prompts]
    group_of = dict(zip(numbers, contest.groups, strict=True))
    found = np.array([group_of[number] for number in compared.table.prompts])
    table = by_user(compared.table, dict(zip(numbers, contest.users, strict=True)))
    systems = figures(table, margin=margin, resamples=resamples)
    for group in sorted(set(contest.groups) - {""}):
        part = table.select(found == group)
        if not len(part):
            continue
        ratios = judging.win_ratios(part, margin=margin, resamples=resamples)
        for name, value in ratios.items():
            systems[name][f"win/ratio_{group}"] = value
    pairs = judging.pair_figures(table, margin=margin, resamples=resamples)
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    note = (
        f"{len(table)} pairs of explanations of {len(set(compared.table.prompts.tolist()))} "
        f"prompts in both "
        f"orders; {compared.missing} pairs without two texts, {compared.refused} too long to read"
    )
    verdicts = _verdicts(contest, compared.table, first)
    return Result(systems | pairs, verdicts, note, table)


def by_user(table: judging.Comparisons, user_of: Mapping[int, str | None]) -> judging.Comparisons:
    """The same comparisons, to be drawn by user: several prompts of one hang together.

    Args:
      table: drawn by prompt.
      user_of: prompt to its user; a prompt without one stays by itself.
    """
    known: dict[Any, int] = {}
    owners = [
        ("prompt", n) if user_of[n] is None else ("user", user_of[n])
        for n in table.prompts.tolist()
    ]
    numbers = np.array([known.setdefault(owner, len(known)) for owner in owners], np.int64)
    return dataclasses.replace(table, prompts=numbers)


def figures(table: judging.Comparisons, *, margin: float, resamples: int) -> Figures:
    """What is said of each system by itself.

    `win/one_order` is what a count without the second order and without ties would say: every pair
    judged once, the system named earlier shown first.
    """
    options: dict[str, Any] = {"margin": margin, "resamples": resamples}
    columns = {
        "win/ratio": judging.win_ratios(table, **options),
        "win/ratio_soft": judging.win_ratios(table, soft=True, resamples=resamples),
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
        system: {name: found[system] for name, found in columns.items()} for system in table.systems
    }


def _verdicts(
    contest: Contest, table: judging.Comparisons, first: dict[int, int]
) -> list[dict[str, Any]]:
    hashes = [prompt_hash(prompt) for prompt in contest.prompts]
    records = []
    for number, one, other, forward, backward in zip(
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
            "user": contest.users[place],
            "item": contest.items[place],
        }
        names = table.systems[one], table.systems[other]
        for (a, b), p in ((names, forward), (names[::-1], backward)):
            records.append(begin | {"first": a, "second": b, "p_first": p})
    return records


def contest_table(result: Result) -> str:
    """The systems of a contest as text."""
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
