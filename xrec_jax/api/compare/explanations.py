"""Explanations of several runs, compared by a judge on the pairs that all of them explain."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from xrec_jax.api.compare.runs import ComparedRun, known_to_differ
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.evaluation import judging
from xrec_jax.inference import comparisons, judges, run_records
from xrec_jax.inference.comparisons import ComparisonSet
from xrec_jax.inference.judges import explanations_of, judge_path, load_judge
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import is_adapter
from xrec_jax.parallel.mesh import saved_mesh, use_mesh


def compare_explanations(
    runs: Sequence[ComparedRun], judge: judging.Judge | None
) -> dict[str, Any] | None:
    """Judges the explanations of several runs against each other, in both orders.

    Args:
      runs: the first one's config decides how many pairs are judged.
      judge: a judge; None for the one of the first run.

    Returns:
      `figures` as in `evaluation.json`, `matrix` (points of each system over each) and `note`;
      None where there is nothing to judge or nobody to judge it.
    """
    comparison_set, notes = shared_pairs(
        [(run.name, comparisons.read_run(run.config, run.rundir, least=1)) for run in runs]
    )
    if comparison_set is None:
        if is_primary():
            log(f"compare: no explanations to judge: {notes[0]}")
        return None
    first = runs[0]
    differing = [run.name for run in runs[1:] if known_to_differ(first, run)]
    if differing:
        same = "equal ids are taken for the same user and item"
        notes = [*notes, f"{', '.join(differing)} read other data than {first.name}; {same}"]

    # A judge must not compare texts on prompts that it was trained on.
    if judge is None and (judge_path(first.rundir) / "split.json").exists():
        before = len(comparison_set.prompts)
        learned = set(run_records.learned_prompts(first.rundir))
        comparison_set = comparisons.without_hashes(comparison_set, learned)
        left_out = before - len(comparison_set.prompts)
        if left_out:
            notes = [
                *notes,
                f"without {left_out} prompts that the judge of {first.name} learned from",
            ]
    # Drawn after the exclusion, so that as many remain as the config says, if there are.
    comparison_set = comparisons.draw(
        comparison_set, first.config.judge.prompts, seed=first.config.seeds[0]
    )

    # The judge that was given, or the first run's: one that is not trained, or its adapter
    untrained = None if judge is not None else _untrained(runs)
    if judge is not None:
        result = comparisons.compare(judge, comparison_set, first.config)
    elif untrained is not None:
        with use_mesh(saved_mesh(first.config)) as mesh:
            result = comparisons.compare(untrained(mesh), comparison_set, first.config)
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
            result = comparisons.compare(own, comparison_set, first.config)
            notes = [*notes, own.judge_prompts.describe()]

    note = "; ".join([result.note, *notes])
    if is_primary():
        log(f"compare: {note}")
        log(comparisons.comparison_table(result))
    matrix = judging.win_matrix(result.table, margin=first.config.judge.margin)
    return {
        "figures": result.figures,
        "matrix": {
            name: dict(zip(result.table.systems, row.tolist(), strict=True))
            for name, row in zip(result.table.systems, matrix, strict=True)
        },
        "note": note,
    }


def _untrained(runs: Sequence[ComparedRun]) -> Callable[[Mesh], judging.Judge] | None:
    """Builder of the first run's judge, from pairs of all runs; None if that judge is trained.

    Also None where the judge needs something known of pairs, and no run has such pairs.
    """
    first = runs[0]
    registration = judges.find(first.config.judge.source)
    if registration is None or registration.trained:
        return None
    # Of all runs: the reasons of a pair may be recorded in another run than the first.
    pairs = registration.known_pairs(pair for run in runs for pair in explanations_of(run.rundir))
    if registration.needs and not pairs:
        return None
    build = registration.build
    return lambda mesh: build(judges.Setup(first.config, first.rundir, mesh, pairs=pairs))


def shared_pairs(
    explanations: Sequence[tuple[str, ComparisonSet | None]],
) -> tuple[ComparisonSet | None, list[str]]:
    """Explanations of several runs for the pairs of user and item that all of them explain.

    Systems are named "RUN: EXPLAINER"; one whose texts are, on all of these pairs, those of an
    earlier one is left out. The judge reads the first run's prompts.

    Args:
      explanations: name and explanations of each run, None where it has none.

    Returns:
      What to judge, or None; and notes on what was left out, or why there is nothing.
    """
    named = [
        (name, comparison_set)
        for name, comparison_set in explanations
        if comparison_set is not None
    ]
    if len(named) < 2:
        return None, ["fewer than two of the runs have a finished stage 'explain'"]

    # Pairs that all runs explain, in the first run's order, and their rows in each run
    rows_of = [
        {
            pair: row
            for row, pair in enumerate(zip(comparison_set.users, comparison_set.items, strict=True))
        }
        for _, comparison_set in named
    ]
    shared = [pair for pair in rows_of[0] if all(pair in rows for rows in rows_of[1:])]
    if not shared:
        return None, ["the runs explain no common pair of user and item"]

    # Every explainer's texts on these pairs, without those that only repeat another's
    first_name, first = named[0]
    texts: dict[str, list[str | None]] = {}
    repeated, other_prompts = [], set()
    for (name, comparison_set), rows in zip(named, rows_of, strict=True):
        for pair in shared:
            if comparison_set.prompts[rows[pair]] != first.prompts[rows_of[0][pair]]:
                other_prompts.add(pair)
        for explainer, written in comparison_set.texts.items():
            on_shared = [written[rows[pair]] for pair in shared]
            if on_shared in texts.values():
                repeated.append(f"{name}: {explainer}")
            else:
                texts[f"{name}: {explainer}"] = on_shared
    notes = [f"{len(shared)} pairs of user and item that all runs explain"]
    if other_prompts:
        notes.append(f"{len(other_prompts)} of them asked with other prompts than {first_name}'s")
    if repeated:
        notes.append(f"left out, the same texts as an earlier one: {', '.join(repeated)}")
    if len(texts) < 2:
        return None, [f"all explanations are the same on the {len(shared)} shared pairs"]

    kept = [rows_of[0][pair] for pair in shared]
    comparison_set = ComparisonSet(
        "shared pairs",
        [first.prompts[row] for row in kept],
        texts,
        [first.users[row] for row in kept],
        [first.items[row] for row in kept],
        [""] * len(kept),
    )
    return comparison_set, notes


def import_judge(name: str) -> judging.Judge:
    """Imports a user's judge.

    Args:
      name: "module:function".

    Returns:
      The function; what it raises becomes a `UserError`.

    Raises:
      UserError: if the module cannot be imported or has no such function.
    """
    module_name, separator, function_name = name.partition(":")
    if not separator or not module_name or not function_name:
        raise UserError(f"--judge={name!r} must be module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"--judge: cannot import {module_name!r} ({error}); is its folder in PYTHONPATH?"
        ) from error
    except Exception as error:  # whatever the user's module does while it is imported
        raise UserError(f"--judge: cannot import {module_name!r} ({_described(error)})") from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if key[0] != "_" and callable(value)]
        hint = did_you_mean(function_name, public)
        raise UserError(f"--judge: {module_name} has no function {function_name!r}{hint}")
    called = function

    def judge(*texts: Sequence[str]) -> np.ndarray:
        try:
            return np.asarray(called(*texts), np.float64)
        except UserError:
            raise
        except Exception as error:  # the user's own code
            raise UserError(f"--judge={name} failed: {_described(error)}") from error

    return judge


def _described(error: Exception) -> str:
    """Type and message of an exception, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
