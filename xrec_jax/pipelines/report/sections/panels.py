"""Small charts side by side: one metric each, a row a system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.pipelines.report import wording
from xrec_jax.pipelines.report.markup import Html, table, tag
from xrec_jax.pipelines.report.material import Material
from xrec_jax.pipelines.report.numbers import bounds, figure, known, p_value
from xrec_jax.pipelines.report.rows import Row, interval_chart


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
    material: Material, systems: Mapping[str, Mapping[str, Any]], name: str, *,
    order: Sequence[str] | None = None, title: str = "", reference: float | None = None,
    reference_label: str = "",
) -> Html | None:  # fmt: skip
    """One metric of every system that has it."""
    named = [s for s in systems if not is_pair(s) and known(systems[s].get(name))]
    order = [n for n in (order or material.explainers(named)) if n in named]
    rows = [Row(wording.label(s), material.colour(s), systems[s][name]) for s in order]
    if not rows:
        return None
    what = wording.meaning(name)
    estimates = [row.estimate for row in rows]
    inside = all(0 <= x <= 1 for e in estimates for x in (e["value"], *(bounds(e) or ())))
    share = what.share and inside
    return interval_chart(
        rows, title=title or what.label, note=what.sentence, share=share,
        digits=1 if share else 3, axis=(0.0, 1.0) if share else None,
        reference=reference, reference_label=reference_label,
    )  # fmt: skip


def panels(
    material: Material, systems: Mapping[str, Mapping[str, Any]], group: str, *,
    main: Sequence[str] = (), order: Sequence[str] | None = None,
) -> Html | None:  # fmt: skip
    """Metrics of a group: the main ones as charts, the rest in a table that opens.

    Args:
      material: of the page.
      systems: of a stage.
      group: before the metric's name.
      main: names without the group; by default all.
      order: of the systems; by default explainers as everywhere.
    """
    every = metrics_of(systems, group)
    first = [f"{group}/{name}" for name in main if f"{group}/{name}" in every] or every
    charts = grid(panel(material, systems, name, order=order) for name in first)
    rest = [name for name in every if name not in first]
    if not rest or charts is None:
        return charts
    named = [s for s in systems if not is_pair(s)]
    named = [s for s in (order or material.explainers(named)) if s in named]
    rows = [
        [wording.meaning(name).label, *(figure(systems[s].get(name)) for s in named)]
        for name in rest
    ]
    more = tag(
        "details",
        tag("summary", f"{len(rest)} more figure{'s' if len(rest) > 1 else ''}"),
        table(["Figure", *map(wording.label, named)], rows, class_="numbers",
              caption=f"Further figures: {group}"),
    )  # fmt: skip
    return tag("div", charts, more)


def comparisons(systems: Mapping[str, Mapping[str, Any]], *groups: str) -> Html | None:
    """Sentences on paired differences, such as those of `tuned vs base`.

    Reads `GROUP/METRIC_difference` and the p-value of the same metric or of the group.
    """
    said = []
    for system, metrics in systems.items():
        if not is_pair(system):
            continue
        first, second = system.split(" vs ", 1)
        for name, estimate in metrics.items():
            group, _, short = name.partition("/")
            if group not in groups or not short.endswith("difference") or not known(estimate):
                continue
            short = short.removesuffix("difference").rstrip("_")
            p = next(
                (metrics[k] for k in (f"{group}/{short}_p", f"{group}/p") if known(metrics.get(k))),
                None,
            )
            what = wording.meaning(short).label if short else wording.humanised(group)
            parts = [
                f"{what}: {wording.label(first)} minus {wording.label(second)} ",
                figure(estimate),
                f", {p_value(p['value'])}" if p else "",
                f", {estimate['count']:,} cases" if estimate.get("count") else "",
            ]
            strong = bool(p and p["value"] < 0.05)
            said.append(tag("li", *parts, class_="strong" if strong else None))
    if not said:
        return None
    note = tag("p", tag("span", "\u2605", class_="star"), " p < 0.05", class_="note")
    return tag("div", tag("ul", *said, class_="comparisons"), note)
