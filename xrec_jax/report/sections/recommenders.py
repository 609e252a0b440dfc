"""Explanations of what several recommenders recommend: a row for each recommender and explainer."""

from __future__ import annotations

from xrec_jax.report.charts.panels import is_pair, measured
from xrec_jax.report.html.markup import table, tag
from xrec_jax.report.html.numbers import figure
from xrec_jax.report.run_files import RunFiles, Section
from xrec_jax.report.wording import label, meaning

ID, TITLE = "recommenders", "Explanations by recommender"
HOW = "Name several recommenders in explain.systems, and add the stage assess to config.stages."
_ON = " on "
_COLUMNS = (
    "text/words",
    "text/within_75_words",
    "grounding/item_named",
    "grounding/history_cited",
    "grounding/hallucinated_titles",
    "grounding/attributes_precision",
    "planted/f1",
    "counterfactual/comprehensiveness",
)


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None where the recommendations of one recommender are explained."""
    figures = run_files.stage("recommenders")
    rows = [
        (*name.split(_ON, 1), name) for name in figures if _ON in name and not is_pair(name)
    ]  # explainer, recommender, key
    if not rows:
        return None
    # A figure that no explainer has, such as planted reasons in real data, has no column.
    columns = [
        column for column in _COLUMNS if any(measured(figures[key].get(column)) for *_, key in rows)
    ]
    body = [
        [
            recommender,
            label(explainer),
            _texts(figures[key].get("text/usr")),
            *(_cell(figures[key].get(column), column) for column in columns),
        ]
        for explainer, recommender, key in rows
    ]
    header = ("Recommender", "Explainer", "Texts", *(meaning(column).label for column in columns))
    lead = (
        "The same explainers on what each recommender recommends to the same users. What two "
        "recommend counts for both."
    )
    return Section(
        ID,
        TITLE,
        lead,
        tag(
            "div",
            table(header, body, caption="Figures by recommender and explainer", class_="numbers"),
        ),
    )


def _texts(estimate: object) -> object:
    """Number of texts; a dash for the chance level, which has no texts of its own."""
    return f"{estimate['count']:,}" if isinstance(estimate, dict) else figure(None)


def _cell(estimate: object, name: str) -> object:
    known = estimate if isinstance(estimate, dict) and measured(estimate) else None
    share = meaning(name).share
    return figure(known, share=share, digits=1 if share else 2)
