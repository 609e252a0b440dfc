"""`xrec compare`: how runs differ, with intervals, and a fair win ratio of their explanations."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import run_identity
from xrec_jax.evaluation import judging
from xrec_jax.evaluation.statistics.intervals import Estimate, paired_difference
from xrec_jax.evaluation.tables import cell, ranking_columns, text_table
from xrec_jax.inference import comparisons, judges, run_records
from xrec_jax.inference.comparisons import Contest
from xrec_jax.inference.judges import explanations_of, judge_path, load_judge
from xrec_jax.inference.run_records import per_user_values
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import is_adapter
from xrec_jax.parallel.mesh import saved_mesh, use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.stages.assess import BIAS
from xrec_jax.training.recommender import STAGE as RECOMMEND
from xrec_jax.training.recommender import seeds_of

_FILES = ("path", "users", "items")  # keys of config.data that may differ between equal data


class _Run(NamedTuple):
    name: str
    rundir: RunDir
    config: Any
    identity: run_identity.Record | None


def compare(
    workdirs: Sequence[epath.PathLike],
    *,
    output: epath.PathLike = "",
    judge: judging.Judge | str | None = None,
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Compares runs; every difference is of a run minus the first.

    Ranking figures of a system that both have are compared user by user, where the runs tested the
    same users on the same items, by id. All other figures stand side by side. Explanations of the
    pairs of user and item that all runs explain are judged in both orders.

    Args:
      workdirs: two run directories or more.
      output: a JSON file for the result; "" for none.
      judge: any judge, or "module:function" naming one; default: that of the first run.
      allow_imports: import the modules that the runs' configs name.

    Returns:
      `runs` (name to path), `figures` ([stage][system][metric] = {"runs": {name: Estimate},
      "differences": {name: Estimate or None}}), and `explanations`: None, or `figures` (as in
      `evaluation.json`), `matrix` (points of each system over each), `note`.

    Raises:
      UserError: if there are fewer than two runs, one is none, or the data of one changed.
    """
    if output:
        outputs.check_output(output)
    runs = _open(workdirs, allow_imports)
    chosen = _judge_named(judge) if isinstance(judge, str) and judge else judge
    result: dict[str, Any] = {
        "runs": {run.name: os.fspath(run.rundir.path) for run in runs},
        "figures": _figures(runs),
    }
    if is_primary():
        log(_figures_text(runs, result["figures"]))
    result["explanations"] = _explanations(runs, chosen or None)
    if output and is_primary():
        files.write_json(output, result)
    return result


def _open(workdirs: Sequence[epath.PathLike], allow_imports: bool) -> list[_Run]:
    if len(workdirs) < 2:
        raise UserError("a comparison needs two runs: --workdir=A --workdir=B")
    rundirs = [RunDir(path, allow_imports=allow_imports) for path in workdirs]
    paths = [os.fspath(rundir.path) for rundir in rundirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--workdir={path} is given twice; a run does not differ from itself")
    names = [rundir.path.name for rundir in rundirs]
    if len(set(names)) < len(names):
        names = paths
    runs = []
    for name, rundir in zip(names, rundirs, strict=True):
        config = read_config(rundir)
        if not rundir.evaluation():
            raise UserError(f"{rundir.path}: no stage is finished; run `xrec run` first")
        run_identity.check_unread(config, rundir)
        runs.append(_Run(name, rundir, config, run_identity.identity_of(config, rundir)))
    return runs


def _judge_named(name: str) -> judging.Judge:
    """The callable that "module:function" names.

    Raises:
      UserError: if it cannot be had.
    """
    module, separator, function = name.partition(":")
    if not separator or not module or not function:
        raise UserError(f"--judge={name!r} must be module:function")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--judge: cannot import {module!r} ({error}); is its folder in PYTHONPATH?"
        ) from error
    except Exception as error:  # whatever a module does while it is imported
        raise UserError(f"--judge: cannot import {module!r} ({_said(error)})") from error
    judge: Callable[..., Any] | None = getattr(found, function, None)
    if not callable(judge):
        known = [one for one, value in vars(found).items() if one[0] != "_" and callable(value)]
        raise UserError(
            f"--judge: {module} has no function {function!r}{did_you_mean(function, known)}"
        )
    called = judge

    def asked(*texts: Sequence[str]) -> np.ndarray:
        try:
            return np.asarray(called(*texts), np.float64)
        except UserError:
            raise
        except Exception as error:  # it is the user's own code: told
            raise UserError(f"--judge={name} failed: {_said(error)}") from error

    return asked


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _figures(runs: Sequence[_Run]) -> dict[str, Any]:
    """Figures that two runs or more have, side by side, with differences from the first run."""
    evaluations = [run.rundir.evaluation() for run in runs]
    table: dict[str, Any] = {}
    for stage, system, metric in _keys(evaluations):
        by_run = {
            run.name: found[stage][system][metric]
            for run, found in zip(runs, evaluations, strict=True)
            if metric in found.get(stage, {}).get(system, {})
        }
        if len(by_run) < 2:
            continue
        row = {
            "runs": by_run,
            "differences": {name: None for name in by_run if name != runs[0].name},
        }
        table.setdefault(stage, {}).setdefault(system, {})[metric] = row
    if RECOMMEND in table:
        _add_differences(runs, table[RECOMMEND])
    return table


def _add_differences(runs: Sequence[_Run], systems: dict[str, Any]) -> None:
    """Adds paired differences from the first run, where the same users and items were tested."""
    first, *others = runs
    for run in others:
        parts = _parts_alike(first, run)
        if "test" not in parts and is_primary():
            log(f"compare: {run.name} and {first.name} tested other users or items; not paired")
        for system, rows in systems.items():
            for metric, difference in _paired(first, run, system, parts=parts).items():
                if metric in rows and run.name in rows[metric]["differences"]:
                    rows[metric]["differences"][run.name] = difference


def _parts_alike(first: _Run, run: _Run) -> set[str]:
    """Parts of the split in which two runs hold out the same users and items."""
    parts = {"valid", "test"}
    mine, theirs = first.identity, run.identity
    if mine is None or theirs is None:  # from a time when runs did not keep what they read
        return parts if _same_data(first.config, run.config) else set()
    return {part for part in parts if run_identity.same_tested(mine, theirs, part)}


def _keys(evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Stage, system and metric of everything that any run has, in the order in which it stands."""
    return list(
        dict.fromkeys(
            (stage, system, metric)
            for found in evaluations
            for stage, systems in found.items()
            for system, metrics in systems.items()
            for metric in metrics
        )
    )


def _same_data(one: Any, other: Any) -> bool:
    """Whether the configs of two runs name the same data, wherever its files lie."""
    a, b = one.data.to_dict(), other.data.to_dict()
    return all(a.get(key) == b.get(key) for key in a.keys() | b.keys() if key not in _FILES)


def _other_ids(one: run_identity.Record | None, other: run_identity.Record | None) -> bool:
    """Whether it is known that two runs have other users or items."""
    if one is None or other is None:
        return False
    return any(one[kind].get("sha256") != other[kind].get("sha256") for kind in ("users", "items"))


def _paired(first: _Run, run: _Run, system: str, *, parts: set[str]) -> dict[str, Estimate]:
    """Differences user by user in parts of the split; none where a run lacks the system."""
    values, users = [], []
    for one in (first, run):
        if system not in one.config.recommend:
            return {}
        paths = [
            one.rundir.per_user(f"{RECOMMEND}/{system}/{seed}")
            for seed in seeds_of(one.config, system)
        ]
        if not all(path.exists() for path in paths):
            return {}
        values.append(per_user_values(one.config, system, one.rundir))
        seed = seeds_of(one.config, system)[0]
        users.append(run_records.per_user(one.rundir, f"{RECOMMEND}/{system}/{seed}"))
    found = {}
    resamples = first.config.ranking.resamples
    for metric in values[0].keys() & values[1].keys():
        part = "valid" if metric.startswith("valid") else "test"
        if part in parts and np.array_equal(users[0][f"{part}_users"], users[1][f"{part}_users"]):
            found[metric] = paired_difference(
                values[1][metric], values[0][metric], resamples=resamples
            )
    return found


def _figures_text(runs: Sequence[_Run], figures: dict[str, Any]) -> str:
    names = [run.name for run in runs]
    rows = []
    ranking = ranking_columns(figures.get(RECOMMEND, {}))
    for stage, systems in figures.items():
        for system, metrics in systems.items():
            for metric, row in metrics.items():
                # The output file has them all.
                if (stage == RECOMMEND and metric not in ranking) or stage == BIAS:
                    continue
                shown = [cell(row["runs"].get(name)) for name in names]
                differences = [_signed(row["differences"].get(name)) for name in names[1:]]
                rows.append([stage, system, metric, *shown, *differences])
    if not rows:
        return "compare: no figure that two of the runs have"
    header = ["stage", "system", "metric", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    more = "\n(further figures, those of groups of users too: --output=F.json)"
    return text_table(header, rows) + more


def _signed(estimate: Estimate | None) -> str:
    if estimate is None or not math.isfinite(estimate["value"]):
        return "-"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:+.4f}"
    return f"{estimate['value']:+.4f} [{estimate['low']:+.4f}, {estimate['high']:+.4f}]"


def _untrained(runs: Sequence[_Run]) -> Callable[[Mesh], judging.Judge] | None:
    """Makes the judge of the first run where it is one that is not trained; else None."""
    first = runs[0]
    registration = judges.find(first.config.judge.source)
    if registration is None or registration.trained:
        return None
    pairs = registration.known_pairs(pair for run in runs for pair in explanations_of(run.rundir))
    if registration.needs and not pairs:
        return None
    build = registration.build
    return lambda mesh: build(judges.Setup(first.config, first.rundir, mesh, pairs=pairs))


def _explanations(runs: Sequence[_Run], judge: judging.Judge | None) -> dict[str, Any] | None:
    contest, notes = shared_contest(
        [(run.name, comparisons.read_run(run.config, run.rundir, least=1)) for run in runs]
    )
    if contest is None:
        if is_primary():
            log(f"compare: no explanations to judge: {notes[0]}")
        return None
    first = runs[0]
    other = [run.name for run in runs[1:] if _other_ids(first.identity, run.identity)]
    if other:
        same = "equal ids are taken for the same user and item"
        notes = [*notes, f"{', '.join(other)} read other data than {first.name}; {same}"]
    split = judge_path(first.rundir) / "split.json"
    if judge is None and split.exists():
        every = len(contest.prompts)
        learned = set(run_records.learned_prompts(first.rundir))
        contest = comparisons.without_hashes(contest, learned)
        if len(contest.prompts) < every:
            notes = [
                *notes,
                f"without {every - len(contest.prompts)} prompts that the judge of "
                f"{first.name} learned from",
            ]
    contest = comparisons.draw(contest, first.config.judge.prompts, seed=first.config.seeds[0])
    untrained = None if judge is not None else _untrained(runs)
    if judge is not None:
        result = comparisons.hold(judge, contest, first.config)
    elif untrained is not None:
        with use_mesh(saved_mesh(first.config)) as mesh:
            result = comparisons.hold(untrained(mesh), contest, first.config)
    elif not is_adapter(str(judge_path(first.rundir))):
        if is_primary():
            log(
                f"compare: {first.name} has no judge; give --judge=module:function, or finish its "
                "stage 'judge'"
            )
        return None
    else:
        with use_mesh(saved_mesh(first.config)) as mesh:
            base = run_base.load_base(first.config, first.rundir, mesh)
            own = load_judge(first.config, first.rundir, base, mesh, label="compare")
            result = comparisons.hold(own, contest, first.config)
            notes = [*notes, own.asking.describe()]
    note = "; ".join([result.note, *notes])
    if is_primary():
        log(f"compare: {note}")
        log(comparisons.contest_table(result))
    matrix = judging.win_matrix(result.table, margin=first.config.judge.margin)
    return {
        "figures": result.figures,
        "matrix": {
            name: dict(zip(result.table.systems, row.tolist(), strict=True))
            for name, row in zip(result.table.systems, matrix, strict=True)
        },
        "note": note,
    }


def shared_contest(given: Sequence[tuple[str, Contest | None]]) -> tuple[Contest | None, list[str]]:
    """Explanations of several runs for the pairs of user and item that all of them explain.

    Systems are named "RUN: EXPLAINER"; one whose texts are, on all of these pairs, those of an
    earlier one is left out. The judge reads the first run's prompts.

    Args:
      given: name and explanations of each run, None where it has none.

    Returns:
      What to judge, or None; and notes on what was left out, or why there is nothing.
    """
    having = [(name, contest) for name, contest in given if contest is not None]
    if len(having) < 2:
        return None, ["fewer than two of the runs have a finished stage 'explain'"]
    places = [
        {key: at for at, key in enumerate(zip(contest.users, contest.items, strict=True))}
        for _, contest in having
    ]
    shared = [key for key in places[0] if all(key in found for found in places[1:])]
    if not shared:
        return None, ["the runs explain no common pair of user and item"]
    first = having[0][1]
    texts: dict[str, list[str | None]] = {}
    same, other_prompts = [], set()
    for (name, contest), found in zip(having, places, strict=True):
        for key in shared:
            if contest.prompts[found[key]] != first.prompts[places[0][key]]:
                other_prompts.add(key)
        for explainer, written in contest.texts.items():
            row = [written[found[key]] for key in shared]
            if row in texts.values():
                same.append(f"{name}: {explainer}")
            else:
                texts[f"{name}: {explainer}"] = row
    notes = [f"{len(shared)} pairs of user and item that all runs explain"]
    if other_prompts:
        notes.append(f"{len(other_prompts)} of them asked with other prompts than {having[0][0]}'s")
    if same:
        notes.append(f"left out, the same texts as an earlier one: {', '.join(same)}")
    if len(texts) < 2:
        return None, [f"all explanations are the same on the {len(shared)} shared pairs"]
    at = [places[0][key] for key in shared]
    contest = Contest(
        "shared pairs",
        [first.prompts[i] for i in at],
        texts,
        [first.users[i] for i in at],
        [first.items[i] for i in at],
        [""] * len(at),
    )
    return contest, notes
