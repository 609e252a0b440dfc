"""Learning curves of the recommenders."""

from __future__ import annotations

from xrec_jax.report import wording
from xrec_jax.report.charts.lines import Line, line_chart
from xrec_jax.report.charts.panels import grid
from xrec_jax.report.html.markup import join
from xrec_jax.report.html.numbers import known, metric
from xrec_jax.report.plots import curves
from xrec_jax.report.run_files import RunFiles, Section
from xrec_jax.report.sections.ranking import BOUND, main_metric

ID, TITLE = "learning", "Learning curves"
HOW = "The recommenders of the stage recommend write them into metrics.jsonl as they train."


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None before a recommender has logged an epoch."""
    main = main_metric(run_files).replace("test/", "valid/")
    bound = metric(run_files.stage("recommend"), BOUND, main_metric(run_files))
    charts = []
    for name, title, start in (
        ("train/loss", "Training loss, share of the first epoch's", False),
        (main, f"{wording.ranking(main)} on validation", True),
    ):
        lines = []
        for system, (epochs, values) in curves(run_files.metrics, name).items():
            if name == "train/loss":
                # Losses of different models have different units; only their course can be
                # compared.
                values = values / values[:, :1]
            lines += [
                Line(wording.label(system), run_files.colour(system), epochs.tolist(), row.tolist())
                for row in values
            ]
        # The bound is known for test events alone, hence its label.
        limit = bound["value"] if name == main and known(bound) else None
        charts.append(
            line_chart(
                lines,
                title=title,
                x_label="epoch",
                from_zero=start,
                bound=limit,
                bound_label="upper bound (test)",
            )
        )
    body = grid(charts, wide=True)
    if body is None:
        return None
    lead = (
        "A line for each seed. The epoch with the best validation score is the one that is "
        "tested. Point at a curve, or use the arrow keys, to read values."
    )
    return Section(ID, TITLE, lead, join([body]))
