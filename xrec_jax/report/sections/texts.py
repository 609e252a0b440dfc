"""Text metrics of the explanations: length, completeness, variety, overlap with references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.report.charts.lines import histogram
from xrec_jax.report.charts.panels import grid, is_pair, panels
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known
from xrec_jax.report.run_files import MOST_PAIRS, RunFiles, Section
from xrec_jax.report.wording import label
from xrec_jax.text.words import word_count

ID, TITLE = "texts", "Explanations as texts"
HOW = "Add the stage explain to config.stages, and assess for the text metrics."
_LIMIT = 75
_GROUPS = ("text/", "control_shuffled/", "over_control/")
_MAIN = ("words", "within_75_words", "ended", "usr", "distinct_2", "readability")
_OVERLAP = {
    "text/bleu": "BLEU",
    "text/bleu_1": "BLEU-1",
    "text/rouge_1": "ROUGE-1",
    "text/rouge_2": "ROUGE-2",
    "text/rouge_l": "ROUGE-L",
}
_SHOWN = ("text/bleu", "text/rouge_l")


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None without explanations."""
    systems: dict[str, dict[str, Any]] = {}
    for stage in ("instruct", "explain", "assess"):  # later stages have more texts
        for system, metrics in run_files.stage(stage).items():
            if not is_pair(system):
                named = {_of_references(k): v for k, v in metrics.items()}
                systems.setdefault(system, {}).update(
                    {k: v for k, v in named.items() if k.startswith(_GROUPS)}
                )
    if run_files.stage("explain"):
        systems.pop("reference", None)  # of other prompts than those that are explained
    systems = {system: metrics for system, metrics in systems.items() if metrics}
    lengths = {
        label(name): (
            run_files.colour(name),
            [word_count(r["text"]) for r in run_files.answers[name]],
        )
        for name in run_files.explainers()
    }
    chart = histogram(
        lengths,
        title="Words a text, share of the texts",
        x_label="words",
        mark=_LIMIT,
        mark_label=f"limit of {_LIMIT}",
    )
    # Overlaps mean something only beside their control, so that they have tables of their own.
    counted = {
        system: {k: v for k, v in metrics.items() if k not in _OVERLAP}
        for system, metrics in systems.items()
    }
    charts = [grid([chart], wide=True), panels(run_files, counted, "text", main=_MAIN)]
    likeness = _overlap(run_files, systems)
    if not any(charts) and likeness is None:
        return None
    lead = "What can be counted without asking whether the reasons are true."
    if run_files.more_pairs:
        lead += f" The distribution is of the first {MOST_PAIRS:,} texts."
    return Section(ID, TITLE, lead, tag("div", *charts, likeness))


def _of_references(name: str) -> str:
    """Maps `held_out/over_control_bleu` to `over_control/bleu`, `held_out/bleu` to `text/bleu`.

    Stage `assess` names so the metrics of held-out answers, which have references; the names
    of other metrics stay.
    """
    short = name.removeprefix("held_out/")
    if short == name or not any(word in name for word in ("bleu", "rouge")):
        return name
    for group in _GROUPS[1:]:
        start = group.replace("/", "_")
        if short.startswith(start):
            return group + short.removeprefix(start)
    return name if short.startswith("control_") else f"text/{short}"


def _overlap(run_files: RunFiles, systems: Mapping[str, Mapping[str, Any]]) -> Html | None:
    """Tables of BLEU and ROUGE beside the control with references of other cases."""
    rows: dict[str, list[list[object]]] = {}
    for name, title in _OVERLAP.items():
        control = name.replace("text/", "control_shuffled/")
        beyond = name.replace("text/", "over_control/")
        for system in run_files.explainers(systems):
            metrics = systems[system]
            if known(metrics.get(name)):
                estimates = (metrics.get(key) for key in (name, control, beyond))
                rows.setdefault(name, []).append(
                    [f"{title}, {label(system)}", *(figure(e, digits=2) for e in estimates)]
                )
    if not rows:
        return None
    header = ("Overlap", "Own reference", "Another's", "Difference")
    # The two usual metrics first; the others are folded away.
    tables = [
        table(
            header,
            [row for name in names for row in rows.get(name, ())],
            class_="numbers",
            caption="Overlap beside the control with shuffled references",
        )
        for names in (_SHOWN, [name for name in _OVERLAP if name not in _SHOWN])
        if any(name in rows for name in names)
    ]
    return tag(
        "div",
        tag("h3", "Likeness to the references"),
        tag(
            "p",
            "Texts of one kind are alike anyway: what counts is the difference to the control "
            "with shuffled references.",
            class_="note",
        ),
        tables[0],
        tag("details", tag("summary", "BLEU-1, ROUGE-1 and ROUGE-2"), *tables[1:])
        if tables[1:]
        else None,
    )
