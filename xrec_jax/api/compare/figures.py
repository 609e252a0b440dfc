"""Figures of several runs side by side, with their differences from the first run."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from xrec_jax.api.compare.runs import ComparedRun, comparable_splits
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.evaluation.statistics.intervals import Estimate, paired_difference
from xrec_jax.evaluation.tables import cell, ranking_columns, text_table
from xrec_jax.inference import run_records
from xrec_jax.inference.run_records import per_user_values
from xrec_jax.stages.assess import BIAS
from xrec_jax.training.recommender import STAGE as RECOMMEND
from xrec_jax.training.recommender import seeds_of


def compare_figures(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Figures that at least two of the runs have.

    Returns:
      `[stage][system][metric]` = {"runs": {name: Estimate}, "differences": {name: Estimate or
      None}}; differences are from the first run, None where they cannot be paired.
    """
    evaluations = [run.rundir.evaluation() for run in runs]
    table: dict[str, Any] = {}
    for stage, system, metric in _keys(evaluations):
        by_run = {
            run.name: evaluation[stage][system][metric]
            for run, evaluation in zip(runs, evaluations, strict=True)
            if metric in evaluation.get(stage, {}).get(system, {})
        }
        if len(by_run) < 2:
            continue
        # None until it is paired below, so that an unpaired difference is shown as such.
        row = {
            "runs": by_run,
            "differences": {name: None for name in by_run if name != runs[0].name},
        }
        table.setdefault(stage, {}).setdefault(system, {})[metric] = row
    # Only ranking has values for each user, so only its figures are paired.
    if RECOMMEND in table:
        _add_differences(runs, table[RECOMMEND])
    return table


def _keys(evaluations: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Stage, system and metric of every figure of any run, in the order of the first to have it."""
    return list(
        dict.fromkeys(
            (stage, system, metric)
            for evaluation in evaluations
            for stage, systems in evaluation.items()
            for system, metrics in systems.items()
            for metric in metrics
        )
    )


def _add_differences(runs: Sequence[ComparedRun], systems: dict[str, Any]) -> None:
    """Adds paired differences from the first run, where the same users and items were tested."""
    first, *others = runs
    for run in others:
        splits = comparable_splits(first, run)
        if "test" not in splits and is_primary():
            log(f"compare: {run.name} and {first.name} tested other users or items; not paired")
        for system, rows in systems.items():
            for metric, difference in _paired(first, run, system, splits=splits).items():
                if metric in rows and run.name in rows[metric]["differences"]:
                    rows[metric]["differences"][run.name] = difference


def _paired(
    first: ComparedRun, other: ComparedRun, system: str, *, splits: Set[str]
) -> dict[str, Estimate]:
    """Differences of a system's metrics, user by user, means over its seeds.

    Args:
      first: the run that is subtracted.
      other: the run that it is subtracted from.
      system: the recommender.
      splits: in which both hold out the same users and items.

    Returns:
      By metric; empty where one of the runs lacks the system or its values for each user.
    """
    values, users = [], []
    for run in (first, other):
        if system not in run.config.recommend:
            return {}
        seeds = seeds_of(run.config, system)
        records = [f"{RECOMMEND}/{system}/{seed}" for seed in seeds]
        if not all(run.rundir.per_user(record).exists() for record in records):
            return {}
        values.append(per_user_values(run.config, system, run.rundir))
        # All seeds were tested on the same users (`stacked` checks it), so one of them will do.
        users.append(run_records.per_user(run.rundir, records[0]))
    differences = {}
    resamples = first.config.ranking.resamples
    # A set has no order, but each difference goes to a row that exists already.
    for metric in values[0].keys() & values[1].keys():
        split = "valid" if metric.startswith("valid") else "test"
        # Equal splits may still be evaluated on other users, such as those with enough history.
        same_users = np.array_equal(users[0][f"{split}_users"], users[1][f"{split}_users"])
        if split in splits and same_users:
            differences[metric] = paired_difference(
                values[1][metric],
                values[0][metric],
                users=users[0][f"{split}_users"],
                resamples=resamples,
            )
    return differences


def figures_text(runs: Sequence[ComparedRun], figures: dict[str, Any]) -> str:
    """The figures as a table for the terminal, without those of groups of users."""
    names = [run.name for run in runs]
    rows = []
    ranking = ranking_columns(figures.get(RECOMMEND, {}))
    for stage, systems in figures.items():
        for system, metrics in systems.items():
            for metric, row in metrics.items():
                # The JSON file has all of them.
                if (stage == RECOMMEND and metric not in ranking) or stage == BIAS:
                    continue
                cells = [cell(row["runs"].get(name)) for name in names]
                differences = [_signed(row["differences"].get(name)) for name in names[1:]]
                rows.append([stage, system, metric, *cells, *differences])
    if not rows:
        return "compare: no figure that two of the runs have"
    header = ["stage", "system", "metric", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    more = "\n(further figures, those of groups of users too: --output=F.json)"
    return text_table(header, rows) + more


def _signed(estimate: Estimate | None) -> str:
    """A difference with its sign and interval."""
    if estimate is None or not math.isfinite(estimate["value"]):
        return "-"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:+.4f}"
    return f"{estimate['value']:+.4f} [{estimate['low']:+.4f}, {estimate['high']:+.4f}]"
