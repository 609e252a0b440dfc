"""Text tables of `evaluation.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("test/ndcg@10", "test/hit@10", "test/recall@20", "test/mrr@10", "test_unmasked/ndcg@10")


def cell(estimate: Mapping[str, Any] | None) -> str:
    """A figure with its interval: `.1040 [.0921, .1163]`."""
    if estimate is None or estimate["value"] is None or math.isnan(estimate["value"]):
        return "-"
    number = lambda x: f"{x:.4f}".removeprefix("0")  # noqa: E731
    if estimate["low"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()  # noqa: E731
    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def ranking_table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a system; seen items masked except in the last column; 95 % intervals."""
    header = ["system", *COLUMNS]
    rows = [[name, *(cell(found.get(c)) for c in COLUMNS)] for name, found in systems.items()]
    return text_table(header, rows)
