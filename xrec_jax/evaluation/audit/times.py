"""Checks of time: ties that leave the split to file order, and training on later events."""

from __future__ import annotations

from typing import Any

import numpy as np

from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.evaluation.audit.findings import (
    MAX_EXAMPLES,
    Finding,
    Names,
    Protocol,
    Severity,
    first_rows,
    largest,
    plural,
)

_TIE_ADVICE = (
    "Report the number beside the figures; use finer timestamps if there are any; compare only "
    "with results that break ties in file order too."
)


def check_times(dataset: Dataset, split: Split, protocol: Protocol) -> list[Finding | None]:
    """Runs all checks of this module."""
    return [
        no_timestamps(dataset, protocol),
        tied_test_event(dataset, split, protocol),
        tied_held_out_border(dataset, split, protocol),
        tied_timestamps(dataset),
        held_out_before_training(dataset, split, protocol),
        global_time_leak(dataset, split, protocol),
    ]


def no_timestamps(dataset: Dataset, protocol: Protocol) -> Finding:
    """Reports missing timestamps, without which no check of time is possible."""
    events = dataset.interactions
    stands_in = "file order stands for time, and " if protocol.by_time else ""
    return Finding(
        code="no_timestamps",
        severity="warning" if protocol.by_time else "info",
        count=len(events) if events.timestamp is None else 0,
        total=len(events),
        message=f"Events without a timestamp: {stands_in}no check of time can run.",
        advice="Map a column with data.columns.timestamp, if the files have one.",
    )


def tied_timestamps(dataset: Dataset) -> Finding | None:
    """Reports events with the timestamp of the same user's previous event."""
    events = dataset.interactions
    if events.timestamp is None:
        return None
    # Sorted by user, then time: a tie is then between neighbours.
    order = np.lexsort((events.timestamp, events.user))
    user, time = events.user[order], events.timestamp[order]
    tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    per_user = np.bincount(user[1:][tied], minlength=dataset.num_users)
    size = np.bincount(user, minlength=dataset.num_users)
    names = Names(dataset)
    return Finding(
        code="tied_timestamps",
        severity="info",
        count=int(tied.sum()),
        total=len(events),
        message="Events at the same time as the same user's event before: their order in a history "
        "is that of the file, not of time.",
        advice="Use finer timestamps if there are any; doubt small gains of sequence models.",
        examples=tuple(
            f"{names.user(row)}: {per_user[row]} of {plural(size[row], 'event')}"
            for row in largest(per_user)
        ),
    )


def tied_test_event(dataset: Dataset, split: Split, protocol: Protocol) -> Finding | None:
    """Finds users whose first test event has the timestamp of the event before it."""
    if not protocol.by_time or split.train.timestamp is None:
        return None
    # The event before the test is of validation, or of training for users without validation.
    before = _joined(split.train, split.valid)
    tied = _tied(before, split.test, dataset.num_users)
    names = Names(dataset)

    def example(row: int) -> str:
        first, second = _event(before, row, -1), _event(split.test, row, 0)
        return (
            f"{names.user(row)}: {names.item(first[0])} or {names.item(second[0])} at "
            f"{_text(second[1])}"
        )

    return Finding(
        code="tied_test_event",
        severity="warning",
        count=int(tied.sum()),
        total=int(_present(split.test, dataset.num_users).sum()),
        message="Users whose test event shares its timestamp with the event before: file order "
        "decides which of the two is the test event.",
        advice=_TIE_ADVICE,
        examples=tuple(map(example, first_rows(tied))),
    )


def tied_held_out_border(dataset: Dataset, split: Split, protocol: Protocol) -> Finding | None:
    """Finds users with a tie at the beginning of validation, of the test, or of both."""
    if not protocol.by_time or split.train.timestamp is None:
        return None
    num_users = dataset.num_users
    # There are two borders, and the test may follow training directly for some users.
    at_test = _tied(_joined(split.train, split.valid), split.test, num_users)
    at_valid = _tied(split.train, split.valid, num_users)
    names = Names(dataset)
    where = {(True, False): "validation", (False, True): "test", (True, True): "both"}
    return Finding(
        code="tied_held_out_border",
        severity="warning",
        count=int((at_test | at_valid).sum()),
        total=int(_present(_joined(split.valid, split.test), num_users).sum()),
        message="Users with equal timestamps on both sides of the border before validation "
        f"({at_valid.sum():,}) or before the test ({at_test.sum():,}): file order decides which "
        "events are held out.",
        advice=_TIE_ADVICE,
        examples=tuple(
            f"{names.user(row)}: {where[bool(at_valid[row]), bool(at_test[row])]}"
            for row in first_rows(at_test | at_valid)
        ),
    )


def held_out_before_training(dataset: Dataset, split: Split, protocol: Protocol) -> Finding | None:
    """Finds held-out events that are older than a training event of the same user."""
    if split.train.timestamp is None:
        return None
    known = _present(split.train, dataset.num_users)
    latest = _extreme(split.train, dataset.num_users, last=True)
    held_out = _joined(split.valid, split.test)
    time = _times(held_out)
    # `latest` is arbitrary for users without a training event, hence the mask.
    older = known[held_out.user] & (time < latest[held_out.user])
    # An error only where the split promises the order that is broken.
    severity: Severity = "warning"
    advice = "Find out how the parts were made; leave_one_out or ratio by time avoids it."
    if protocol.by_time:
        severity, advice = "error", "A split by time must have none: do not use this split."
    elif protocol.kind == "ratio":
        severity, advice = "info", 'It comes with data.split.order="random"; "time" avoids it.'
    names = Names(dataset)
    return Finding(
        code="held_out_before_training",
        severity=severity,
        count=int(older.sum()),
        total=int(known[held_out.user].sum()),
        message="Held-out events older than a training event of the same user: the model learns "
        "from what the user did later.",
        advice=advice,
        examples=tuple(
            f"{names.pair(held_out.user[row], held_out.item[row])} at "
            f"{_text(time[row])}, training up to "
            f"{_text(latest[held_out.user[row]])}"
            for row in first_rows(older)
        ),
    )


def global_time_leak(dataset: Dataset, split: Split, protocol: Protocol) -> Finding | None:
    """Finds test events earlier than the latest training event of all users."""
    if split.train.timestamp is None or not len(split.train):
        return None
    end, time = split.train.timestamp.max(), _times(split.test)
    # Strictly: training up to the very moment of an event tells nothing of the future.
    early = time < end
    message = (
        "Test events earlier than the latest training event of all users: a model may learn from "
        "others what was not known yet."
    )
    if protocol.kind == "leave_one_out":
        message += " This comes with leave-one-out, where every user has a border of their own."
    names = Names(dataset)
    # Examples are the earliest events, where the leak is largest.
    rows = np.flatnonzero(early)
    earliest: list[int] = rows[np.argsort(time[rows], kind="stable")[:MAX_EXAMPLES]].tolist()
    return Finding(
        code="global_time_leak",
        severity="info" if protocol.kind == "leave_one_out" else "warning",
        count=int(early.sum()),
        total=len(split.test),
        message=message,
        advice="For a claim about the future, cut all users at one moment "
        '(data.split.kind="time").',
        examples=tuple(
            f"{names.pair(split.test.user[row], split.test.item[row])} at {_text(time[row])}, "
            f"training up to {_text(end)}"
            for row in earliest
        ),
    )


def _joined(*parts: Interactions) -> Interactions:
    """Concatenates users, items and timestamps, which all of them must have."""
    return Interactions(
        user=np.concatenate([events.user for events in parts]),
        item=np.concatenate([events.item for events in parts]),
        timestamp=np.concatenate([_times(events) for events in parts]),
    )


def _times(events: Interactions) -> np.ndarray:
    if events.timestamp is None:
        raise ValueError("only some parts of the split have timestamps")
    return events.timestamp


def _present(events: Interactions, num_users: int) -> np.ndarray:
    """Mask `[users]` of the users with an event."""
    return np.bincount(events.user, minlength=num_users) > 0


def _extreme(events: Interactions, num_users: int, *, last: bool) -> np.ndarray:
    """Last or first timestamp of each user, `[users]`; arbitrary for users without an event."""
    times = _times(events)
    if not len(times):
        return np.zeros(num_users, times.dtype)
    # Each user starts at the other end of the range, so that any event of theirs replaces it.
    extreme = np.full(num_users, times.min() if last else times.max())
    (np.maximum if last else np.minimum).at(extreme, events.user, times)
    return extreme


def _tied(before: Interactions, after: Interactions, num_users: int) -> np.ndarray:
    """Mask `[users]` of the users whose last timestamp in `before` equals the first in `after`."""
    equal = _extreme(before, num_users, last=True) == _extreme(after, num_users, last=False)
    return equal & _present(before, num_users) & _present(after, num_users)


def _event(events: Interactions, user: int, place: int) -> tuple[int, Any]:
    """Item and timestamp of a user's first (0) or last (-1) event."""
    row = np.flatnonzero(events.user == user)[place]
    return int(events.item[row]), _times(events)[row]


def _text(time: Any) -> str:
    """Formats a timestamp in the unit of the file, whole numbers without a fraction."""
    time = time.item()
    return str(int(time)) if time == int(time) else str(time)
