"""Checks of tables of human ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, listing
from xrec_jax.evaluation.ratings import copies

_KEYS = ("dataset", "item", "model", "rater")
_RATERS = ("rater", "rater_id", "annotator", "user")


def check_ratings(
    rows: Sequence[Mapping[str, str]], low: float = 1, high: float = 10
) -> list[Finding | None]:
    """Runs every check of this module.

    Args:
      rows: of a table with `item`, `model` and a column a scale.
      low: the least score.
      high: the largest score.
    """
    scales = [name for name in rows[0] if name not in (*_KEYS, *_RATERS)]
    return [
        out_of_scale(rows, scales, low, high),
        repeated_rows(rows, scales),
        uneven(rows),
        no_rater(rows),
    ]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def out_of_scale(
    rows: Sequence[Mapping[str, str]], scales: Sequence[str], low: float, high: float
) -> Finding:
    """Scores that are no number or outside the scale."""
    wrong = [
        f"row {place + 1}, {name}: {row[name]!r}"
        for place, row in enumerate(rows)
        for name in scales
        if not low <= _number(row[name]) <= high
    ]
    return Finding(
        "ratings/out_of_scale",
        "error",
        len(wrong),
        len(rows) * len(scales),
        f"Scores that are no number from {low:g} to {high:g}.",
        "Correct or drop them by a rule that does not look at who wrote the text.",
        tuple(wrong[:MAX_EXAMPLES]),
    )


def repeated_rows(rows: Sequence[Mapping[str, str]], scales: Sequence[str]) -> Finding:
    """Items with the very marks of another item, on every scale of every model.

    Data sets where marks that are dealt anew give nearly as many are passed over: with few marks
    and few values equal rows are no wonder.
    """
    rater = next((name for name in _RATERS if name in rows[0]), "")
    marks = [
        (
            (row.get("dataset") or "", row.get("item") or ""),
            ((row.get(rater) or "", row.get("model") or "", name), row.get(name) or ""),
        )
        for row in rows
        for name in scales
    ]
    found = copies.copies(copies.rows_of(marks))
    copied = {group: one for group, one in found.items() if one.copied}
    return Finding(
        "ratings/repeated_rows",
        "error",
        sum(one.repeated for one in copied.values()),
        sum(one.items for one in found.values()),
        "Items with the very marks of an earlier item, for all models and on all scales, far more "
        "than chance gives: these answers were copied, and intervals that take each item for an "
        "observation of its own are far too narrow.",
        "Ask where the rows come from; until then draw equal rows as one (xrec rate collect "
        "--ratings does) and report the number of distinct rows.",
        tuple(
            f"{group + ': ' if group else ''}{one}: items {listing(one.most[:4])}"
            + (" and others" if len(one.most) > 4 else "")
            for group, one in copied.items()
        )[:MAX_EXAMPLES],
    )


def uneven(rows: Sequence[Mapping[str, str]]) -> Finding:
    """Items that do not have exactly as many ratings of every model as most have."""
    counts = Counter(
        ((row.get("dataset", ""), row.get("item", "")), row.get("model", "")) for row in rows
    )
    items = list(dict.fromkeys(item for item, _ in counts))
    models = list(dict.fromkeys(model for _, model in counts))
    usual = Counter(counts.values()).most_common(1)[0][0]
    wrong = [
        f"{', '.join(filter(None, item))}: {counts[item, model]} of {model}"
        for item in items
        for model in models
        if counts[item, model] != usual
    ]
    return Finding(
        "ratings/uneven",
        "warning",
        len(wrong),
        len(items) * len(models),
        f"Items and models that do not have {usual} ratings, as most do.",
        "Compare models on the items that all of them have, item by item.",
        tuple(wrong[:MAX_EXAMPLES]),
    )


def no_rater(rows: Sequence[Mapping[str, str]]) -> Finding:
    """Whether the table says who rated."""
    known = any(name in rows[0] for name in _RATERS)
    return Finding(
        "ratings/no_rater",
        "warning",
        0 if known else len(rows),
        len(rows),
        "Ratings without the rater: agreement between raters and their severity cannot be told, "
        "and an interval over ratings takes them for independent.",
        "Keep a rater column; report Krippendorff's alpha (xrec rate collect).",
    )
