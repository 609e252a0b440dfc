"""Small charts side by side: one metric each, a row a system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.report import wording
from xrec_jax.report.charts.rows import Row, card, interval_chart
from xrec_jax.report.html.markup import Html, join, table, tag
from xrec_jax.report.html.numbers import bounds, figure, known, p_value
from xrec_jax.report.run_files import Material


def grid(charts: Iterable[Html | None], *, wide: bool = False) -> Html | None:
    """Charts in as many columns as there is room for; None if there is none."""
    kept = [chart for chart in charts if chart is not None]
    return tag("div", *kept, class_="grid wide" if wide else "grid") if kept else None


def is_pair(system: str) -> bool:
    """Whether a system's name is a comparison, such as `tuned vs base`."""
    return " vs " in system


def metrics_of(systems: Mapping[str, Mapping[str, Any]], group: str) -> list[str]:
    """Names of a group's metrics, in the order they are met; without p-values."""
    found = [
        name
        for system, metrics in systems.items()
        if not is_pair(system)
        for name in metrics
        if name.startswith(f"{group}/") and not name.endswith(("/p", "_p"))
    ]
    return list(dict.fromkeys(found))


def panel(
    material: Material,
    systems: Mapping[str, Mapping[str, Any]],
    name: str,
    *,
    order: Sequence[str] | None = None,
    missing: Sequence[str] = (),
) -> Html | None:
    """One metric of every system that has it.

    Args:
      material: of the page.
      systems: of a stage.
      name: of the metric.
      order: of the systems; by default explainers as everywhere.
      missing: systems that should have it; those that do not are named below.
    """
    named = [s for s in systems if not is_pair(s) and measured(systems[s].get(name))]
    order = [n for n in (order or material.explainers(named)) if n in named]
    lacking = [s for s in missing if s not in order]
    what = wording.meaning(name)
    if not order:
        if not lacking:
            return None
        return card(what.label, what.sentence, _line("Could not be measured on any explainer."))
    rows = [Row(wording.label(s), material.colour(s), systems[s][name]) for s in order]
    estimates = [row.estimate for row in rows]
    inside = all(0 <= x <= 1 for e in estimates for x in (e["value"], *(bounds(e) or ())))
    share = what.share and inside
    digits = 1 if share else 3
    more = _line(f"Nothing to measure: {wording.listed(lacking)}.") if lacking else None
    if all(e["value"] == 0 and not any(bounds(e) or ()) for e in estimates):
        zero = figure(estimates[0], share=share, digits=1 if share else 0, interval=False)
        return card(what.label, what.sentence, _line(zero, f" for {wording.listed(order)}."), more)
    return interval_chart(
        rows,
        title=what.label,
        note=what.sentence,
        share=share,
        digits=digits,
        axis=(0.0, 1.0) if share else None,
        more=more,
    )


def measured(estimate: Mapping[str, Any] | None) -> bool:
    """Whether there is a value, and of at least one case: a share of nothing is none."""
    return known(estimate) and estimate is not None and estimate.get("count") != 0


def _line(*said: object) -> Html:
    return tag("p", *said, class_="said")


def panels(
    material: Material,
    systems: Mapping[str, Mapping[str, Any]],
    group: str,
    *,
    main: Sequence[str] = (),
    order: Sequence[str] | None = None,
    missing: bool = False,
) -> Html | None:
    """Metrics of a group: the main ones as charts, the rest in a table that opens.

    Args:
      material: of the page.
      systems: of a stage.
      group: before the metric's name.
      main: names without the group; by default all.
      order: of the systems; by default explainers as everywhere.
      missing: whether a chart names the systems that could not be measured.
    """
    every = metrics_of(systems, group)
    first = [f"{group}/{name}" for name in main if f"{group}/{name}" in every] or every
    named = [
        s
        for s, metrics in systems.items()
        if not is_pair(s) and any(name.startswith(f"{group}/") for name in metrics)
    ]
    named = [s for s in (order or material.explainers(named)) if s in named]
    asked = named if missing else ()
    if not any(known(systems[s].get(name)) for s in named for name in every):
        return None
    charts = grid(panel(material, systems, name, order=order, missing=asked) for name in first)
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
    """A table of paired differences, such as those of `tuned vs base`, a column a comparison.

    Reads `GROUP/METRIC_difference` and the p-value of the same metric or of the group.
    """
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
            short = short.removesuffix("difference").rstrip("_")
            what = wording.meaning(short).label if short else wording.humanised(group)
            p = next((metrics[k] for k in _p_names(group, short) if known(metrics.get(k))), None)
            clear = p is not None and p["value"] < 0.05
            strong = strong or clear
            columns[column] = None
            rows.setdefault(what, {})[column] = _difference(estimate, p, clear)
    if not rows:
        return None
    none = tag("span", "-", class_="none")
    made = table(
        ("Difference", *columns),
        [[what, *(cells.get(column, none) for column in columns)] for what, cells in rows.items()],
        caption="Paired differences",
        class_="numbers",
    )
    note = tag("p", tag("span", "\u2605", class_="star"), " p < 0.05", class_="note")
    return tag("div", made, note if strong else None)


def _p_names(group: str, short: str) -> list[str]:
    """Where the p-value of a difference stands: by its metric's name, or shorter for the main one.

    The main metric of a group has none but `GROUP/p`, that of readouts `GROUP/readout_p`.
    """
    start = "readout_" if short.startswith("readout_") else ""
    main = short.removeprefix(start) in ("", "f1", "accuracy")
    return [f"{group}/{short}_p", *([f"{group}/{start}p"] if main else [])]


def _difference(estimate: Mapping[str, Any], p: Mapping[str, Any] | None, clear: bool) -> Html:
    """A difference, its interval, and below them what the test says."""
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
