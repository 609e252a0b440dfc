"""Names and meanings of the figures on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xrec_jax.inference import explainers

# Systems that stand beside explainers and recommenders.
LABELS = {
    "upper_bound": "upper bound",
    "majority": "majority",
    "reference": "the set's own answers",
    "tuned shuffled": "tuned, shuffled (chance)",
}


class Meaning(NamedTuple):
    """Meaning of a figure.

    Attributes:
      label: short.
      sentence: explains it.
      share: written in per cent.
    """

    label: str
    sentence: str
    share: bool = False


_MEANINGS = {
    "text/words": Meaning("Words", "Mean length of a text."),
    "text/within_75_words": Meaning("Within 75 words", "Texts that keep to the limit.", True),
    "text/ended": Meaning("Ended by itself", "Texts that were not cut off.", True),
    "text/usr": Meaning("USR", "Distinct texts over all texts; low means copies.", True),
    "text/fmr": Meaning("FMR", "Texts that name a feature of the reference.", True),
    "text/fcr": Meaning("FCR", "Share of all features that some text names.", True),
    "text/div": Meaning("DIV", "Feature overlap between texts; lower is more varied."),
    "text/distinct_1": Meaning("Distinct-1", "Distinct words over all words."),
    "text/distinct_2": Meaning("Distinct-2", "Distinct word pairs over all word pairs."),
    "text/readability": Meaning("Readability", "Flesch reading ease; higher is easier."),
    "text/repetition": Meaning("Repetition", "Word triples that stand in a text before."),
    "text/self_repetition": Meaning(
        "Likeness among texts", "Runs of four words that another text has too."
    ),
    "grounding/hallucinated_titles": Meaning(
        "Titles not in the history", "Of the titles cited beside the item; lower is better.", True
    ),
    "grounding/attributes_precision": Meaning(
        "Attributes borne out", "Of the attributes named, those that item or history has.", True
    ),
    "grounding/history_cited": Meaning("History cited", "Titles of the history a text."),
    "grounding/item_named": Meaning("Item named", "Texts that name what they recommend.", True),
    "grounding/absent_titles": Meaning("Titles of other items", "A text."),
    "grounding/unknown_titles": Meaning("Titles nobody knows", "A text."),
    "grounding/attributes": Meaning("Attributes named", "A text."),
    "grounding/attributes_of_item": Meaning("Attributes of the item", "A text."),
    "planted/precision": Meaning(
        "Precision", "Reasons given that are true reasons of the world.", True
    ),
    "planted/recall": Meaning("Recall", "True reasons that the text gives.", True),
    "planted/f1": Meaning("F1", "Harmonic mean of precision and recall.", True),
    "counterfactual/comprehensiveness": Meaning(
        "Comprehensiveness",
        "How much more the score falls without the cited entries than without as many others, in "
        "nats. Above 0: what is cited matters.",
    ),
    "counterfactual/sufficiency": Meaning(
        "Sufficiency",
        "How much better the cited entries alone predict the item than as many others, in nats.",
    ),
    "counterfactual/measured": Meaning(
        "Texts it could be measured on", "Those that cite some, but not most, entries.", True
    ),
    "test/accuracy": Meaning("Accuracy", "Held-out comparisons told right.", True),
    "test/ece": Meaning("Calibration error", "Mean gap between confidence and accuracy (ECE)."),
    "test/position_consistency": Meaning(
        "Same verdict in both orders", "Comparisons that do not turn when the texts swap.", True
    ),
    "test/log_loss": Meaning("Log loss", "In nats; 0.693 is a coin."),
    "test/position_bias": Meaning(
        "Leaning to the first", "Above 0: the text that stands first is favoured."
    ),
    "baseline/constant": Meaning("Always the same answer", "The more frequent answer.", True),
    "baseline/pair_prior": Meaning(
        "Names only", "Guesses from which two systems are compared, unread.", True
    ),
    "accuracy": Meaning("Accuracy", "Answers that are right; unreadable ones are wrong.", True),
    "macro_f1": Meaning("Macro F1", "Mean over the values, each counting the same.", True),
    "mae": Meaning("Mean absolute error", "In the attribute's unit; lower is better."),
    "parse_failures": Meaning("Unreadable answers", "Answers that name no valid value.", True),
}


def meaning(name: str) -> Meaning:
    """Meaning of a metric; one that is not listed is named after itself."""
    if name in _MEANINGS:
        return _MEANINGS[name]
    short = name.rsplit("/", 1)[-1]
    # One group of prompts, such as a data set of several.
    group = name.removeprefix("grounding/item_named_")
    if group != name:
        plain = _MEANINGS["grounding/item_named"]
        return Meaning(f"{plain.label}, {group}", plain.sentence, plain.share)
    # The tolerance is part of the name, such as `within_0.5`, so no table can list all of them.
    within = short.removeprefix("within_")
    if within != short and within.replace(".", "", 1).isdigit():
        return Meaning(f"Within {within}", "Answers that are this near.", True)
    # The same metric of the constrained answer: derived, so that both labels stay in step.
    if short.startswith("readout_"):
        plain = meaning(short.removeprefix("readout_"))
        return Meaning(
            f"{plain.label}, by readout",
            "Of the allowed answers the one of the highest probability; it can always be read.",
            plain.share,
        )
    # Last, as the same metric may mean something else in a group that is listed.
    if short in _MEANINGS:
        return _MEANINGS[short]
    return Meaning(humanised(short), "")


def humanised(name: str) -> str:
    """Such as `Hit rate` for `hit_rate`."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def label(name: str) -> str:
    """Label of a system on the page."""
    return LABELS.get(name) or explainers.label(name)


def listed(names: Sequence[str]) -> str:
    """Systems in words, such as `template, base and tuned`."""
    called = [label(name) for name in names]
    return " and ".join([", ".join(called[:-1]), called[-1]] if len(called) > 1 else called)


def ranking(name: str) -> str:
    """Such as `NDCG@10` for `test/ndcg@10`."""
    kind, _, k = name.rsplit("/", 1)[-1].partition("@")
    return f"{ {'ndcg': 'NDCG', 'mrr': 'MRR'}.get(kind, humanised(kind)) }@{k}"
