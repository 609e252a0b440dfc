"""The controls of joint training: scores, gains, and what each control would show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.joint.controls.registry import ALONE, CONTROLS, JOINT, Control
from xrec_jax.report import wording
from xrec_jax.report.charts.panels import grid, is_pair
from xrec_jax.report.charts.rows import Row, interval_chart
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known, metric, percent
from xrec_jax.report.joint_files import comparison, cutoff, gain, main_metric, sign

_BOUNDS = ("attainable", "upper_bound")
_NO_SYSTEMS = ("rounds", "data", *_BOUNDS)
_TEXT_COLUMNS = (
    ("planted/f1", "True reasons, F1", True),
    ("text/title_mention", "Names a title", True),
)


def control(name: str) -> Control:
    """Description of a system; one that is not known here is named after itself."""
    return CONTROLS.get(name) or Control(
        name, wording.humanised(name), "Given by the run; it is not described here."
    )


def names(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Systems, the best NDCG first; those without one last."""
    main = main_metric(systems)
    listed = [s for s in systems if not is_pair(s) and s not in _NO_SYSTEMS]
    # Systems without a figure, or with equal ones, keep the order of the registry.
    order = [*CONTROLS, *listed]

    def place(name: str) -> tuple[float, int]:
        value: Any = systems[name].get(main)
        return -value["value"] if known(value) else float("inf"), order.index(name)

    return sorted(listed, key=place)


def attainable(
    systems: Mapping[str, Mapping[str, Any]], recommend: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Metrics of the best that any recommender can expect; empty where that is not known."""
    # The stage's own bound first: that of `recommend` may be of other users.
    for name in _BOUNDS:
        if known(metric(systems, name, main_metric(systems))):
            return systems[name]
    bound = recommend.get("upper_bound", {})
    return bound if known(bound.get(main_metric(systems))) else {}


def build(
    systems: Mapping[str, Mapping[str, Any]], recommend: Mapping[str, Mapping[str, Any]]
) -> Html | None:
    """Chart, table and sentences; None before there are test figures."""
    order = names(systems)
    if not any(known(systems[name].get(main_metric(systems))) for name in order):
        return None
    bound = attainable(systems, recommend)
    return tag(
        "div",
        grid([_gains(systems, order), _scores(systems, order, bound)], wide=True),
        _table(systems, order, bound),
        _further(systems, order),
        tag("h3", "What each of them is"),
        tag(
            "dl",
            *(_entry(systems, name) for name in [n for n in CONTROLS if n in order]),
            *(_entry(systems, name) for name in order if name not in CONTROLS),
            class_="controls",
        ),
    )


def _gains(systems: Mapping[str, Mapping[str, Any]], order: list[str]) -> Html | None:
    comparisons = {name: comparison(systems, name, ALONE) for name in order}
    # One unit for the whole chart: relative gains, if there are any.
    share = any(
        compared is not None and "relative" in compared for compared in comparisons.values()
    )
    kind = "relative" if share else "difference"
    what = wording.ranking(main_metric(systems))
    rows = [
        Row(control(name).label, control(name).colour, compared[kind])
        for name, compared in comparisons.items()
        if compared is not None and kind in compared
    ]
    return interval_chart(
        rows,
        title=f"Gain over the recommender alone, {what}",
        share=share,
        digits=1 if share else 4,
        bars=False,
        reference=0.0,
        reference_label="the recommender alone",
        note="Paired over users, seeds averaged: an interval that reaches the line may be chance, "
        "and how further seeds would differ is not in it.",
    )


def _scores(
    systems: Mapping[str, Mapping[str, Any]], order: list[str], bound: Mapping[str, Any]
) -> Html | None:
    main = main_metric(systems)
    top = bound.get(main)
    return interval_chart(
        [Row(control(n).label, control(n).colour, systems[n].get(main) or {}) for n in order],
        title=f"{wording.ranking(main)}, test",
        digits=4,
        note="Every item that the user has not seen is a candidate.",
        reference=top["value"] if top is not None else None,
        reference_label="" if top is None else f"attainable {top['value']:.4f}",
    )


def _columns(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"test/{kind}@{cutoff(systems)}" for kind in ("ndcg", "recall", "mrr")]


def _table(
    systems: Mapping[str, Mapping[str, Any]], order: list[str], bound: Mapping[str, Any]
) -> Html:
    texts = [c for c in _TEXT_COLUMNS if any(known(systems[n].get(c[0])) for n in order)]
    rows = []
    for name in order:
        own = systems[name]
        rows.append(
            [
                control(name).label,
                *(figure(own.get(key), digits=4) for key in _columns(systems)),
                "-" if name == ALONE else gain(comparison(systems, name, ALONE)),
                *(figure(own.get(key), share=share, digits=1) for key, _, share in texts),
            ]
        )
    if bound:
        rows.append(
            [
                "attainable",
                *(figure(bound.get(key), digits=4) for key in _columns(systems)),
                "-",
                *("-" for _ in texts),
            ]
        )
    header = (
        "System",
        *(wording.ranking(key) for key in _columns(systems)),
        "Gain over alone",
        *(c[1] for c in texts),
    )
    return table(
        header, rows, class_="numbers", caption="Systems and controls of the joint training"
    )


def _further(systems: Mapping[str, Mapping[str, Any]], order: list[str]) -> Html | None:
    """Table of the metrics that the main table has no column for."""
    shown = {*_columns(systems), *(key for key, _, _ in _TEXT_COLUMNS)}
    metrics = dict.fromkeys(key for name in order for key in systems[name] if key not in shown)
    names = [key for key in metrics if any(known(systems[n].get(key)) for n in order)]
    if not names:
        return None
    rows = [
        [control(n).label, *(figure(systems[n].get(key)) for key in names)]
        for n in order
        if any(known(systems[n].get(key)) for key in names)
    ]
    header = ("System", *(_called(key) for key in names))
    made = table(header, rows, class_="numbers", caption="Further figures of joint training")
    count = f"{len(names)} more figure{'s' if len(names) > 1 else ''}"
    return tag("details", tag("summary", count), made)


def _called(name: str) -> str:
    if name.startswith("test_all/"):
        return f"{wording.ranking(name)}, everybody"
    return wording.ranking(name) if "@" in name else wording.meaning(name).label


def _entry(systems: Mapping[str, Mapping[str, Any]], name: str) -> Html:
    system = control(name)
    outcome = verdict(systems, name)
    return tag(
        "div",
        tag("dt", system.label),
        tag("dd", system.description, f" {system.shows}" if system.shows else None),
        tag("dd", outcome[1], class_=f"told {outcome[0]}") if outcome else None,
    )


def verdict(systems: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, str] | None:
    """Outcome of a control: `good`, `bad` or `open`, and a sentence; None if it shows nothing."""
    result = comparison(systems, name, ALONE)
    main = comparison(systems, JOINT, ALONE)
    system = control(name)
    if result is None or not (system.shows or system.silent):
        return None
    side = sign(result)
    # Such a control carries no information about the user, so a gain of it refutes the claim.
    if system.silent:
        if side > 0:
            return "bad", "Here: it gains, which speaks against the claim."
        if side < 0:
            return "good", "Here: it loses, so the gain does not come from there."
        return "good", "Here: no gain that can be told from chance, as it should be."
    # Without a gain of joint there is nothing that a control could explain.
    if main is None or sign(main) <= 0:
        return "open", "Here: joint has no clear gain that could be compared."
    direct = comparison(systems, JOINT, name)
    reached = _reached(result, main)
    # The one control whose gain should remain: reasons work without the names of items.
    if name == "masked_titles":
        if side > 0:
            return "good", f"Here: the gain remains{reached}."
        return "bad", f"Here: no clear gain remains{reached}."
    # A paired test against joint says more than two tests against the recommender alone.
    if direct is not None:
        if sign(direct) > 0:
            return "good", f"Here: joint is above it{reached}."
        if sign(direct) < 0:
            return "bad", f"Here: it is above joint{reached}."
        return "bad", f"Here: it cannot be told from joint{reached}."
    if side < 0:
        return "good", "Here: a loss."
    if side == 0:
        return "good", f"Here: no gain that can be told from chance{reached}."
    return "open", f"Here: it gains too{reached}; the two were not tested against each other."


def _reached(result: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    """Its gain as a share of joint's, in words."""
    for kind in ("relative", "difference"):
        if kind in result and kind in main and main[kind]["value"] > 0:
            share = percent(result[kind]["value"] / main[kind]["value"], 0)
            return f"; it reaches {share} of joint's gain"
    return ""
