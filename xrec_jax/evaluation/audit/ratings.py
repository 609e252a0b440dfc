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
    """Runs all checks of this module.

    Args:
      rows: rows of a table with `item`, `model` and a column for each scale.
      low: smallest score.
      high: largest score.
    """
    # Files do not declare their scales: every column that is no key is one.
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
    """Finds scores that are no number or outside the scale."""
    wrong = [
        f"row {place + 1}, {name}: {row[name]!r}"
        for place, row in enumerate(rows)
        for name in scales
        # NaN fails both comparisons, so what is no number is outside.
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
    """Finds items with the same scores as another item, on all scales and for all models.

    Data sets in which shuffled scores give nearly as many are skipped: with few scores and few
    values, equal rows are to be expected.
    """
    # A mark is named by rater, model and scale: rows are compared mark by mark.
    rater = next((name for name in _RATERS if name in rows[0]), "")
    marks = [
        (
            (row.get("dataset") or "", row.get("item") or ""),
            ((row.get(rater) or "", row.get("model") or "", name), row.get(name) or ""),
        )
        for row in rows
        for name in scales
    ]
    by_group = copies.copies(copies.rows_of(marks))
    copied = {
        group: group_copies for group, group_copies in by_group.items() if group_copies.copied
    }
    return Finding(
        "ratings/repeated_rows",
        "error",
        sum(group_copies.repeated for group_copies in copied.values()),
        sum(group_copies.items for group_copies in by_group.values()),
        "Items with the very marks of an earlier item, for all models and on all scales, far more "
        "than chance gives: these answers were copied, and intervals that take each item for an "
        "observation of its own are far too narrow.",
        "Ask where the rows come from; until then draw equal rows as one (xrec rate collect "
        "--ratings does) and report the number of distinct rows.",
        tuple(
            f"{group + ': ' if group else ''}{group_copies}: items {listing(group_copies.most[:4])}"
            + (" and others" if len(group_copies.most) > 4 else "")
            for group, group_copies in copied.items()
        )[:MAX_EXAMPLES],
    )


def uneven(rows: Sequence[Mapping[str, str]]) -> Finding:
    """Finds items whose number of ratings of a model differs from the usual one."""
    counts = Counter(
        ((row.get("dataset", ""), row.get("item", "")), row.get("model", "")) for row in rows
    )
    items = list(dict.fromkeys(item for item, _ in counts))
    models = list(dict.fromkeys(model for _, model in counts))
    # Combinations without a rating are not in `counts` and have 0 below.
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
    """Reports a missing column of raters."""
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
