"""Joint training of explainer and recommender: the result, its controls, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.report import joint_files as read
from xrec_jax.report import wording
from xrec_jax.report.html.markup import Html, join, tag
from xrec_jax.report.html.numbers import bounds, decimal, figure, known, p_value, percent
from xrec_jax.report.joint_files import ALONE, JOINT, SFT, Joint, Seed, main_metric
from xrec_jax.report.run_files import RunFiles, Section
from xrec_jax.report.sections.joint import controls, curves, samples

ID, TITLE = "joint", "Joint training"
HOW = "Add the stage joint to config.stages."


def build(run_files: RunFiles) -> Section | None:
    """None where the run has no stage `joint`."""
    joint = read.load(run_files)
    if joint is None:
        return None
    lead = (
        "Explainer and recommender learn in turns: a text earns what it adds to the "
        "recommender's probability of the next item. The controls could prove that wrong."
    )
    recommend = run_files.stage("recommend")
    blocks = [
        _verdict(joint, recommend),
        _block("What the figures rest on", _conditions(run_files.config)),
        _block("Controls", controls.build(joint.systems, recommend)),
        _block(
            "Over the rounds",
            curves.build(joint),
            "A line for each seed; round 0 is the warm start. Point at a curve, or use the arrow "
            "keys, to read values.",
        ),
        _block(
            "Texts over the rounds",
            samples.build(joint),
            "Texts of the same users in every round, with reasons for and against.",
        ),
        _block("Where the time goes", curves.time(joint)),
        _block("Guards", _guards(joint)),
    ]
    return Section(ID, TITLE, lead, tag("div", *blocks))


def _block(title: str, body: Html | None, note: str = "") -> Html | None:
    if body is None:
        return None
    return tag("div", tag("h3", title), tag("p", note, class_="note") if note else None, body)


# The result in words ---------------------------------------------------------------------------


def _verdict(joint: Joint, recommend: Mapping[str, Any]) -> Html:
    systems, tested = joint.systems, joint.tested()
    said = [
        _compared(systems, ALONE, "the same recommender alone", tested),
        _compared(systems, SFT, "its warm start (SFT)", 0),
        _compared(
            systems, SFT, "the warm start's", 0, first="refit", named="joint texts, read anew,"
        ),
    ]
    sentences = [sentence for sentence in said if sentence is not None]
    if not sentences:
        text = "No test figures yet: they are written when every seed is done."
        return tag("div", tag("p", text), class_="verdict open")
    if (of := _of_attainable(systems, recommend)) is not None:
        sentences.append(tag("p", of))
    # The intervals draw users, not seeds, so they do not warn of few seeds.
    if tested in (1, 2):
        seeds = "One seed says" if tested == 1 else "Two seeds say"
        sentences.append(tag("p", f"{seeds} little of how runs differ; three or more are needed."))
    # The colour is that of the main comparison alone.
    main = read.comparison(systems, JOINT, ALONE)
    side = read.sign(main) if main is not None else 0
    return tag("div", *sentences, class_=f"verdict {('bad', 'open', 'good')[side + 1]}")


def _compared(
    systems: Mapping[str, Mapping[str, Any]],
    other: str,
    called: str,
    tested: int,
    *,
    first: str = JOINT,
    named: str = "joint training",
) -> Html | None:
    """One sentence of a system against another, or None where they were not compared."""
    result = read.comparison(systems, first, other)
    if result is None:
        return None
    main = main_metric(systems)
    values = [systems.get(name, {}).get(main) for name in (first, other)]
    parts: list[object] = [f"{wording.ranking(main)} of {named} "]
    if all(known(value) for value in values):
        ours, theirs = (figure(value, digits=4, interval=False) for value in values)
        parts += [ours, " against ", theirs, f" of {called}: "]
    else:
        parts.append(f"against {called}: ")
    measured = []
    if "relative" in result:
        measured.append(figure(result["relative"], share=True, digits=1))
    if "difference" in result:
        measured.append(figure(result["difference"], digits=4))
    parts.append(join(measured, ", a difference of "))
    parts += [f", {p_value(result['p']['value'])}"] if "p" in result else []
    parts.append(f", {tested} seed{'' if tested == 1 else 's'}. " if tested else ". ")
    return tag("p", tag("strong", _judged(result)), " ", *parts)


def _judged(result: Mapping[str, Any]) -> str:
    """Better, worse, or not to be told from chance and why."""
    side = read.sign(result)
    if side:
        return "A gain." if side > 0 else "A loss."
    # The interval comes before p: it also says how large a difference could be.
    if read.covers_zero(result):
        return "No difference that can be told from chance: the interval holds 0."
    if "p" in result and result["p"]["value"] >= read.LEVEL:
        return f"Not certain: p is not below {read.LEVEL:g}."
    return "Not certain: there is no interval."


def _of_attainable(systems: Mapping[str, Any], recommend: Mapping[str, Any]) -> str | None:
    main = main_metric(systems)
    top = controls.attainable(systems, recommend).get(main)
    own = [systems.get(name, {}).get(main) for name in (ALONE, JOINT)]
    if top is None or not top["value"] > 0 or not all(map(known, own)):
        return None
    alone, joint = (percent(value["value"] / top["value"], 0) for value in own)
    return (
        f"Of what is attainable here ({decimal(top['value'], 4)}) alone has {alone}, joint {joint}."
    )


def _conditions(config: Mapping[str, Any]) -> Html:
    """Sentences on the configuration that a reader must know before believing a figure."""
    settings = config.get("joint", {})
    lines = [
        "Intervals and p-values of differences draw users; the seeds are averaged first, so they "
        "do not say how far the runs of further seeds would differ."
    ]
    estimator = settings.get("ppo", {}).get("estimator")
    if estimator == "group":
        lines.append(
            "The policy learns from answers compared within their prompt's group (GRPO), without "
            "a critic."
        )
    elif estimator == "gae":
        lines.append("The policy learns by PPO with a critic (generalised advantage estimation).")
    if settings.get("encoder") == "embedding":
        lines.append(
            "A text is read as the mean of its token embeddings: a bag of tokens, without order."
        )
    elif settings.get("encoder") == "last":
        lines.append("A text is read as the mean of the base model's last hidden states.")
    if settings.get("readings"):
        lines.append(
            f"The language model was pre-trained on {settings['readings']:,} reading exercises "
            "made of this world's sentences with their gold answers. They include the sentence "
            "that a tested user says about themselves; held-out visits are not among them."
        )
    return tag("ul", *(tag("li", line) for line in lines))


def headline(run_files: RunFiles) -> tuple[str, Html, str] | None:
    """Label, figure and sentence for the top of the page, or None."""
    systems = run_files.stage(read.STAGE)
    result = read.comparison(systems, JOINT, ALONE)
    if result is None:
        return None
    if "relative" in result:
        value = figure(result["relative"], share=True, digits=1)
    else:
        value = figure(result["difference"], digits=4)
    what = wording.ranking(main_metric(systems))
    said = f"{what} of joint training over the same recommender alone. {_judged(result)}"
    return "Gain of joint training", value, said


# Guards ----------------------------------------------------------------------------------------


def _guards(joint: Joint) -> Html | None:
    parts = [_seed_guards(seed) for seed in joint.seeds if seed.verdicts()]
    summary = _rounds(joint)
    if not parts and summary is None:
        return None
    return tag("div", summary, *parts)


def _rounds(joint: Joint) -> Html | None:
    """Figures of the first and the last round, over the seeds of the run."""
    figures = joint.systems.get("rounds", {})
    said: list[Html] = []
    first, change = figures.get("planted/f1_first"), figures.get("planted/f1_difference")
    # The round that was kept, if the run recorded it, else the last one.
    last, called = figures.get("planted/f1_best"), "best"
    if not known(last):
        last, called = figures.get("planted/f1_last"), "last"
    if known(first) and known(last):
        line: list[object] = [
            "True reasons named, F1: ",
            figure(first, share=True, digits=1),
            " at the start, ",
            figure(last, share=True, digits=1),
            f" in the {called} round",
        ]
        if known(change):
            line += ["; change ", figure(change, share=True, digits=1)]
            reach = bounds(change or {})
            if reach is not None and reach[0] <= 0 <= reach[1]:
                line.append(", which may be chance")
        said.append(tag("p", *line, "."))
    stopped = figures.get("guards/stopped")
    if known(stopped) and stopped is not None:
        of = f" of {stopped['count']}" if stopped.get("count") else ""
        number = figure(stopped, digits=0, interval=False)
        said.append(tag("p", "Seeds that ended before their last round: ", number, of, "."))
    return tag("div", *said) if said else None


def _seed_guards(seed: Seed) -> Html:
    verdicts = seed.verdicts()
    # The start may break a limit and go on: that is what rounds are for.
    ends = {verdict.cause for verdict in verdicts if verdict.ends}
    if "guard" in ends:
        kind, badge = "warning", "\u25b2 a guard tripped"
    elif "patience" in ends:
        kind, badge = "info", "\u25cf stopped early, no further gain"
    elif any(verdict.cause for verdict in verdicts):
        kind, badge = "info", "\u25cf a limit was broken at the start, none later"
    else:
        kind, badge = "info", "\u25cf nothing tripped"
    best = seed.best()
    count = f"{len(seed.rounds)} round{'' if len(seed.rounds) == 1 else 's'} with the warm start"
    if best is not None:
        count += f", best round {best}"
    # The last verdict and those with a cause are open; the whole list is folded.
    lines = [tag("li", verdict.text) for verdict in verdicts[:-1]]
    shown = [tag("p", verdict.text) for verdict in verdicts[:-1] if verdict.cause]
    return tag(
        "article",
        tag(
            "h3",
            tag("span", badge, class_="badge"),
            " ",
            f"Seed {seed.name}",
            " ",
            tag("span", count, class_="count"),
        ),
        *shown,
        tag("p", verdicts[-1].text),
        tag("details", tag("summary", "Every verdict"), tag("ul", *lines, class_="examples"))
        if lines
        else None,
        class_=f"finding {kind}",
    )
