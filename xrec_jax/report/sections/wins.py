"""Win ratios in both orders, Bradley-Terry strengths, and the judge itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from xrec_jax.inference import judges
from xrec_jax.report import wording
from xrec_jax.report.charts.panels import grid, is_pair
from xrec_jax.report.charts.rows import Row, interval_chart, matrix
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known, percent
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "wins", "Win ratio"
HOW = "Add the stage judge to config.stages."
_JUDGE = "judge"
_BESIDE = (
    ("test/accuracy", "judge, both orders", "k0"),
    ("test/accuracy_shown", "judge, as shown", "k0"),
    ("baseline/pair_prior", "names only, as shown", "k5"),
    ("baseline/constant", "constant, as shown", "k5"),
    ("baseline/constant_both_orders", "constant, both orders", "k5"),
)


def build(run_files: RunFiles) -> Section | None:
    """None before the stage `judge` is done."""
    systems = run_files.stage("judge")
    if not systems:
        return None
    lead = judges.lead(run_files.config.get("judge", {}).get("source", ""))
    names = _systems(systems)
    cells = cells_of(systems)  # by name; the table shows labels
    square = None
    if cells:
        square = tag(
            "div",
            tag("h3", "Row against column"),
            matrix(
                [wording.label(name) for name in names],
                {
                    (wording.label(row), wording.label(column)): cell
                    for (row, column), cell in cells.items()
                },
                caption="Win ratio of the row's explainer against the column's",
            ),
        )
    return Section(
        ID,
        TITLE,
        lead,
        tag(
            "div",
            grid([_quality(systems), _strengths(run_files, systems, names)], wide=True),
            square,
            _ratios(systems, names),
            _judge(systems),
        ),
    )


def _systems(systems: Mapping[str, Any]) -> list[str]:
    """Every system that was compared, the strongest first."""
    names = [s for s in systems if s != _JUDGE and not is_pair(s)]
    for pair in systems:
        if is_pair(pair):
            names += pair.split(" vs ", 1)

    def weakness(name: str) -> float:
        # A system without a strength is placed at 0, the reference of the chart.
        strength = systems.get(name, {}).get("bradley_terry/strength")
        return -strength["value"] if known(strength) else 0.0

    return sorted(dict.fromkeys(names), key=weakness)


def cells_of(systems: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Both halves of the matrix, from the pairs that were written: B against A is 1 minus A."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for pair, metrics in systems.items():
        ratio = metrics.get("win/ratio")
        if not is_pair(pair) or not known(ratio):
            continue
        first, second = pair.split(" vs ", 1)
        notes = (
            [f"{percent(metrics['win/ties']['value'], 0)} ties"]
            if known(metrics.get("win/ties"))
            else []
        )
        if known(metrics.get("win/consistency")):
            notes.append(f"{percent(metrics['win/consistency']['value'], 0)} same in both orders")
        turned = dict(ratio, value=1 - ratio["value"])
        if ratio.get("low") is not None:
            turned |= {"low": 1 - ratio["high"], "high": 1 - ratio["low"]}
        cells[first, second] = {"ratio": ratio, "notes": notes}
        # Not over a pair that was written in this order itself.
        cells.setdefault((second, first), {"ratio": turned, "notes": notes})
    return cells


def _quality(systems: Mapping[str, Any]) -> Html | None:
    """Accuracy of the judge itself, beside guesses that read nothing."""
    judge = systems.get(_JUDGE, {})
    rows = [Row(name, colour, judge[key]) for key, name, colour in _BESIDE if known(judge.get(key))]
    return interval_chart(
        rows,
        title="Is the judge any good?",
        share=True,
        digits=1,
        axis=(0.0, 1.0),
        note="Accuracy on held-out comparisons, no prompt of which it was trained on. Worth "
        "trusting only as far as it beats the guesses that read no text: by the systems' names, "
        "and always the same answer. As shown: each comparison in the order of its file alone.",
    )


def _judge(systems: Mapping[str, Any]) -> Html | None:
    """Further figures of the judge."""
    judge, rows = systems.get(_JUDGE, {}), []
    for key in ("test/position_consistency", "test/position_bias", "test/ece", "test/log_loss"):
        if known(judge.get(key)):
            what = wording.meaning(key)
            value = figure(judge[key], share=what.share, digits=1 if what.share else 3)
            rows.append([what.label, value, what.sentence])
    if not rows:
        return None
    return tag(
        "div",
        tag("h3", "The judge itself"),
        table(
            ("On held-out comparisons", "Figure", "Meaning"),
            rows,
            caption="Figures of the judge",
            class_="meant",
        ),
    )


def _strengths(run_files: RunFiles, systems: Mapping[str, Any], names: list[str]) -> Html | None:
    key = "bradley_terry/strength"
    rows = [
        Row(wording.label(name), run_files.colour(name), systems[name][key])
        for name in names
        if known(systems.get(name, {}).get(key))
    ]
    return interval_chart(
        rows,
        title="Bradley-Terry strength",
        bars=False,
        reference=0.0,
        note="One scale for all: the gap of two systems is the log-odds that one beats the other.",
    )


def _ratios(systems: Mapping[str, Any], names: list[str]) -> Html | None:
    keys = {
        "win/ratio": "Wins",
        "win/ties": "Ties",
        "win/length_controlled": "Wins at equal length",
        "win/one_order": "Wins, one order only",
    }
    start = "win/ratio_"
    for name in names:  # parts of the prompts have ratios of their own
        for key in systems.get(name, {}):
            if key.startswith(start) and key != f"{start}soft":
                keys[key] = f"Wins, {key.removeprefix(start)}"
    keys = {k: v for k, v in keys.items() if any(known(systems.get(n, {}).get(k)) for n in names)}
    rows = [
        [wording.label(n), *(figure(systems[n].get(k), share=True, digits=1) for k in keys)]
        for n in names
        if any(known(systems.get(n, {}).get(k)) for k in keys)
    ]
    if not rows:
        return None
    return table(
        ("Explainer", *keys.values()),
        rows,
        class_="numbers",
        caption="Win ratio of every explainer against all others",
    )


def pair_verdicts(run_files: RunFiles) -> dict[tuple[str, str], list[str]]:
    """Verdicts of the judge on every pair, in words, for the browsable table.

    Returns:
      `(user, item)` to such as `tuned beats base`; `tuned and base tie` where the orders disagree.
    """
    shares: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for verdict in run_files.verdicts:
        first, second, p = verdict["first"], verdict["second"], float(verdict["p_first"])
        # Both orders of a pair share one key, so the probability is turned with the names.
        if first > second:
            first, second, p = second, first, 1 - p
        shares[verdict["user"], verdict["item"], first, second].append(p)
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (user, item, *pair), values in shares.items():
        first, second = map(wording.label, pair)
        # A win needs both orders: a verdict that turns with the order is a tie.
        if min(values) > 0.5:
            text = f"{first} beats {second}"
        elif max(values) < 0.5:
            text = f"{second} beats {first}"
        else:
            text = f"{first} and {second} tie"
        said[user, item].append(text)
    return said
