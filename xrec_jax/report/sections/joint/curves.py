"""Curves of joint training over its rounds, a line a seed, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xrec_jax.report import wording
from xrec_jax.report.charts.lines import Line, line_chart
from xrec_jax.report.charts.panels import grid
from xrec_jax.report.charts.rows import card, key
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import decimal, percent
from xrec_jax.report.joint_files import Joint, Seed, number

_COLOURS = 8


class Curve(NamedTuple):
    """A chart.

    Attributes:
      name: of the metric.
      title: of the chart.
      share: drawn in per cent.
      beside: a second metric, drawn dashed.
      digits: of values that are read off.
    """

    name: str
    title: str
    share: bool = False
    beside: tuple[str, str] | None = None
    digits: int = 4


MAIN = (
    Curve("reward/score", "Reward of a text, nats"),
    Curve("valid/gain", "Gain over alone, validation, %", True, digits=2),
    Curve("valid/log_prob_gain", "Log-probability gain, validation, nats"),
    Curve("valid/text_gain", "Gain over texts of the warm start, validation, nats"),
    Curve("valid/planted_f1", "True reasons, F1, validation, %", True, digits=1),
    Curve("ppo/kl", "KL to the reference, nats a token"),
    Curve("ppo/kl_beta", "Weight of the KL (beta)", digits=5),
    Curve("ppo/entropy", "Entropy, nats a token", digits=3),
    Curve("rollout/length", "Answer length, tokens", digits=1),
    Curve("rollout/ended", "Answers that end by themselves, %", True, digits=1),
    Curve("cache/staleness", "Age of the explanations in use, rounds", digits=2),
)
_GROUPS = (("reward/", "Parts of the reward"), ("monitor/", "Monitors against cheating"))


def colour(place: int) -> str:
    """Of a seed."""
    return f"k{place % _COLOURS}"


def build(joint: Joint) -> Html | None:
    """Charts over the rounds; None where no round was logged."""
    scores = [
        Curve(
            name,
            f"{wording.ranking(name)}, validation",
            beside=(name.replace("/", "/alone_"), "alone"),
        )
        for name in joint.names("valid/ndcg@")
    ]
    charts = grid(_chart(joint.seeds, curve) for curve in (*MAIN[:5], *scores, *MAIN[5:]))
    # Parts of the reward and monitors are many: a folded block for each group.
    shown = {curve.name for curve in MAIN}
    more = []
    for start, title in _GROUPS:
        names = [name for name in joint.names(start) if name not in shown]
        drawn = grid(_chart(joint.seeds, Curve(name, _title(name))) for name in names)
        if drawn is not None:
            more.append(tag("details", tag("summary", title), drawn))
    return tag("div", charts, *more) if charts is not None or more else None


def _title(name: str) -> str:
    return wording.humanised(name.partition("/")[2].replace("/", ": "))


def _chart(seeds: Sequence[Seed], curve: Curve) -> Html | None:
    lines = []
    for name, label, style in (
        (curve.name, "", ""),
        *([(curve.beside[0], f", {curve.beside[1]}", " dashed")] if curve.beside else []),
    ):
        for place, seed in enumerate(seeds):
            x, y = seed.curve(name)
            # Titles of shares say "%", and the axis has no unit of its own.
            if curve.share:
                y = [100 * value for value in y]
            lines.append(Line(f"seed {seed.name}{label}", colour(place) + style, x, y))
    return line_chart(lines, title=curve.title, x_label="round", digits=curve.digits, whole_x=True)


# Time ------------------------------------------------------------------------------------------

_PHASES = ("rollout", "scoring", "ppo", "encoding", "recommender", "evaluation")


def phases(joint: Joint) -> list[str]:
    """Names of `time/...`, in the order in which a round goes through them."""
    phases = [name.partition("/")[2] for name in joint.names("time/")]
    return [p for p in _PHASES if p in phases] + [p for p in phases if p not in _PHASES]


def _phase(name: str) -> str:
    return "PPO" if name == "ppo" else wording.humanised(name)


def seconds(seed: Seed, phase: str) -> tuple[float, float]:
    """Mean seconds a round, and all seconds; the start counts in the mean where it is alone."""
    of = {int(r["round"]): number(r.get(f"time/{phase}")) or 0.0 for r in seed.rounds}
    # Round 0 is the warm start, not a round of training.
    later = [value for at, value in of.items() if at > 0] or list(of.values())
    return sum(later) / max(1, len(later)), sum(of.values())


def time(joint: Joint) -> Html | None:
    """A bar a seed and a table; None where no time was logged."""
    order = phases(joint)
    seeds = [s for s in joint.seeds if any(seconds(s, phase)[1] > 0 for phase in order)]
    if not seeds:
        return None
    # All bars on one scale: the slowest seed fills the width.
    longest = max(sum(seconds(s, p)[0] for p in order) for s in seeds)
    bars = [_bar(seed, order, longest) for seed in seeds]
    legend = tag("div", *(key(colour(n), _phase(p)) for n, p in enumerate(order)), class_="legend")
    rows = []
    totals = [sum(seconds(s, p)[0] for s in seeds) / len(seeds) for p in order]
    whole = sum(totals)
    for phase, mean in zip(order, totals, strict=True):
        every = sum(seconds(s, phase)[1] for s in seeds)
        share = percent(mean / whole) if whole else "-"
        rows.append([_phase(phase), decimal(mean, 2), share, decimal(every, 1)])
    every = sum(seconds(s, p)[1] for s in seeds for p in order)
    rows.append(["All", decimal(whole, 2), percent(1.0) if whole else "-", decimal(every, 1)])
    return tag(
        "div",
        card(
            "Seconds a round",
            "Mean of a seed's rounds after the start.",
            tag("ul", *bars, class_="intervals", role="list"),
            legend,
        ),
        table(
            ("Phase", "Seconds a round", "Share", "Seconds, all rounds and seeds"),
            rows,
            caption="Seconds of the phases of a round",
            class_="numbers",
        ),
    )


def _bar(seed: Seed, order: Sequence[str], longest: float) -> Html:
    at, marks, said = 0.0, [], []
    for place, phase in enumerate(order):
        mean = seconds(seed, phase)[0]
        width = 100 * mean / longest if longest else 0.0
        if mean > 0:
            caption = f"{_phase(phase)} {decimal(mean, 2)} s"
            marks.append(
                tag(
                    "rect",
                    tag("title", caption),
                    x=f"{at:.2f}%",
                    y=3,
                    width=f"{width:.2f}%",
                    height=18,
                    class_=f"part {colour(place)}",
                )
            )
            said.append(caption)
        at += width
    total = sum(seconds(seed, phase)[0] for phase in order)
    drawing = tag(
        "svg",
        *marks,
        height=24,
        class_="track",
        role="img",
        aria_label=f"seed {seed.name}: {', '.join(said)}",
    )
    return tag(
        "li",
        tag("span", f"seed {seed.name}", class_="label"),
        drawing,
        tag("span", f"{decimal(total, 2)} s a round", class_="value"),
    )
