"""Headline figures at the top of the page: at most six, each with one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xrec_jax.report import wording
from xrec_jax.report.html.markup import Html, tag
from xrec_jax.report.html.numbers import figure, known, metric, percent, whole
from xrec_jax.report.run_files import RunFiles
from xrec_jax.report.sections import bias, ranking, ratings, wins
from xrec_jax.report.sections.joint import summary

MOST = 6


class Headline(NamedTuple):
    """A headline figure.

    Attributes:
      label: name of the figure.
      value: markup of the figure.
      sentence: explanation below the figure.
      target: id of the section with the details.
    """

    label: str
    value: Html
    sentence: str
    target: str


def headlines(run_files: RunFiles) -> list[Headline]:
    """Headline figures of a run, the most important first."""
    # In order of importance, since only the first `MOST` figures are shown.
    figures = [
        *_ranking(run_files),
        *_joint(run_files),
        *_planted(run_files),
        *_grounding(run_files),
        *_wins(run_files),
        *_people(run_files),
        *_perplexity(run_files),
        *_attributes(run_files),
        *_bias(run_files),
        *_audit(run_files),
    ]
    return figures[:MOST]


def band(figures: list[Headline]) -> Html | None:
    """Markup of the headline figures; None without any."""
    if not figures:
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
            for h in figures
        ),
        class_="band",
        role="list",
        aria_label="Headline figures",
    )


def _ranking(run_files: RunFiles) -> Iterator[Headline]:
    systems, name = run_files.stage("recommend"), ranking.main_metric(run_files)
    order = ranking.ranked(systems, name)
    if not order:
        return
    best, bound = systems[order[0]][name], metric(systems, ranking.BOUND, name)
    sentence = f"{wording.label(order[0])} ranks best of {len(order)}."
    # The best of one system would say nothing.
    if len(order) == 1:
        sentence = f"How well {wording.label(order[0])} ranks the held-out items."
    # Only a planted world knows how well its users could be predicted at all.
    if known(bound) and bound["value"] > 0:
        sentence += (
            f" That is {percent(best['value'] / bound['value'], 0)} of what is possible here."
        )
    yield Headline(wording.ranking(name), figure(best, digits=4), sentence, ranking.ID)


def _joint(run_files: RunFiles) -> Iterator[Headline]:
    values = summary.headline(run_files)
    if values is not None:
        yield Headline(*values, summary.ID)


def _planted(run_files: RunFiles) -> Iterator[Headline]:
    systems = run_files.stage("assess")
    tuned, base = (metric(systems, s, "planted/f1") for s in ("tuned", "base"))
    if not known(tuned):
        return
    # The figure alone says little: the base and shuffled texts are its scale, where they exist.
    sentence = "How well tuned explanations name the true reasons"
    references = [f"{percent(base['value'])} before tuning"] if known(base) else []
    chance = metric(systems, "tuned shuffled", "planted/f1")
    references += [f"{percent(chance['value'])} by chance"] if known(chance) else []
    sentence += f"; {', '.join(references)}." if references else "."
    yield Headline(
        "True reasons, F1", figure(tuned, share=True, digits=1), sentence, "faithfulness"
    )


def _grounding(run_files: RunFiles) -> Iterator[Headline]:
    systems = run_files.stage("assess")
    name = "grounding/hallucinated_titles"
    tuned, base = (metric(systems, s, name) for s in ("tuned", "base"))
    # Without a count no text cites a title, and a share of nothing means nothing.
    if known(tuned) and tuned.get("count"):
        sentence = "Of the titles that tuned texts cite, this share is not in the history"
        sentence += f"; {percent(base['value'])} before tuning." if known(base) else "."
        yield Headline(
            "Titles made up", figure(tuned, share=True, digits=1), sentence, "faithfulness"
        )


def _wins(run_files: RunFiles) -> Iterator[Headline]:
    systems = run_files.stage("judge")
    ratio = _tuned_over_base(systems)
    sentence = (
        "How often the judge prefers the tuned text to the base's; 50\u00a0% is no difference."
    )
    # A run whose judge did not see the base still has a ratio over all others.
    if not known(ratio):
        ratio = metric(systems, "tuned", "win/ratio")
        sentence = "How often the judge prefers the tuned text to the others'."
    if not known(ratio):
        return
    # A win ratio is worth as much as its judge.
    judge = systems.get("judge", {})
    accuracy, prior = judge.get("test/accuracy"), judge.get("baseline/pair_prior")
    if known(accuracy) and known(prior) and accuracy["value"] <= prior["value"]:
        sentence += " Read with care: the judge is no better than guessing from the names."
    yield Headline("Win ratio", figure(ratio, share=True, digits=1), sentence, "wins")


def _tuned_over_base(systems: Mapping[str, Any]) -> Any:
    """Win ratio of the tuned texts over the base's; None if they were not compared."""
    # The pair may be stored in either order, and the matrix has both.
    return wins.cells_of(systems).get(("tuned", "base"), {}).get("ratio")


def _people(run_files: RunFiles) -> Iterator[Headline]:
    # With one data set only: several have a key `rate/NAME` each, and no figure in common.
    systems = dict(ratings.named_estimates((run_files.ratings or {}).get("rate")))
    ratio = _tuned_over_base(systems)
    if known(ratio):
        yield Headline(
            "Preferred by people",
            figure(ratio, share=True, digits=1),
            "How often raters prefer the tuned text to the base's, ties half.",
            "ratings",
        )


def _perplexity(run_files: RunFiles) -> Iterator[Headline]:
    systems, name = run_files.stage("instruct"), "held_out/perplexity"
    tuned, base = (metric(systems, s, name) for s in ("tuned", "base"))
    if known(tuned):
        sentence = "On held-out explanations, tuned; lower is better"
        sentence += f". {figure_text(base['value'])} before tuning." if known(base) else "."
        yield Headline("Perplexity", figure(tuned, digits=2), sentence, "language")


def figure_text(value: float) -> str:
    """Formats a number with at most two decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _attributes(run_files: RunFiles) -> Iterator[Headline]:
    systems = run_files.stage("attributes")
    # Attributes count only where the majority guess was measured, too.
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


def _bias(run_files: RunFiles) -> Iterator[Headline]:
    # Counted after Holm's correction: otherwise one comparison in twenty differs by chance.
    tuned = bias.effects(run_files.stage("bias").get("tuned", {}))
    if tuned:
        strong = sum(p is not None and p < bias.LEVEL for _, p in tuned.values())
        yield Headline(
            "Group differences",
            tag("span", f"{strong} of {len(tuned)}"),
            "Differences between groups of users in tuned texts that remain after correction.",
            bias.ID,
        )


def _audit(run_files: RunFiles) -> Iterator[Headline]:
    if run_files.audit is not None:
        count = run_files.audit.get("count", {})
        yield Headline(
            "Audit",
            tag("span", f"{whole(count.get('error', 0))} errors"),
            f"And {whole(count.get('warning', 0))} warnings about data, split and texts.",
            "audit",
        )
