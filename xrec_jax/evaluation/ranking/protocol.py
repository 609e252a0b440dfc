"""What is ranked: a user's held-out items together, or every held-out event by itself.

With `rows` "user" the held-out items of a user are one set of targets, predicted from the events
before the first of them. With "event" each held-out event is a row of its own, predicted from all
that the user did before it, held-out events included: the next place, the one after it, and so on.
"first_event" keeps the first row of each user.

Where people come back to the same items (places), the target of a row of its own may be one that
the user has seen. With `mask_seen=False` nothing is masked, and the figures are also given for
repeats and for new items apart. With `mask_seen=True` it is masked like all that was seen, and
a miss: as the only seen item among the candidates it would give itself away.

Where every row has one target, the figures of *cold* targets, which are in no event that models
learn from, are given apart, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories

ROWS = ("user", "event", "first_event")


@dataclasses.dataclass(frozen=True)
class RankingProtocol:
    """Protocol of a ranking.

    Attributes:
      rows: one of `ROWS`.
      mask_seen: leave out the items that the user has an earlier event with.

    Raises:
      UserError: for another value of `rows`.
    """

    rows: str = "user"
    mask_seen: bool = True

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise UserError(
                f"ranking.rows={self.rows!r} is not valid{did_you_mean(self.rows, ROWS)}"
            )


class RankedRows(NamedTuple):
    """Rows of a ranking.

    Attributes:
      user: `[rows]` int32, ascending.
      history: events of all users.
      end: `[rows]`, where in `history.items` the known events of a row end.
      targets: held-out items of each row.
      repeat: `[rows]` bool, whether the target is among the known events; None for rows of users.
      cold: `[rows]` bool, whether the target is in no event that models learn from; None if a row
        has several.
    """

    user: np.ndarray
    history: Histories
    end: np.ndarray
    targets: Histories
    repeat: np.ndarray | None
    cold: np.ndarray | None


def rows_of(
    protocol: RankingProtocol,
    seen: Sequence[Interactions],
    held_out: Interactions,
    num_users: int,
    *,
    learned: Interactions | None = None,
) -> RankedRows:
    """Rows of held-out events.

    Args:
      protocol: the protocol.
      seen: events before the held-out ones, each part sorted by user, then time.
      held_out: held-out events, sorted likewise.
      num_users: number of users.
      learned: events that models learn from; None: the first part of `seen`.
    """
    learned = seen[0] if learned is None else learned
    if protocol.rows == "user":
        history = Histories.of(seen, num_users)
        # Distinct and sorted by user: an event that is repeated is one target.
        pairs = np.unique(np.stack([held_out.user, held_out.item], 1), axis=0)
        user, count = np.unique(pairs[:, 0], return_counts=True)
        start = np.concatenate([[0], np.cumsum(count)])
        targets = Histories(pairs[:, 1].astype(np.int32), start)
        cold = _cold(targets, learned) if (count == 1).all() else None
        end = history.start[user + 1]
        return RankedRows(user.astype(np.int32), history, end, targets, None, cold)
    known = Histories.of(seen, num_users).lengths
    history = Histories.of([*seen, held_out], num_users)
    # Held-out events stand behind the known ones of their user, in their order.
    count = history.lengths - known
    user = np.repeat(np.arange(num_users, dtype=np.int32), count)
    order = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    end = (history.start[:-1] + known)[user] + order
    if protocol.rows == "first_event":
        user, end = user[order == 0], end[order == 0]
    targets = Histories(history.items[end], np.arange(len(user) + 1))
    cold = _cold(targets, learned)
    return RankedRows(user, history, end, targets, _repeats(history)[end], cold)


def _cold(targets: Histories, learned: Interactions) -> np.ndarray:
    """`[rows]` bool, whether the only target of a row is in none of the events."""
    return ~np.isin(targets.items, learned.item)


def _repeats(history: Histories) -> np.ndarray:
    """`[events]` bool, whether the user has an earlier event with the same item."""
    user = np.repeat(np.arange(history.num_users, dtype=np.int64), history.lengths)
    pair = user * (int(history.items.max(initial=0)) + 1) + history.items
    _, first = np.unique(pair, return_index=True)
    repeat = np.ones(len(pair), bool)
    repeat[first] = False
    return repeat
