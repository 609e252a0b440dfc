"""Panels of small charts, one metric each with a row per system; and tables of differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.report import wording
from xrec_jax.report.charts.rows import Row, card, interval_chart
from xrec_jax.report.html.markup import Html, join, table, tag
from xrec_jax.report.html.numbers import bounds, figure, known, p_value
from xrec_jax.report.run_files import RunFiles


def grid(charts: Iterable[Html | None], *, wide: bool = False) -> Html | None:
    """Arranges charts in as many columns as fit; None without charts."""
    kept = [chart for chart in charts if chart is not None]
    return tag("div", *kept, class_="grid wide" if wide else "grid") if kept else None


def is_pair(system: str) -> bool:
    """True if a name is of a comparison, such as `tuned vs base`."""
    return " vs " in system


def metrics_of(systems: Mapping[str, Mapping[str, Any]], group: str) -> list[str]:
    """Names of a group's metrics in order of appearance, without p-values."""
    names = [
        name
        for system, metrics in systems.items()
        if not is_pair(system)
        for name in metrics
        if name.startswith(f"{group}/") and not name.endswith(("/p", "_p"))
    ]
    return list(dict.fromkeys(names))


def panel(
    run_files: RunFiles,
    systems: Mapping[str, Mapping[str, Any]],
    name: str,
    *,
    order: Sequence[str] | None = None,
    missing: Sequence[str] = (),
) -> Html | None:
    """Chart of one metric with a row for every system that has it.

    Args:
      run_files: files of the run.
      systems: metrics of the systems of a stage.
      name: name of the metric.
      order: order of the systems; by default that of explainers.
      missing: systems expected to have the metric; those that lack it are named below.

    Returns:
      The figure; None if no system has the metric and none is expected to.
    """
    named = [s for s in systems if not is_pair(s) and measured(systems[s].get(name))]
    order = [n for n in (order or run_files.explainers(named)) if n in named]
    lacking = [s for s in missing if s not in order]
    meaning = wording.meaning(name)
    if not order:
        if not lacking:
            return None
        return card(
            meaning.label, meaning.sentence, _line("Could not be measured on any explainer.")
        )
    rows = [Row(wording.label(s), run_files.colour(s), systems[s][name]) for s in order]
    estimates = [row.estimate for row in rows]
    # Differences of shares may lie outside 0 to 1 and are then no percentages of anything.
    inside = all(0 <= x <= 1 for e in estimates for x in (e["value"], *(bounds(e) or ())))
    share = meaning.share and inside
    digits = 1 if share else 3
    more = _line(f"Nothing to measure: {wording.listed(lacking)}.") if lacking else None
    # A chart of nothing but zeros says no more than a sentence.
    if all(e["value"] == 0 and not any(bounds(e) or ()) for e in estimates):
        zero = figure(estimates[0], share=share, digits=1 if share else 0, interval=False)
        return card(
            meaning.label, meaning.sentence, _line(zero, f" for {wording.listed(order)}."), more
        )
    return interval_chart(
        rows,
        title=meaning.label,
        note=meaning.sentence,
        share=share,
        digits=digits,
        # One axis for all shares, so that charts can be compared by eye.
        axis=(0.0, 1.0) if share else None,
        more=more,
    )


def measured(estimate: Mapping[str, Any] | None) -> bool:
    """True if an estimate has a value over at least one case."""
    return known(estimate) and estimate is not None and estimate.get("count") != 0


def _line(*content: object) -> Html:
    return tag("p", *content, class_="said")


def panels(
    run_files: RunFiles,
    systems: Mapping[str, Mapping[str, Any]],
    group: str,
    *,
    main: Sequence[str] = (),
    order: Sequence[str] | None = None,
    missing: bool = False,
) -> Html | None:
    """Metrics of a group: the main ones as charts, the rest in a collapsed table.

    Args:
      run_files: files of the run.
      systems: metrics of the systems of a stage.
      group: prefix of the metrics' names.
      main: names of the main metrics without the prefix; by default all.
      order: order of the systems; by default that of explainers.
      missing: whether charts name the systems that could not be measured.
    """
    # Where none of the main metrics was measured, all of them are charts.
    every = metrics_of(systems, group)
    first = [f"{group}/{name}" for name in main if f"{group}/{name}" in every] or every
    named = [
        s
        for s, metrics in systems.items()
        if not is_pair(s) and any(name.startswith(f"{group}/") for name in metrics)
    ]
    named = [s for s in (order or run_files.explainers(named)) if s in named]
    # A system without a value is named in the chart: a missing row looks as if nobody had tried.
    expected = named if missing else ()
    if not any(known(systems[s].get(name)) for s in named for name in every):
        return None
    charts = grid(panel(run_files, systems, name, order=order, missing=expected) for name in first)
    # Folded away rather than left out: the page holds every figure of the group.
    rest = [name for name in every if name not in first]
    if not rest or charts is None:
        return charts
    rows = [
        [wording.meaning(name).label, *(_cell(systems[s].get(name)) for s in named)]
        for name in rest
    ]
    more = tag(
        "details",
        tag("summary", f"{len(rest)} more figure{'s' if len(rest) > 1 else ''}"),
        table(
            ["Figure", *map(wording.label, named)],
            rows,
            class_="numbers",
            caption=f"Further figures: {wording.humanised(group)}",
        ),
    )
    return tag("div", charts, more)


def _cell(estimate: Mapping[str, Any] | None) -> Html:
    return figure(estimate if measured(estimate) else None)


def comparisons(systems: Mapping[str, Mapping[str, Any]], *groups: str) -> Html | None:
    """Table of paired differences, such as those of `tuned vs base`, one column per comparison.

    Reads `GROUP/METRIC_difference` and the p-value of the same metric or of the group.

    Args:
      systems: metrics of the systems and comparisons of a stage.
      *groups: prefixes of the metrics to show.

    Returns:
      The table; None without differences.
    """
    # The dicts keep rows and columns in the order in which the stage wrote them.
    columns: dict[str, None] = {}
    rows: dict[str, dict[str, Html]] = {}
    strong = False
    for system, metrics in systems.items():
        if not is_pair(system):
            continue
        first, second = map(wording.label, system.split(" vs ", 1))
        column = f"{first} minus {second}"
        for name, estimate in metrics.items():
            group, _, short = name.partition("/")
            if group not in groups or not short.endswith("difference") or not known(estimate):
                continue
            # What is left is the metric; nothing for the main metric of a group.
            short = short.removesuffix("difference").rstrip("_")
            label = wording.meaning(short).label if short else wording.humanised(group)
            p = next((metrics[k] for k in _p_names(group, short) if known(metrics.get(k))), None)
            clear = p is not None and p["value"] < 0.05
            strong = strong or clear
            columns[column] = None
            rows.setdefault(label, {})[column] = _difference(estimate, p, clear)
    if not rows:
        return None
    none = tag("span", "-", class_="none")
    body = table(
        ("Difference", *columns),
        [
            [label, *(cells.get(column, none) for column in columns)]
            for label, cells in rows.items()
        ],
        caption="Paired differences",
        class_="numbers",
    )
    # The star is explained only where there is one.
    note = tag("p", tag("span", "\u2605", class_="star"), " p < 0.05", class_="note")
    return tag("div", body, note if strong else None)


def _p_names(group: str, short: str) -> list[str]:
    """Names under which the p-value of a difference may be stored.

    The main metric of a group has only `GROUP/p`, that of readouts `GROUP/readout_p`.
    """
    start = "readout_" if short.startswith("readout_") else ""
    main = short.removeprefix(start) in ("", "f1", "accuracy")
    return [f"{group}/{short}_p", *([f"{group}/{start}p"] if main else [])]


def _difference(estimate: Mapping[str, Any], p: Mapping[str, Any] | None, clear: bool) -> Html:
    """A difference with its interval, and the result of its test below."""
    tested = [p_value(p["value"])] if p is not None else []
    if estimate.get("count"):
        tested.append(f"{estimate['count']:,} case{'' if estimate['count'] == 1 else 's'}")
    star = tag("span", "\u2605 ", class_="star", role="img", aria_label="p below 0.05")
    return join(
        [
            star if clear else None,
            figure(estimate),
            tag("span", ", ".join(tested), class_="interval") if tested else None,
        ]
    )
