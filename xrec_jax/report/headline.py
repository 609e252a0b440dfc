"""The figures at the top of the page: at most six, each with one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xrec_jax.report import wording
from xrec_jax.report.html.markup import Html, tag
from xrec_jax.report.html.numbers import figure, known, metric, percent, whole
from xrec_jax.report.run_files import Material
from xrec_jax.report.sections import bias, ranking, ratings, wins
from xrec_jax.report.sections.joint import summary

MOST = 6


class Headline(NamedTuple):
    """One of the figures.

    Attributes:
      label: above it.
      value: markup.
      sentence: below it.
      target: section that says more.
    """

    label: str
    value: Html
    sentence: str
    target: str


def headlines(material: Material) -> list[Headline]:
    """What the run can say of itself, the most telling first."""
    found = [
        *_ranking(material),
        *_joint(material),
        *_planted(material),
        *_grounding(material),
        *_wins(material),
        *_people(material),
        *_perplexity(material),
        *_attributes(material),
        *_bias(material),
        *_audit(material),
    ]
    return found[:MOST]


def band(found: list[Headline]) -> Html | None:
    """The figures as a list."""
    if not found:
        return None
    return tag(
        "ul",
        *(
            tag(
                "li",
                tag("a", tag("span", h.label, class_="what"), href=f"#{h.target}"),
                tag("p", h.value, class_="big"),
                tag("p", h.sentence, class_="why"),
            )
            for h in found
        ),
        class_="band",
        role="list",
        aria_label="Headline figures",
    )


def _ranking(material: Material) -> Iterator[Headline]:
    systems, name = material.stage("recommend"), ranking.main_metric(material)
    order = ranking.ranked(systems, name)
    if not order:
        return
    best, bound = systems[order[0]][name], metric(systems, ranking.BOUND, name)
    said = f"{wording.label(order[0])} ranks best of {len(order)}."
    if len(order) == 1:
        said = f"How well {wording.label(order[0])} ranks the held-out items."
    if known(bound) and bound["value"] > 0:
        said += f" That is {percent(best['value'] / bound['value'], 0)} of what is possible here."
    yield Headline(wording.ranking(name), figure(best, digits=4), said, ranking.ID)


def _joint(material: Material) -> Iterator[Headline]:
    found = summary.headline(material)
    if found is not None:
        yield Headline(*found, summary.ID)


def _planted(material: Material) -> Iterator[Headline]:
    systems = material.stage("assess")
    tuned, base = (metric(systems, s, "planted/f1") for s in ("tuned", "base"))
    if not known(tuned):
        return
    said = "How well tuned explanations name the true reasons"
    told = [f"{percent(base['value'])} before tuning"] if known(base) else []
    chance = metric(systems, "tuned shuffled", "planted/f1")
    told += [f"{percent(chance['value'])} by chance"] if known(chance) else []
    said += f"; {', '.join(told)}." if told else "."
    yield Headline("True reasons, F1", figure(tuned, share=True, digits=1), said, "faithfulness")


def _grounding(material: Material) -> Iterator[Headline]:
    systems = material.stage("assess")
    name = "grounding/hallucinated_titles"
    tuned, base = (metric(systems, s, name) for s in ("tuned", "base"))
    if known(tuned) and tuned.get("count"):
        said = "Of the titles that tuned texts cite, this share is not in the history"
        said += f"; {percent(base['value'])} before tuning." if known(base) else "."
        yield Headline("Titles made up", figure(tuned, share=True, digits=1), said, "faithfulness")


def _wins(material: Material) -> Iterator[Headline]:
    systems = material.stage("judge")
    ratio = _tuned_over_base(systems)
    said = "How often the judge prefers the tuned text to the base's; 50\u00a0% is no difference."
    if not known(ratio):
        ratio = metric(systems, "tuned", "win/ratio")
        said = "How often the judge prefers the tuned text to the others'."
    if not known(ratio):
        return
    judge = systems.get("judge", {})
    accuracy, prior = judge.get("test/accuracy"), judge.get("baseline/pair_prior")
    if known(accuracy) and known(prior) and accuracy["value"] <= prior["value"]:
        said += " Read with care: the judge is no better than guessing from the names."
    yield Headline("Win ratio", figure(ratio, share=True, digits=1), said, "wins")


def _tuned_over_base(systems: Mapping[str, Any]) -> Any:
    """The win ratio of the two, whichever of them is named first; None where there is none."""
    return wins.cells_of(systems).get(("tuned", "base"), {}).get("ratio")


def _people(material: Material) -> Iterator[Headline]:
    systems = dict(ratings.named_estimates((material.ratings or {}).get("rate")))
    ratio = _tuned_over_base(systems)
    if known(ratio):
        yield Headline(
            "Preferred by people",
            figure(ratio, share=True, digits=1),
            "How often raters prefer the tuned text to the base's, ties half.",
            "ratings",
        )


def _perplexity(material: Material) -> Iterator[Headline]:
    systems, name = material.stage("instruct"), "held_out/perplexity"
    tuned, base = (metric(systems, s, name) for s in ("tuned", "base"))
    if known(tuned):
        said = "On held-out explanations, tuned; lower is better"
        said += f". {figure_text(base['value'])} before tuning." if known(base) else "."
        yield Headline("Perplexity", figure(tuned, digits=2), said, "language")


def figure_text(value: float) -> str:
    """A plain number of two decimals at most."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _attributes(material: Material) -> Iterator[Headline]:
    systems = material.stage("attributes")
    wins = total = 0
    for key, estimate in systems.get("tuned", {}).items():
        majority = metric(systems, "majority", key)
        if key.endswith("/accuracy") and known(estimate) and known(majority):
            total += 1
            wins += estimate["value"] > majority["value"]
    if total:
        yield Headline(
            "Attributes told",
            tag("span", f"{wins} of {total}"),
            "Hidden attributes that the tuned model tells better than the majority guess.",
            "attributes",
        )


def _bias(material: Material) -> Iterator[Headline]:
    tuned = bias.effects(material.stage("bias").get("tuned", {}))
    if tuned:
        strong = sum(p is not None and p < bias.LEVEL for _, p in tuned.values())
        yield Headline(
            "Group differences",
            tag("span", f"{strong} of {len(tuned)}"),
            "Differences between groups of users in tuned texts that remain after correction.",
            bias.ID,
        )


def _audit(material: Material) -> Iterator[Headline]:
    if material.audit is not None:
        count = material.audit.get("count", {})
        yield Headline(
            "Audit",
            tag("span", f"{whole(count.get('error', 0))} errors"),
            f"And {whole(count.get('warning', 0))} warnings about data, split and texts.",
            "audit",
        )
