"""Attribute prediction from prompts without the attribute, beside a majority baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.report import wording
from xrec_jax.report.charts.panels import comparisons, is_pair, panels
from xrec_jax.report.html.markup import Html, tag
from xrec_jax.report.html.numbers import known, whole
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "attributes", "Attribute prediction"
HOW = "Add the stage attributes to config.stages."
_MAJORITY = "majority"
_MAIN = ("accuracy", "readout_accuracy", "macro_f1", "mae")
_DATA = (
    ("train_questions", "questions to learn from"),
    ("held_out_questions", "held-out questions"),
    ("held_out_users", "users among them"),
    ("malformed_completions", "published answers left out, as they cannot be read"),
)


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None before the stage `attributes` is done."""
    systems = run_files.stage("attributes")
    # One block for each attribute; keys `data/...` are counts, not an attribute.
    names: list[str] = list(
        dict.fromkeys(
            key.split("/", 1)[0]
            for system, metrics in systems.items()
            if not is_pair(system)
            for key in metrics
            if not key.startswith("data/")
        )
    )
    shown = dict(systems)
    if _MAJORITY in systems:  # a constant answer is the same by readout
        own = systems[_MAJORITY]
        again = {k.replace("/", "/readout_", 1): v for k, v in own.items()}
        shown[_MAJORITY] = {**again, **own}
    blocks = [_attribute(run_files, shown, name) for name in names]
    if not any(blocks):
        return None
    lead = (
        "The model is asked for an attribute that its prompt does not hold. It has learnt "
        "something only where it beats the majority: always answering the commonest value."
    )
    return Section(ID, TITLE, lead, tag("div", _data(systems), *blocks))


def _data(systems: Mapping[str, Any]) -> Html | None:
    """Sentence on the number of questions and users."""
    figures = systems.get("data", {})
    parts = [
        f"{whole(figures[f'data/{name}']['value'])} {description}"
        for name, description in _DATA
        if known(figures.get(f"data/{name}")) and figures[f"data/{name}"]["value"]
    ]
    return tag("p", f"{', '.join(parts)}.", class_="note") if parts else None


def _attribute(run_files: RunFiles, systems: dict, name: str) -> Html | None:
    others = run_files.explainers(s for s in systems if s != _MAJORITY and not is_pair(s))
    body = panels(
        run_files,
        systems,
        name,
        main=_MAIN,
        order=[
            s
            for s in [*others, _MAJORITY]
            if any(k.startswith(f"{name}/") for k in systems.get(s, {}))
        ],
    )
    if body is None:
        return None
    tests = comparisons(systems, name)
    if tests is not None:
        tests = tag("details", tag("summary", "Paired differences and their tests"), tests)
    return tag("div", tag("h3", wording.humanised(name)), body, tests)
