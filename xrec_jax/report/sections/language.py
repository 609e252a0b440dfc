"""Training curves and perplexity of the language model: pre-training, tuning, judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from xrec_jax.evaluation.texts.prompt_grounding import prompt_context
from xrec_jax.inference import explainers, run_records
from xrec_jax.report.charts.lines import Line, line_chart
from xrec_jax.report.charts.panels import grid
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known
from xrec_jax.report.run_files import RunFiles, Section
from xrec_jax.report.wording import label

ID, TITLE = "language", "Language model"
_SHOWN = 12  # held-out prompts whose answers are shown
HOW = "Add the stages pretrain and instruct to config.stages."
_TITLES = {
    "pretrain": "Pre-training of the base",
    "instruct": "Tuning on explanations",
    "judge": "Training of the judge",
    "attributes": "Tuning on attributes",
}
_CURVES = (("train/loss", "training", "k0"), ("valid/loss", "held out", "k1"))


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None if no language model was trained."""
    body = [grid(_charts(run_files), wide=True), _perplexity(run_files), _answers(run_files)]
    if not any(body):
        return None
    lead = (
        "Cross-entropy in nats a token, of the answer only where a model is tuned. Training loss "
        "that falls while the held-out loss rises is learning by heart."
    )
    return Section(ID, TITLE, lead, tag("div", *body))


def _charts(run_files: RunFiles) -> list[Html | None]:
    # Recommenders have curves in a section of their own.
    stages: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in run_files.metrics:
        if not str(record["stage"]).startswith("recommend/"):
            stages[str(record["stage"])].append(record)
    charts = []
    for stage, records in stages.items():
        lines = []
        for name, title, colour in _CURVES:
            # Training and held-out losses are logged at different steps.
            logged = [r for r in records if r.get(name) is not None]
            # A record without an epoch is placed by its step.
            x = [float(r.get("train/epoch", r.get("step", 0))) for r in logged]
            lines.append(Line(title, colour, x, [float(r[name]) for r in logged]))
        charts.append(line_chart(lines, title=_TITLES.get(stage, stage), x_label="epoch", digits=3))
    return charts


def _perplexity(run_files: RunFiles) -> Html | None:
    rows = []
    for stage, texts in (("pretrain", "own texts"), ("instruct", "held-out explanations")):
        for system, metrics in run_files.stage(stage).items():
            if known(metrics.get("held_out/perplexity")):
                rows.append(
                    [
                        f"{label(system)} on {texts}",
                        figure(metrics["held_out/perplexity"]),
                        figure(metrics.get("held_out/loss")),
                    ]
                )
    if not rows:
        return None
    return tag(
        "div",
        table(
            ("Model", "Perplexity", "Loss"),
            rows,
            caption="Perplexity on held-out texts",
            class_="numbers",
        ),
        tag(
            "p",
            "Perplexity e.g. 3: as unsure as if it drew from three tokens each time.",
            class_="note",
        ),
    )


def _answers(run_files: RunFiles) -> Html | None:
    """Answers to the first held-out prompts, where no recommendation is explained."""
    if run_files.pairs:
        return None
    systems = (explainers.BASE, explainers.TUNED)
    rows: list[list[object]] = []
    for record in run_records.held_out_answers(run_files.rundir)[:_SHOWN]:
        if any(record.get(name) is None for name in systems):
            continue
        # The whole prompt would fill a page: what is recommended says which one it is.
        context = prompt_context(record.get("prompt") or "")
        rows.append(
            [
                context["title"] if context else f"prompt {len(rows) + 1}",
                *(record[name] for name in systems),
                record.get("reference") or "",
            ]
        )
    if not rows:
        return None
    return tag(
        "details",
        tag("summary", f"Answers to {len(rows)} held-out prompts"),
        table(
            ("Recommended", *map(label, systems), label("reference")),
            rows,
            caption="Answers to held-out prompts",
            class_="meant",
        ),
    )
