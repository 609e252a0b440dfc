"""Checks of a data set as a whole, regardless of its split."""

from __future__ import annotations

import numpy as np
import polars as pl

from xrec_jax.data import filters
from xrec_jax.data.dataset import Dataset
from xrec_jax.evaluation.audit.findings import (
    MAX_EXAMPLES,
    Finding,
    Names,
    first_rows,
    largest,
    listing,
    percent,
    plural,
)


def check_dataset(dataset: Dataset, unfiltered: Dataset | None = None) -> list[Finding | None]:
    """Runs all checks of this module.

    Args:
      dataset: data that models are trained on.
      unfiltered: see `duplicate_pairs`.
    """
    return [
        duplicate_pairs(dataset, unfiltered),
        single_event_users(dataset),
        no_descriptions(dataset),
        without_description(dataset, "user"),
        without_description(dataset, "item"),
        constant_rating(dataset),
        concentration(dataset),
        sparsity(dataset),
    ]


def duplicate_pairs(dataset: Dataset, unfiltered: Dataset | None = None) -> Finding:
    """Finds events that repeat a user-item pair, within each split if the data came split.

    The count is that of the files: the notes of the data set tell the repeats that filters dropped.

    Args:
      dataset: data that models are trained on.
      unfiltered: the same files read without filters, for examples; by default they come from
        `dataset`, which has none if repeats were dropped.
    """
    source = dataset if unfiltered is None else unfiltered
    events = source.interactions
    part = np.zeros(len(events), np.int8)
    if source.splits is not None:
        sizes = [len(part_events) for part_events in source.splits.values()]
        # Events of data that came split are stored one split after the other.
        part = np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)
    # Repeats are counted per user, item and split, encoded in one integer.
    rows = np.flatnonzero(filters.repeated(events, part, "first"))
    key = part[rows].astype(np.int64) * source.num_users + events.user[rows]
    distinct, repeats = np.unique(key * source.num_items + events.item[rows], return_counts=True)
    part_user, item = np.divmod(distinct, source.num_items)
    user = part_user % source.num_users
    names = Names(source)
    notes = dataset.notes
    # Repeats that the filters dropped do no harm to this run, so they are information only.
    dropped = notes.get("duplicates_dropped", 0)
    if dropped:
        fate = "The filters drop these and keep one event of each pair."
        advice = (
            "Say so beside the figures: other software may keep them. If repeats mean something "
            'here, such as a second visit, set data.filters.duplicates="keep".'
        )
    else:
        fate = "They are kept: a pair may come to stand in training and in a held-out part."
        advice = 'Set data.filters.duplicates="first" (or "last"), unless a repeat is a new choice.'
    return Finding(
        code="duplicate_pairs",
        severity="info" if dropped else "warning",
        count=max(dropped, notes.get("duplicates_kept", 0), len(rows)),
        total=len(dataset.interactions)
        + sum(count for note, count in notes.items() if note.endswith("_dropped")),
        message=f"Events of the files that repeat the user and item of another one. {fate}",
        advice=advice,
        examples=tuple(
            f"{names.pair(user[row], item[row])}: {repeats[row] + 1} times"
            for row in largest(repeats)
        ),
    )


def single_event_users(dataset: Dataset) -> Finding:
    """Finds users with one event."""
    single = np.bincount(dataset.interactions.user, minlength=dataset.num_users) == 1
    names = Names(dataset)
    return Finding(
        code="single_event_users",
        severity="info",
        count=int(single.sum()),
        total=dataset.num_users,
        message="Users with one event: nothing before it explains it, nothing after it tests it.",
        advice="Remove them with data.filters.user_core=2 or more, if they are not wanted.",
        examples=tuple(map(names.user, first_rows(single))),
    )


def no_descriptions(dataset: Dataset) -> Finding:
    """Reports missing tables of users and items."""
    tables = {"users": dataset.users, "items": dataset.items}
    missing = [kind for kind, table in tables.items() if table is None]
    return Finding(
        code="no_descriptions",
        severity="info",
        count=len(missing),
        total=2,
        message=f"No table describes the {listing(missing)}: a text can name their ids only.",
        advice=f"Set {listing([f'data.{kind}' for kind in missing])} to a CSV or Parquet table, or "
        "for atomic files add .user and .item, if explanations are to be written.",
    )


def without_description(dataset: Dataset, kind: str) -> Finding | None:
    """Finds users or items without a row in the description table, or with an empty one.

    Args:
      dataset: the data.
      kind: "user" or "item".
    """
    table, ids = (
        (dataset.users, dataset.user_ids) if kind == "user" else (dataset.items, dataset.item_ids)
    )
    if table is None:
        return None
    if table.width:
        checked = table.select(pl.all_horizontal(map(_is_empty, table.schema.items())))
        empty = checked.to_series().to_numpy()
        count = int(empty.sum())
    else:  # a table of ids alone: only the number is known, from the notes
        empty = np.zeros(len(ids), bool)
        count = dataset.notes.get(f"{kind}s_without_description", 0)
    return Finding(
        code=f"{kind}s_without_description",
        severity="warning",
        count=count,
        total=len(ids),
        message=f"{kind.capitalize()}s without a description: a text about them can only invent.",
        advice=f"Complete the table of {kind}s, or leave these {kind}s out of explanations.",
        examples=tuple(f"{kind} {ids[row]}" for row in first_rows(empty)),
    )


def _is_empty(column: tuple[str, pl.DataType]) -> pl.Expr:
    """Expression that is true for empty cells of a column."""
    name, kind = column
    nothing = pl.col(name).is_null()
    if kind == pl.String:
        nothing |= pl.col(name) == ""
    elif isinstance(kind, pl.List):
        nothing |= pl.col(name).list.len() == 0
    return nothing.fill_null(True)


def constant_rating(dataset: Dataset) -> Finding | None:
    """Reports that all ratings are equal."""
    rating = dataset.interactions.rating
    if rating is None or not len(rating):
        return None
    constant = bool((rating == rating[0]).all())
    return Finding(
        code="constant_rating",
        severity="info",
        count=len(rating) if constant else 0,
        total=len(rating),
        message=f"Every rating is {rating[0]:g}: ratings say nothing about preference.",
        advice="Treat the events as implicit feedback; data.filters.min_rating has no use here.",
    )


def concentration(dataset: Dataset) -> Finding:
    """Reports the share of events on the most popular 1 % of items, and the Gini coefficient."""
    counts = np.bincount(dataset.interactions.item, minlength=dataset.num_items)
    ascending = np.sort(counts)
    # Rounded up, so that a small catalogue has at least one most popular item.
    top = -(-dataset.num_items // 100)
    names = Names(dataset)
    total = len(dataset.interactions)
    return Finding(
        code="popularity_concentration",
        severity="info",
        count=int(ascending[dataset.num_items - top :].sum()),
        total=total,
        message=f"Events on the most popular 1 % of items ({top:,} of "
        f"{dataset.num_items:,}); Gini coefficient of events over items {gini(ascending):.2f}.",
        advice="Compare with the popularity baseline before crediting a model with taste.",
        examples=tuple(
            f"{names.item(row)}: {plural(counts[row], 'event')} ({percent(counts[row], total)})"
            for row in largest(counts)[: min(top, MAX_EXAMPLES)]
        ),
    )


def gini(ascending: np.ndarray) -> float:
    """Gini coefficient: 0 for equal values, towards 1 if one has everything.

    Args:
      ascending: `[n]` values, not negative, sorted.
    """
    n, total = len(ascending), float(ascending.sum())
    if not total:
        return 0.0
    # G = 2 sum_i i x_i / (n sum_i x_i) - (n + 1) / n, with x ascending and i from 1.
    place = np.arange(1, n + 1, dtype=np.float64)
    return float(2 * (place @ ascending) / (n * total) - (n + 1) / n)


def sparsity(dataset: Dataset) -> Finding:
    """Reports the share of all user-item pairs with an event."""
    events = dataset.interactions
    # Products of row numbers exceed 32 bits even in catalogues of moderate size.
    pair = events.user.astype(np.int64) * dataset.num_items + events.item
    per_user = np.bincount(events.user, minlength=dataset.num_users)
    per_item = np.bincount(events.item, minlength=dataset.num_items)
    return Finding(
        code="sparsity",
        severity="info",
        count=len(np.unique(pair)),
        total=dataset.num_users * dataset.num_items,
        message=f"User-item pairs with an event; the median user has {np.median(per_user):g} "
        f"events, the median item {np.median(per_item):g}.",
        advice="Where medians are small, raise data.filters.user_core and item_core or expect wide "
        "intervals.",
    )
