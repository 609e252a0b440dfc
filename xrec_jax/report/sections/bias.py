"""Differences between groups of users, as a forest plot of effect sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.report import wording
from xrec_jax.report.charts.panels import grid, is_pair
from xrec_jax.report.charts.rows import Row, card, domain, interval_chart, interval_list
from xrec_jax.report.html.markup import Html, join, tag
from xrec_jax.report.html.numbers import bounds, known
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "bias", "Bias between groups"
HOW = "Add the stage assess to config.stages; assess.groups names columns of the user table."
LEVEL = 0.05
LARGEST = 6  # differences of a chart that are shown even if not significant


def effects(metrics: Mapping[str, Any]) -> dict[str, tuple[Any, float | None]]:
    """Effect size and Holm-adjusted p-value of each `GROUP/METRIC`."""
    result: dict[str, tuple[Any, float | None]] = {}
    apart = without_spread(metrics)
    # Keys such as `GROUP/METRIC_p` belong to an effect and are none themselves.
    for key, estimate in metrics.items():
        of_another = any(
            key.endswith(end) and (base in metrics or base in apart)
            for end in ("_p", "_difference")
            if (base := key.removesuffix(end))
        )
        if known(estimate) and "/" in key and not of_another:
            p = metrics.get(f"{key}_p")
            result[key] = (estimate, float(p["value"]) if p is not None and known(p) else None)
    return result


def without_spread(metrics: Mapping[str, Any]) -> list[str]:
    """Each `GROUP/METRIC` whose groups differ without varying, so that only `_p` exists, no g."""
    bases = [key.removesuffix("_difference") for key in metrics if key.endswith("_difference")]
    return [base for base in bases if base not in metrics and f"{base}_p" in metrics]


def varies(estimate: Mapping[str, Any]) -> bool:
    """False if all values of both groups are equal."""
    return not (estimate["value"] == 0 and bounds(estimate) in (None, (0.0, 0.0)))


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None before the stage `assess` has compared groups."""
    systems = {s: effects(m) for s, m in run_files.stage("bias").items()}
    systems = {s: effects_of for s, effects_of in systems.items() if effects_of}
    if not systems:
        return None
    # All charts share one symmetric axis, so that they can be compared.
    every = [estimate for effects_of in systems.values() for estimate, _ in effects_of.values()]
    low, high = domain(every)
    # At least 0.3, or tiny differences would fill the chart and look large.
    limit = max(abs(low), abs(high), 0.3)
    charts = [
        _forest(run_files, name, systems[name], (-limit, limit))
        for name in sorted(run_files.explainers(systems), key=is_pair)
    ]
    apart = sum(len(without_spread(m)) for m in run_files.stage("bias").values())
    strong = sum(_stands(p) for effects_of in systems.values() for _, p in effects_of.values())
    tested = sum(len(effects_of) for effects_of in systems.values())
    lead = join(
        [
            "Hedges g: the difference of two groups' means in standard deviations; 0.2 is small, "
            "0.5 medium. A group stands against all others. ",
            tag("span", "\u2605", class_="star", aria_hidden="true"),
            f" marks what remains at p < {LEVEL:g} after Holm's correction for many tests: "
            f"{strong} of {tested}. Shown are those and the {LARGEST} largest of each chart.",
            f" Not drawn: {apart} where groups differ and do not vary, so that there is no g; "
            "evaluation.json has their difference and p."
            if apart
            else "",
        ]
    )
    return Section(ID, TITLE, lead, tag("div", grid(charts, wide=True)))


def _stands(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _forest(
    run_files: RunFiles,
    name: str,
    all_effects: Mapping[str, tuple[Any, float | None]],
    axis: tuple[float, float],
) -> Html | None:
    """Forest plot of significant and large effects, with the others in a collapsed list."""
    drawn = {key: effect for key, effect in all_effects.items() if varies(effect[0])}
    # By size alone: a group may be treated worse or better.
    order = sorted(drawn, key=lambda key: -abs(drawn[key][0]["value"]))
    shown = [k for n, k in enumerate(order) if n < LARGEST or _stands(drawn[k][1])]
    colour = run_files.colour(name)
    more = tag(
        "div", _rest(drawn, set(order) - set(shown), colour, axis), _same(all_effects, drawn)
    )
    title, note = wording.humanised(wording.label(name)), None
    if is_pair(name):
        first, second = map(wording.label, name.split(" vs ", 1))
        title, note = f"Change from {second} to {first}", "Does the gap widen? Of the same pairs."
    if not shown:
        return card(title, note, more)
    return interval_chart(
        [_row(key, drawn[key], colour, group=True) for key in shown],
        title=title,
        note=note,
        bars=False,
        digits=2,
        axis=axis,
        reference=0.0,
        reference_label="no difference",
        more=more,
    )


def _rest(
    drawn: Mapping[str, tuple[Any, float | None]],
    kept: set[str],
    colour: str,
    axis: tuple[float, float],
) -> Html | None:
    """Collapsed list of small, insignificant effects, by group."""
    groups: dict[str, list[Row]] = {}
    for key in drawn:
        if key in kept:
            group = key.partition("/")[0]
            groups.setdefault(group, []).append(_row(key, drawn[key], colour))
    if not groups:
        return None
    rows: list[Row | str] = []
    for group, members in groups.items():
        rows += [_heading(group), *members]
    summary = f"{len(kept)} smaller difference{'' if len(kept) == 1 else 's'}, none of which stands"
    inside = interval_list(rows, axis=axis, digits=2, reference=0.0, bars=False)
    return tag("details", tag("summary", summary), inside)


def _same(
    all_effects: Mapping[str, tuple[Any, float | None]],
    drawn: Mapping[str, tuple[Any, float | None]],
) -> Html | None:
    """Note on comparisons that are omitted because nothing varies in them."""
    dropped = [key for key in all_effects if key not in drawn]
    if not dropped:
        return None
    names = dict.fromkeys(_what(key) for key in dropped)
    return tag(
        "p", f"{len(dropped)} left out, where nothing varies: {', '.join(names)}.", class_="note"
    )


def _row(key: str, effect: tuple[Any, float | None], colour: str, *, group: bool = False) -> Row:
    estimate, p = effect
    mark = None
    if _stands(p):
        mark = tag(
            "span", " \u2605", class_="star", role="img", aria_label="significant after correction"
        )
    label: object = _what(key)
    if group:
        column, _, value = key.partition("/")[0].partition("=")
        # The value is one unit for line breaks: a band such as "18-24" must not be torn apart.
        description = [f"{wording.humanised(column)}: ", tag("span", value, class_="whole")]
        label = join(
            [label, " ", tag("small", *(description if value else [wording.humanised(column)]))]
        )
    return Row(label, colour if _stands(p) else f"{colour} faint", estimate, mark)


def _what(key: str) -> str:
    """Label of a metric, such as `Words` for `age=18-24/words`."""
    return wording.meaning(f"grounding/{key.partition('/')[2]}").label


def _heading(group: str) -> str:
    """Heading of a group, such as `Age: 18-24 against all others` for `age=18-24`."""
    column, _, value = group.partition("=")
    return f"{wording.humanised(column)}{f': {value} against all others' if value else ''}"
