"""Splits events into training, validation and test: by user, at one moment, or as given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data import time_splits
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.readers import options

KINDS = ("leave_one_out", "ratio", "time", "given")
VALIDATIONS = ("part", "last")
ORDERS = ("time", "random")
SPLITS = ("train", "valid", "test")
_TRAIN, _VALID, _TEST = range(3)


def split(dataset: Dataset, config: object) -> Split:
    """Splits a data set.

    Args:
      dataset: a data set, as returned by `load`.
      config: `kind` in `KINDS` (if absent or "": "given" for a data set with given splits, else
        "leave_one_out"); for "ratio" also `ratios`, `order` in `ORDERS` and `seed`; for "time"
        `at`, `valid_at` and `unseen_users`, see `time_splits.by_time`; for "given" `validation`,
        see `from_files`.

    Returns:
      Three splits, each sorted by user, then time, ties in file order; without timestamps file
      order stands for time.

    Raises:
      UserError: if a value of the config is invalid, or a split is missing or empty.
    """
    default = "leave_one_out" if dataset.splits is None else "given"
    kind = options.option(config, "kind", "") or default
    kind = options.choice({"kind": kind}, "kind", default, KINDS)
    validation = options.choice(config, "validation", "part", VALIDATIONS)
    if kind == "given":
        result = from_files(dataset, validation=validation)
    elif kind == "leave_one_out":
        result = leave_one_out(dataset.interactions)
    elif kind == "time":
        result = time_splits.by_time(
            _by_user(dataset.interactions)[0],
            at=str(options.option(config, "at", "")),
            valid_at=str(options.option(config, "valid_at", "0.9")),
            unseen_users=options.choice(config, "unseen_users", "keep", time_splits.UNSEEN_USERS),
        )
    else:
        result = ratio(
            dataset.interactions,
            ratios=options.option(config, "ratios", (0.8, 0.1, 0.1)),
            order=options.choice(config, "order", "time", ORDERS),
            seed=options.number(config, "seed", 0, integer=True),
        )
    # An empty split would only show hours later, as a figure without events.
    for name in SPLITS:
        if not len(getattr(result, name)):
            reason = {
                "leave_one_out": "no user has 3 events",
                "ratio": "too few events a user for these ratios",
                "time": "move split.at or split.valid_at",
                "given": "its file has no events, or the filters removed them",
            }[kind]
            raise UserError(f"{dataset.name}: split {kind!r} leaves {name!r} empty ({reason})")
    return dataclasses.replace(result, kind=kind)


def leave_one_out(events: Interactions) -> Split:
    """Holds out each user's last event for the test and the one before for validation.

    Users with fewer than 3 events are in training only. `tied_users` counts the users with held-out
    events whose last two events have equal timestamps: file order then decides which of them is the
    test event. (A tie between the validation event and the one before it is not counted.)
    """
    events, from_start, count = _by_user(events)
    held_out = count >= 3
    from_end = count - 1 - from_start
    assigned = np.full(len(events), _TRAIN, np.int8)
    assigned[held_out & (from_end == 0)] = _TEST
    assigned[held_out & (from_end == 1)] = _VALID
    return _assemble(events, assigned)


def ratio(
    events: Interactions,
    *,
    ratios: Iterable[float] = (0.8, 0.1, 0.1),
    order: str = "time",
    seed: int = 0,
) -> Split:
    """Divides each user's events in the given proportions.

    Of n events the test gets floor(n r_test), or 1 if n r_test lies between 0 and 1; validation
    likewise; training the rest, but at least 1. With too few events the test comes first.

    Args:
      events: all events.
      ratios: shares of training, validation and test; their sum is 1.
      order: "time": training gets the earliest, test the latest events; "random": a seeded shuffle.
      seed: seed of the shuffle.

    Returns:
      The split; `tied_users` counts, for "time", the users whose first test event has the timestamp
      of the event before it.

    Raises:
      UserError: if the ratios are not three shares of 1.
    """
    _, valid, test = _shares(ratios)
    by_time, from_start, count = _by_user(events)
    position = from_start
    if order == "random":
        # A random rank within each user; `by_time.user` is sorted, so the shuffle stays inside
        # users.
        shuffle = np.lexsort((np.random.default_rng(seed).random(len(events)), by_time.user))
        position = np.empty_like(from_start)
        position[shuffle] = from_start
    # Held-out events are taken from the end of each user's order: test last, validation before it.
    num_test = _split_size(count, test, count)
    num_valid = _split_size(count, valid, count - num_test)
    assigned = np.full(len(events), _TRAIN, np.int8)
    assigned[position >= count - num_test - num_valid] = _VALID
    assigned[position >= count - num_test] = _TEST
    result = _assemble(by_time, assigned)
    if order == "random":
        return Split(train=result.train, valid=result.valid, test=result.test)
    return result


def from_files(dataset: Dataset, *, validation: str = "part") -> Split:
    """Takes the splits of the files.

    Args:
      dataset: a data set with given splits.
      validation: source of the validation events, in `VALIDATIONS`: "part", their own file; or
        "last", each user's last training event, for published splits without such a file. Users
        with one training event keep it.

    Raises:
      UserError: if the data set has no given splits, or one of them is missing.
    """
    if dataset.splits is None:
        raise UserError(
            f"{dataset.name}: kind='given' needs files for {', '.join(SPLITS)}; the data set has "
            "one file, use 'leave_one_out' or 'ratio'"
        )
    names, needed = ", ".join(dataset.splits), set(SPLITS)
    if validation == "last":
        needed.discard("valid")
        if "valid" in dataset.splits:
            raise UserError(
                f"{dataset.name}: split.validation='last' is for files without a 'valid' part; "
                f"found {names}"
            )
    for split in SPLITS:
        if split in needed and split not in dataset.splits:
            last = "split.validation='last' holds out each user's last training event, "
            raise UserError(
                f"{dataset.name}: no {split!r} part for kind='given'; found {names} "
                f"({last if split == 'valid' and 'test' in dataset.splits else ''}"
                "split.kind='leave_one_out' splits all events anew)"
            )
    # The events of each split are sorted like those of the other kinds.
    train, test = (_by_user(dataset.splits[split]) for split in ("train", "test"))
    if validation == "last":
        events, from_start, count = train
        held_out = (count >= 2) & (from_start == count - 1)
        return Split(train=events.take(~held_out), valid=events.take(held_out), test=test[0])
    return Split(train=train[0], valid=_by_user(dataset.splits["valid"])[0], test=test[0])


def _by_user(events: Interactions) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Sorts events by user, then time.

    Returns:
      The sorted events, `[n]` position of each among its user's events, and `[n]` number of those.
    """
    if events.timestamp is None:
        order = np.argsort(events.user, kind="stable")
    else:
        order = np.lexsort((events.timestamp, events.user))
    events = events.take(order)
    counts = np.bincount(events.user)
    starts = np.cumsum(counts) - counts
    from_start = np.arange(len(events)) - starts[events.user]
    return events, from_start, counts[events.user]


def _assemble(events: Interactions, assigned: np.ndarray) -> Split:
    """Builds the split from the assignment of sorted events, and counts ties before the test."""
    ties = 0
    if events.timestamp is not None:
        # A user's first event is always in training, so the event before is the same user's.
        starts_test = (assigned[1:] == _TEST) & (assigned[:-1] != _TEST)
        same_time = events.timestamp[1:] == events.timestamp[:-1]
        ties = int((starts_test & same_time).sum())
    train, valid, test = (events.take(assigned == which) for which in (_TRAIN, _VALID, _TEST))
    return Split(train=train, valid=valid, test=test, tied_users=ties)


def _shares(ratios: Iterable[float]) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(share) for share in ratios)
    except (TypeError, ValueError):
        raise UserError(f"ratios={ratios!r} must be three numbers, train, valid, test") from None
    if min(train, valid, test) < 0 or not abs(train + valid + test - 1) < 1e-6:
        raise UserError(f"ratios={ratios!r} must be shares of 1, for example (0.8, 0.1, 0.1)")
    return train, valid, test


def _split_size(count: np.ndarray, share: float, room: np.ndarray) -> np.ndarray:
    """Number of a user's `count` events that a held-out split gets, less than `room`."""
    exact = count * share
    # 0.1 * 30 and its like may fall just short of the integer they stand for.
    size = np.floor(exact + 1e-9).astype(np.int64)
    size[(size == 0) & (exact > 0)] = 1
    return np.minimum(size, room - 1)
