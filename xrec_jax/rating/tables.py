"""Text tables of collected ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.ratings.raters import remarks
from xrec_jax.evaluation.tables import text_table

Systems = Mapping[str, Mapping[str, Any]]
_AGREEMENT = "agreement"


def _cell(estimate: Mapping[str, Any] | None, digits: int = 2) -> str:
    if estimate is None or estimate["value"] is None or math.isnan(estimate["value"]):
        return "-"
    text = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return text
    return f"{text} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _table(title: str, systems: Systems, columns: Mapping[str, str], first: str = "system") -> str:
    """Table of the non-empty rows and columns, under a title; "" if there are none."""
    # A column that no row has would be all dashes.
    named = {
        metric: text
        for metric, text in columns.items()
        if any(metric in metrics for metrics in systems.values())
    }
    rows = [
        [name, *(_cell(metrics.get(m), 3 if m.endswith("/p") else 2) for m in named)]
        for name, metrics in systems.items()
        if any(metric in metrics for metric in named)
    ]
    return f"{title}\n{text_table([first, *named.values()], rows)}" if rows else ""


def matrix(systems: Systems) -> str:
    """Matrix of the shares of comparisons that the row's system won, ties counted half."""
    ratios = {}
    for name, metrics in systems.items():
        if " vs " in name and "win/ratio" in metrics:
            first, second = name.split(" vs ", 1)
            # Ties count half on both sides, so that the two shares add up to one.
            ratios[first, second] = metrics["win/ratio"]["value"]
            ratios[second, first] = 1 - metrics["win/ratio"]["value"]
    names = list(dict.fromkeys(name for pair in ratios for name in pair))
    rows = [
        [row, *(f"{ratios[row, other]:.2f}" if (row, other) in ratios else "-" for other in names)]
        for row in names
    ]
    return text_table(["won against", *names], rows) if rows else ""


def text(result: Mapping[str, Systems], *, exclude: Sequence[str] = ()) -> str:
    """Formats all tables of a result of `rate collect`.

    Args:
      result: content of `ratings.json`.
      exclude: raters excluded from the figures, to be marked.
    """
    blocks = []
    for stage, estimates in result.items():
        if stage == "raters":
            continue
        # One mapping holds single systems, comparisons of two, and the agreement of raters.
        systems = {
            name: row
            for name, row in estimates.items()
            if name != _AGREEMENT and " vs " not in name
        }
        pairs = {name: row for name, row in estimates.items() if " vs " in name}
        questions = _questions(estimates, "/mean")
        # Of several data sets each has its own result `rate/GROUP`; the group heads its tables.
        head = f"{stage.partition('/')[2]}: " if "/" in stage else ""
        blocks.append(
            _table(
                f"{head}mean ratings with 95 % intervals over items",
                systems,
                {f"{q}/mean": q for q in questions},
            )
        )
        differences: dict[str, str] = {}
        for question in questions:
            differences |= {f"{question}/difference": question, f"{question}/p": "p"}
        blocks.append(
            _table(f"{head}differences, p adjusted over pairs (Holm)", pairs, differences, "pair")
        )
        blocks.append(
            _table(
                f"{head}preferences, ties counted half",
                systems,
                {"win/ratio": "won", "win/ties": "ties", "bradley_terry/strength": "Bradley-Terry"},
            )
        )
        blocks.append(matrix(pairs))
        # `QUESTION/alpha_LEVEL` becomes a row for each question and a column for each level.
        alphas = estimates.get(_AGREEMENT, {})
        rows = {
            question: {
                metric.partition("/")[2]: value
                for metric, value in alphas.items()
                if metric.startswith(f"{question}/")
            }
            for question in dict.fromkeys(metric.partition("/")[0] for metric in alphas)
        }
        levels = {f"alpha_{level}": level for level in ("nominal", "ordinal", "interval")}
        blocks.append(
            _table(f"{head}agreement of raters, Krippendorff's alpha", rows, levels, "question")
            or f"{head}no agreement to tell: there is one rater, or none is named"
        )
    blocks.append(_raters(result.get("raters", {}), exclude))
    return "\n\n".join(block for block in blocks if block)


def _questions(systems: Systems, suffix: str) -> list[str]:
    metrics = dict.fromkeys(metric for row in systems.values() for metric in row)
    return [metric.removesuffix(suffix) for metric in metrics if metric.endswith(suffix)]


_RATERS = {
    "answers/ratings": "ratings",
    "answers/preferences": "comparisons",
    "gold/passed": "gold",
    "time/median": "seconds",
    "others/correlation": "correlation",
    "others/distance": "distance",
    "straight/same_answers": "all same",
    "straight/most_used": "commonest",
}


def _raters(raters: Systems, exclude: Sequence[str]) -> str:
    if not raters:
        return ""
    used = {m: name for m, name in _RATERS.items() if any(m in row for row in raters.values())}
    rows = []
    for name, metrics in raters.items():
        cells = []
        for metric in used:
            value = metrics.get(metric)
            # Counts are written without decimals, gold checks as passed of all.
            whole = metric.startswith("answers/") and value
            if metric == "gold/passed" and value:
                cells.append(f"{round(value['value'] * value['count'])} of {value['count']}")
            else:
                cells.append(f"{value['value']:.0f}" if whole and value else _cell(value))
        notes = (["left out"] if name in exclude else []) + remarks(metrics)
        rows.append([name, *cells, "; ".join(notes)])
    return "raters\n" + text_table(["rater", *used.values(), ""], rows)
