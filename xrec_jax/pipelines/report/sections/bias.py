"""Differences between groups of users, as a forest plot of effect sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.pipelines.report import wording
from xrec_jax.pipelines.report.markup import Html, join, tag
from xrec_jax.pipelines.report.material import Material, Section
from xrec_jax.pipelines.report.numbers import known
from xrec_jax.pipelines.report.rows import Row, domain, interval_chart
from xrec_jax.pipelines.report.sections.panels import grid, is_pair

ID, TITLE = "bias", "Bias between groups"
HOW = "Add the stage assess to config.stages; assess.groups names columns of the user table."
LEVEL = 0.05


def effects(metrics: Mapping[str, Any]) -> dict[str, tuple[Any, float | None]]:
    """`GROUP/METRIC` to effect size and Holm-adjusted p-value; without what belongs to another."""
    found: dict[str, tuple[Any, float | None]] = {}
    for key, estimate in metrics.items():
        of_another = any(
            key.endswith(end) and key.removesuffix(end) in metrics for end in ("_p", "_difference")
        )
        if known(estimate) and "/" in key and not of_another:
            p = metrics.get(f"{key}_p")
            found[key] = (estimate, float(p["value"]) if p is not None and known(p) else None)
    return found


def build(material: Material) -> Section | None:
    """None before the stage `assess` has compared groups."""
    systems = {s: effects(m) for s, m in material.stage("bias").items()}
    systems = {s: found for s, found in systems.items() if found}
    if not systems:
        return None
    every = [estimate for found in systems.values() for estimate, _ in found.values()]
    low, high = domain(every)
    limit = max(abs(low), abs(high), 0.3)
    charts = [
        _forest(material, name, systems[name], (-limit, limit))
        for name in sorted(material.explainers(systems), key=is_pair)
    ]
    strong = sum(p is not None and p < LEVEL for found in systems.values()
                 for _, p in found.values())  # fmt: skip
    tested = sum(len(found) for found in systems.values())
    lead = join([
        "Hedges g: the difference of two groups' means in standard deviations; 0.2 is small, 0.5 "
        "medium. ",
        tag("span", "\u2605", class_="star", aria_hidden="true"),
        f" marks what remains at p < {LEVEL:g} after Holm's correction for many tests: {strong} of "
        f"{tested}.",
    ])  # fmt: skip
    return Section(ID, TITLE, lead, tag("div", grid(charts, wide=True)))


def _forest(
    material: Material,
    name: str,
    found: Mapping[str, tuple[Any, float | None]],
    axis: tuple[float, float],
) -> Html | None:
    groups: dict[str, list[Row]] = {}
    for key, (estimate, p) in found.items():
        group, _, what = key.partition("/")
        strong = p is not None and p < LEVEL
        mark = None
        if strong:
            mark = tag("span", " \u2605", class_="star", role="img",
                       aria_label="significant after correction")  # fmt: skip
        colour = f"{material.colour(name)}{'' if strong else ' faint'}"
        groups.setdefault(group, []).append(Row(wording.humanised(what), colour, estimate, mark))
    rows: list[Row | str] = []
    for group, of in groups.items():
        rows += [_heading(group), *of]
    title, note = wording.humanised(wording.label(name)), None
    if is_pair(name):
        first, second = name.split(" vs ", 1)
        title, note = f"Change from {second} to {first}", "Does the gap widen? Of the same pairs."
    return interval_chart(
        rows, title=title, note=note, bars=False, digits=2, axis=axis,
        reference=0.0, reference_label="no difference",
    )  # fmt: skip


def _heading(group: str) -> str:
    """Such as `Age: 18-24 against all others` for `age=18-24`."""
    column, _, value = group.partition("=")
    return f"{wording.humanised(column)}{f': {value} against all others' if value else ''}"
