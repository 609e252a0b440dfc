"""Faithfulness of the explanations: planted reasons, grounding, counterfactuals."""

from __future__ import annotations

from xrec_jax.report.charts.panels import comparisons, panels
from xrec_jax.report.html.markup import tag
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "faithfulness", "Faithfulness"
HOW = "Add the stages explain and assess to config.stages."
SHUFFLED = "tuned shuffled"  # the tuned model's texts, each read for another pair
_CHANCE = (
    " Chance: the tuned model's texts, each read as if it were about another recommendation. Only "
    "what lies above is about the pair itself."
)
_HELD_OUT = " Here the answers to held-out prompts, beside those of the instruction set itself."
_GROUPS = (
    (
        "planted",
        "True reasons",
        ("f1", "precision", "recall"),
        "The planted world knows why it would choose a place. A text is compared with those "
        "reasons.",
    ),
    (
        "grounding",
        "Grounding",
        ("hallucinated_titles", "attributes_precision", "history_cited", "item_named"),
        "Titles and attributes that a text mentions are looked up in the history and the item.",
    ),
    (
        "counterfactual",
        "Counterfactual",
        ("comprehensiveness", "sufficiency", "measured"),
        "The cited history is taken away and the recommender asked again: what it falls by, beside "
        "taking away as many entries that were not cited.",
    ),
)


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None before the stage `assess` or `instruct` is done."""
    assessed = run_files.stage("assess")
    blocks = []
    for group, title, main, sentence in _GROUPS:
        systems = assessed
        # Without recommendations to explain there are the answers to held-out prompts.
        if group == "grounding" and not assessed:
            systems, sentence = run_files.stage("instruct"), sentence + _HELD_OUT
        # With `missing`: that a text could not be measured is a finding as well.
        body = panels(run_files, systems, group, main=main, missing=True)
        if group == "planted" and SHUFFLED in systems:
            sentence += _CHANCE
        if body is not None:
            blocks.append(
                tag("div", tag("h3", title), tag("p", sentence), body, comparisons(systems, group))
            )
    if not blocks:
        return None
    lead = (
        "Whether a text gives reasons that hold, measured rather than judged. Intervals 95\u00a0%."
    )
    return Section(ID, TITLE, lead, tag("div", *blocks))
