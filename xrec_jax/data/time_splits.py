"""A split at one moment for all users: what is known before it, and what comes after."""

from __future__ import annotations

import datetime

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.clock import ticks_per_second
from xrec_jax.data.dataset import Interactions, Split

UNSEEN_USERS = ("keep", "drop")


def by_time(
    events: Interactions, *, at: str, valid_at: str = "0.9", unseen_users: str = "keep"
) -> Split:
    """Holds out the events of all users from one moment on.

    Training is what came before `valid_at`, validation what came between it and `at`, the test what
    came from `at` on. No event is in an earlier part than one of an earlier time, so nothing that a
    model learns from, or reads as history, comes after what it is tested on.

    Args:
      events: all events, sorted by user, then time.
      at: where the test begins. A share of the events ("0.8"): equal times stay together, in the
        later part. Or a moment: a number in the file's own unit, or a date with or without a time
        ("2012-11-09 21:54:47"), in UTC, for times since 1970; see `clock.ticks_per_second`.
      valid_at: where validation begins, likewise; a share is one of the events before `at`.
      unseen_users: what happens to held-out events of users without a training event: "keep", or
        "drop", which counts the users in `dropped_users`.

    Raises:
      UserError: if there are no times, or a moment cannot be read or lies in the wrong order.
    """
    if events.timestamp is None:
        raise UserError("split.kind='time' needs a column of times, and the events have none")
    if not at:
        raise UserError(
            "split.kind='time' needs split.at: a share of the events such as 0.8, a number in the "
            "unit of the times, or a date such as 2012-11-09"
        )
    time = events.timestamp
    test_from = _moment("at", at, time)
    known = time < test_from
    if not known.any():
        raise UserError(f"split.at={at}: no event is earlier")
    valid_from = _moment("valid_at", valid_at, time[known])
    if valid_from > test_from:
        raise UserError(f"split.valid_at={valid_at} lies behind split.at={at}")
    train = events.take(time < valid_from)
    held_out = [events.take(known & (time >= valid_from)), events.take(~known)]
    dropped = 0
    if unseen_users == "drop":
        trained = np.unique(train.user)
        unseen = np.setdiff1d(np.concatenate([part.user for part in held_out]), trained)
        dropped = len(unseen)
        held_out = [part.take(np.isin(part.user, trained)) for part in held_out]
    return Split(train=train, valid=held_out[0], test=held_out[1], dropped_users=dropped)


def _moment(key: str, text: str, time: np.ndarray) -> float | int:
    """The moment that `text` names, in the unit of `time`, `[events]`.

    Raises:
      UserError: if it is neither a number nor a date.
    """
    try:
        number: float = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return _date(key, text, ticks_per_second(time))
    if not isinstance(number, int) and 0.0 < number < 1.0:
        return np.sort(time)[min(round(number * len(time)), len(time) - 1)]
    if number != number or number in (float("inf"), float("-inf")):
        raise UserError(f"split.{key}={text} must be a share, a finite number or a date")
    return number


def _date(key: str, text: str, ticks: int) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"split.{key}={text!r} is neither a share of the events, a number, nor a date such as "
            "2012-11-09 or '2012-11-09 21:54:47'"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    # In whole microseconds, so that no rounding moves an event to the other side.
    return since // datetime.timedelta(microseconds=1) * ticks // 10**6
