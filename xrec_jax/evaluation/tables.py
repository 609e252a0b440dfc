"""Text tables of `evaluation.json`."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.ranking.metrics import main_cutoff
from xrec_jax.evaluation.statistics.intervals import Estimate

_NDCG = re.compile(r"test/ndcg@(\d+)")


def ranking_columns(systems: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Metrics of a table of recommenders, at the cut-offs that were evaluated."""
    names = {name for figures in systems.values() for name in figures}
    ks = [int(match[1]) for match in map(_NDCG.fullmatch, names) if match]
    # Recall is commonly reported at 20; without that cut-off the longest list comes nearest.
    k, last = main_cutoff(ks), 20 if 20 in ks else max(ks, default=20)
    columns = (f"test/ndcg@{k}", f"test/hit@{k}", f"test/recall@{last}", f"test/mrr@{k}")
    # Where nothing is masked, repeats and new items stand apart instead; Hit@1 is their accuracy.
    apart = ("test/hit@1", f"test_repeat/ndcg@{k}", f"test_new/ndcg@{k}")
    cold = tuple(name for name in (f"test_cold/ndcg@{k}",) if name in names)
    if names & set(apart[1:]):
        return (*columns, *(name for name in apart if name in names), *cold)
    return (*columns, f"test_unmasked/ndcg@{k}", *cold)


def cell(estimate: Mapping[str, Any] | None) -> str:
    """Formats an estimate with its interval as `.1040 [.0921, .1163]`."""
    # An undefined value is a dash, as a zero would read like a result.
    if estimate is None or estimate["value"] is None or math.isnan(estimate["value"]):
        return "-"
    number = lambda x: f"{x:.4f}".removeprefix("0")  # noqa: E731
    if estimate["low"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with left-aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()  # noqa: E731
    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def ranking_table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of recommenders with 95 % intervals."""
    columns = ranking_columns(systems)
    rows = [[name, *(cell(figures.get(c)) for c in columns)] for name, figures in systems.items()]
    return text_table(["system", *columns], rows)


def figures_table(table: dict[str, dict[str, Estimate]]) -> str:
    """Table of the metrics of base and tuned model."""
    # Explainers may differ in their metrics; a column stands where its metric first occurs.
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [
        [system, *(f"{row[name]['value']:.3f}" if name in row else "-" for name in names)]
        for system, row in table.items()
    ]
    return text_table(["explainer", *names], rows)


def side_by_side(record: dict[str, Any], *, width: int = 46) -> str:
    """Formats base and tuned answer in two columns."""
    columns = [textwrap.wrap(record[name], width) or ["(nothing)"] for name in ("base", "tuned")]
    height = max(map(len, columns))
    lines = [f"{'base':<{width}} | tuned", f"{'-' * width}-+-{'-' * width}"]
    for row in range(height):
        left, right = (column[row] if row < len(column) else "" for column in columns)
        lines.append(f"{left:<{width}} | {right}".rstrip())
    return "\n".join(lines)
