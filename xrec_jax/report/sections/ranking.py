"""Ranking metrics with intervals, paired differences and the upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.ranking.metrics import main_cutoff
from xrec_jax.evaluation.statistics.intervals import Estimate, paired_difference
from xrec_jax.inference import run_records
from xrec_jax.report import wording
from xrec_jax.report.charts.panels import grid
from xrec_jax.report.charts.rows import Row, interval_chart
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known, metric
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "ranking", "Ranking"
HOW = "Add the stage recommend to config.stages."
BOUND = "upper_bound"
# What a column of figures is of, where it is not all test events with seen items masked.
_GROUPS = {
    "test_unmasked": ", seen items kept",
    "test_repeat": ", repeats",
    "test_new": ", new items",
    "test_cold": ", cold items",
}


def cutoff(run_files: RunFiles) -> int:
    """Cut-off of the main metric: 10 if the run has it, otherwise the middle one."""
    return main_cutoff(run_files.config.get("ranking", {}).get("ks") or ())


def main_metric(run_files: RunFiles) -> str:
    """Name of the main metric, such as `test/ndcg@10`."""
    return f"test/ndcg@{cutoff(run_files)}"


def ranked(systems: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Systems without the upper bound, best first."""
    names = [s for s in systems if s != BOUND and known(systems[s].get(name))]
    return sorted(names, key=lambda s: -systems[s][name]["value"])


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None before the stage `recommend` is done."""
    systems = run_files.stage("recommend")
    main, k = main_metric(run_files), cutoff(run_files)
    order = ranked(systems, main)
    if not order:
        return None
    bound = metric(systems, BOUND, main)
    users = systems[order[0]][main]["count"]
    lead = _lead(run_files.config.get("ranking", {}), users)
    # All systems on one axis with the bound, so that the gap that is left can be seen.
    top = interval_chart(
        [Row(wording.label(s), run_files.colour(s), systems[s][main]) for s in order],
        title=f"{wording.ranking(main)}, test",
        digits=4,
        note="Near the top of the list counts more; 1 would put the held-out item first for all.",
        reference=bound["value"] if known(bound) else None,
        reference_label=""
        if not known(bound)
        else (f"upper bound {bound['value']:.4f}: the planted world's own order"),
    )
    # Beside the main metric, others at its cut-off, and recall at the largest one.
    against = _against_best(run_files, order, main)
    names = [f"test/{kind}@{k}" for kind in ("ndcg", "hit", "mrr")]
    ks = sorted(run_files.config.get("ranking", {}).get("ks") or ())
    if ks and ks[-1] != k:
        names.append(f"test/recall@{ks[-1]}")
    # Libraries that leave seen items in the ranking can be compared by this column alone.
    unmasked = f"test_unmasked/ndcg@{k}"
    names += [f"test_{kind}/ndcg@{k}" for kind in ("repeat", "new", "cold")]
    names = [name for name in names if any(name in systems[s] for s in order)]
    columns = [*names, *([unmasked] if any(unmasked in systems[s] for s in order) else [])]
    header = ["System"] + [wording.ranking(c) + _GROUPS.get(c.split("/")[0], "") for c in columns]
    rows = [
        [wording.label(s), *(figure(systems[s].get(c), digits=4) for c in columns)]
        for s in [*order, *([BOUND] if BOUND in systems else [])]
    ]
    body = tag(
        "div",
        grid([top, against], wide=True),
        table(
            header,
            rows,
            caption="Ranking metrics of every system on the test events",
            class_="numbers",
        ),
        _everything(systems, order),
    )
    return Section(ID, TITLE, lead, body)


def _lead(protocol: Mapping[str, Any], users: int) -> str:
    """What was ranked, and against what; see `evaluation.ranking.protocol`."""
    ranked_events = {
        "event": f"Every held-out event of {users:,} users is ranked by itself, from all that the "
        "user did before it",
        "first_event": f"The first held-out event of each of {users:,} users is ranked",
    }
    what = ranked_events.get(
        protocol.get("rows", "user"), f"Each of {users:,} users has events held out"
    )
    candidates = (
        "every item of the catalogue that the user has not seen is a candidate"
        if protocol.get("mask_seen", True)
        else "every item of the catalogue is a candidate, those that the user knows included"
    )
    return f"{what}; {candidates}. Intervals are 95\u00a0%, drawn over users and seeds."


def _everything(systems: Mapping[str, Mapping[str, Any]], order: list[str]) -> Html:
    names = list(dict.fromkeys(name for s in order for name in systems[s]))
    rows = [[name, *(figure(systems[s].get(name), digits=4) for s in order)] for name in names]
    return tag(
        "details",
        tag("summary", "Every metric, validation too"),
        table(
            ["Metric", *map(wording.label, order)],
            rows,
            caption="All ranking metrics",
            class_="numbers",
        ),
    )


def _against_best(run_files: RunFiles, order: list[str], main: str) -> Html | None:
    """Chart of paired differences to the best system, from per-user values."""
    best, *others = order
    own, users = _per_user(run_files, best, main)
    if own is None:
        return None
    resamples = int(run_files.config.get("ranking", {}).get("resamples", 1000))
    rows = []
    for name in others:
        values, _ = _per_user(run_files, name, main)
        # Differences are paired, so both systems need values of the same users.
        if values is None or values.shape[1] != own.shape[1]:
            continue
        estimate: Estimate = paired_difference(values, own, users=users, resamples=resamples)
        rows.append(Row(wording.label(name), run_files.colour(name), estimate))
    if not rows:
        return None
    return interval_chart(
        rows,
        title=f"Difference to {wording.label(best)}",
        digits=4,
        bars=False,
        reference=0.0,
        note="Paired over users, seeds averaged: an interval that does not reach zero is more than "
        "chance among users.",
        reference_label=wording.label(best),
    )


def _per_user(
    run_files: RunFiles, system: str, name: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Values `[seeds, rows]` of a metric and the users of the rows; None if not saved."""
    runs, users = [], None
    for seed in run_files.config.get("seeds", ()):
        path = run_files.rundir.per_user(f"recommend/{system}/{seed}")
        # A run may have been started with further seeds that are not done yet.
        if not path.exists():
            continue
        arrays = run_records.per_user(run_files.rundir, f"recommend/{system}/{seed}")
        if name not in arrays:
            return None, None
        runs.append(arrays[name])
        users = arrays["test_users"]
    # Seeds are averaged user by user, which needs the same users in all of them.
    if len({len(values) for values in runs}) > 1:
        folder = run_files.rundir.per_user(f"recommend/{system}").with_suffix("")
        raise UserError(f"{folder}: its seeds were tested on different numbers of users")
    return (np.stack(runs) if runs else None), users
