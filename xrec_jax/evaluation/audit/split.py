"""Checks of a split regardless of time: pairs in several splits, cold users and items."""

from __future__ import annotations

import numpy as np

from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.evaluation.audit.findings import (
    MAX_EXAMPLES,
    Finding,
    Names,
    Protocol,
    first_rows,
    percent,
    plural,
)

_AGAIN = "the user chose the item again, and nothing is masked (ranking.mask_seen=False)."
NEGLIGIBLE = 0.01  # share of held-out events below which cold users and items are no warning


def check_split(dataset: Dataset, split: Split, protocol: Protocol) -> list[Finding | None]:
    """Runs all checks of this module."""
    return [
        short_histories(dataset, protocol),
        users_without_test_event(dataset, split, protocol),
        cold(dataset, split, "item"),
        cold(dataset, split, "user"),
        pairs_in_training(dataset, split, protocol),
        pairs_in_valid_and_test(dataset, split, protocol),
    ]


def short_histories(dataset: Dataset, protocol: Protocol) -> Finding:
    """Finds users with fewer than three events."""
    size = np.bincount(dataset.interactions.user, minlength=dataset.num_users)
    # Three events are the least that fill training, validation and test.
    short = (size > 0) & (size < 3)
    names = Names(dataset)
    reason = {
        "leave_one_out": "they are in training only and no figure speaks of them.",
        "ratio": "they cannot fill training, validation and test.",
        "given": "little is known of them.",
        "time": "little is known of them.",
    }[protocol.kind]
    return Finding(
        code="short_histories",
        severity="info" if protocol.kind in ("given", "time") else "warning",
        count=int(short.sum()),
        total=dataset.num_users,
        message=f"Users with fewer than 3 events: {reason}",
        advice="Set data.filters.user_core=3 or more to leave them out on purpose, or report how "
        "many users were evaluated.",
        examples=tuple(
            f"{names.user(row)}: {plural(size[row], 'event')}" for row in first_rows(short)
        ),
    )


def users_without_test_event(dataset: Dataset, split: Split, protocol: Protocol) -> Finding | None:
    """Finds users without a test event in a given split; other splits have rules for them."""
    if protocol.kind not in ("given", "time"):
        return None
    untested = np.bincount(split.test.user, minlength=dataset.num_users) == 0
    names = Names(dataset)
    return Finding(
        code="users_without_test_event",
        severity="info",
        count=int(untested.sum()),
        total=dataset.num_users,
        message="Users without a test event: no test figure speaks of them.",
        advice="Report how many users were evaluated; do not compare with figures on all users.",
        examples=tuple(map(names.user, first_rows(untested))),
    )


def cold(dataset: Dataset, split: Split, kind: str) -> Finding:
    """Finds users or items with held-out events but no training event.

    Args:
      dataset: the data.
      split: split of its events.
      kind: "user" or "item".
    """
    num = dataset.num_users if kind == "user" else dataset.num_items
    rows = lambda events: getattr(events, kind)  # noqa: E731
    held_out = np.bincount(rows(split.valid), minlength=num)
    held_out += np.bincount(rows(split.test), minlength=num)
    unseen = (held_out > 0) & (np.bincount(rows(split.train), minlength=num) == 0)
    # The severity goes by the share of held-out events, since a cold user or item may have few.
    affected = int(unseen[rows(split.test)].sum())
    share = held_out[unseen].sum() / max(held_out.sum(), 1)
    names = Names(dataset)
    return Finding(
        code=f"cold_{kind}s",
        severity="warning" if share >= NEGLIGIBLE else "info",
        count=int(unseen.sum()),
        total=int((held_out > 0).sum()),
        message=f"Held-out {kind}s without a training event, {affected:,} of "
        f"{len(split.test):,} test events ({percent(affected, len(split.test))}): a model that "
        f"learns one vector for each {kind} cannot know them.",
        advice=f"Read figures against this bound, leave such {kind}s out (data.filters."
        f"{kind}_core, or the given files), or use a model that reads descriptions.",
        examples=tuple(
            f"{getattr(names, kind)(row)}: {plural(held_out[row], 'held-out event')}"
            for row in first_rows(unseen)
        ),
    )


def pairs_in_training(dataset: Dataset, split: Split, protocol: Protocol) -> Finding:
    """Finds held-out user-item pairs that are also in training."""
    valid, test = (np.unique(_pairs(events, dataset)) for events in (split.valid, split.test))
    held_out = np.union1d(valid, test)
    train = _pairs(split.train, dataset)
    # A pair may be in validation and in the test, so that the two counts may exceed the total.
    leaked = np.unique(train[_contains(held_out, train)])
    in_valid, in_test = _contains(valid, leaked), _contains(test, leaked)
    return Finding(
        code="pairs_in_training",
        severity="info" if protocol.repeats else "error",
        count=len(leaked),
        total=len(held_out),
        message="Held-out user-item pairs that stand in training too "
        f"({in_valid.sum():,} of validation, {in_test.sum():,} of the test): "
        + (_AGAIN if protocol.repeats else "the answer was learnt, or is masked as already seen."),
        advice=_leak_advice(protocol),
        examples=_pair_examples(dataset, leaked),
    )


def pairs_in_valid_and_test(dataset: Dataset, split: Split, protocol: Protocol) -> Finding:
    """Finds user-item pairs that validation and test share."""
    valid, test = (np.unique(_pairs(events, dataset)) for events in (split.valid, split.test))
    shared = test[_contains(valid, test)]
    return Finding(
        code="pairs_in_valid_and_test",
        severity="info" if protocol.repeats else "error",
        count=len(shared),
        total=len(test),
        message="Test user-item pairs that stand in validation too: "
        + (
            _AGAIN
            if protocol.repeats
            else "models are chosen on the answers, which the test then masks as already seen."
        ),
        advice=_leak_advice(protocol),
        examples=_pair_examples(dataset, shared),
    )


def _pairs(events: Interactions, dataset: Dataset) -> np.ndarray:
    """Encodes user-item pairs as integers, `[n]` int64."""
    return events.user.astype(np.int64) * dataset.num_items + events.item


def _contains(distinct: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mask `[n]` of the values that are among `[m]` ascending distinct ones."""
    if not len(distinct):
        return np.zeros(len(values), bool)
    # Values beyond the last distinct one would be out of range.
    place = np.minimum(np.searchsorted(distinct, values), len(distinct) - 1)
    return distinct[place] == values


def _pair_examples(dataset: Dataset, pairs: np.ndarray) -> tuple[str, ...]:
    names = Names(dataset)
    return tuple(names.pair(*divmod(int(pair), dataset.num_items)) for pair in pairs[:MAX_EXAMPLES])


def _leak_advice(protocol: Protocol) -> str:
    if protocol.repeats:
        return "Report repeats and new items apart, beside the user's own most frequent items."
    if protocol.kind == "given":
        return (
            "Remove these pairs from the file of the earlier part, and say so beside the figures."
        )
    return 'Set data.filters.duplicates="first" (or "last"), so that a pair stands once.'
