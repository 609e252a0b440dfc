"""Samples the visits exactly from the choice model, vectorised over users.

A visit is a draw from softmax(utility / tau) over the places not yet visited. Redrawing Gumbel
noise for the whole catalogue at every visit would cost visits x places. Two facts make one draw for
each state of a user's tastes enough:

*   Only the sequence term changes between visits within a state, and it depends on a place through
    its kind alone. So a choice can be split: first the kind, with probability proportional to
    exp(bonus[last, kind] / tau) times the total weight of its unvisited places, then a place of it.
*   Given the kind, the place is drawn from a softmax over what is left of that kind, which does not
    depend on the other choices. The order in which the places of a kind get used up is hence a
    Plackett-Luce order, and sorting utility / tau + Gumbel noise once draws it whole.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.people import People
from xrec_jax.data.world.streams import Purpose
from xrec_jax.data.world.utility import Utility, blocks

_EPOCH = 1_577_836_800  # 2020-01-01 00:00 UTC
_DAY = 86_400.0
_START_WINDOW_DAYS = 365.0
_LEAST_GAP = 3600.0
_MEAN_GAP_DAYS = 6.0
# Weights below exp(-600) of a row's best would underflow to "impossible".
_LEAST_LOG_WEIGHT = -600.0


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Times of the visits and drifts of the tastes, before the places are chosen.

    Attributes:
      user: `[visits]` int64, sorted.
      first: `[users + 1]` int64; visits of user u are rows `first[u]` to `first[u + 1] - 1`.
      timestamp: `[visits]` int64, seconds since 1970, increasing for each user.
      change: `[visits]` int64, number of drifts up to and including this visit.
    """

    user: np.ndarray
    first: np.ndarray
    timestamp: np.ndarray
    change: np.ndarray


def draw_timeline(config: WorldConfig, people: People) -> Timeline:
    """Samples the times of visits and the points of drift."""
    first = np.concatenate([[0], np.cumsum(people.num_visits)])
    user = np.repeat(np.arange(len(people)), people.num_visits)
    uniforms = np.empty((len(user), 2))
    for row, count in enumerate(people.num_visits):
        uniforms[first[row] : first[row + 1]] = streams.uniform(
            config.seed, Purpose.TIMES, (int(count), 2), row=row
        )
    is_first = np.zeros(len(user), bool)
    is_first[first[:-1]] = True
    change = (uniforms[:, 1] < config.drift) & ~is_first
    # Whole seconds before summing, so that the sums are exact.
    gap = np.where(
        is_first,
        _EPOCH + _START_WINDOW_DAYS * _DAY * uniforms[:, 0],
        _LEAST_GAP - _MEAN_GAP_DAYS * _DAY * np.log(uniforms[:, 0]),
    ).astype(np.int64)
    timestamp = _running_sum(gap, first)
    return Timeline(
        user=user,
        first=first,
        timestamp=timestamp // config.time_resolution * config.time_resolution,
        change=_running_sum(change.astype(np.int64), first),
    )


def _running_sum(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Cumulative sum within each user's visits."""
    total = np.cumsum(values)
    before = np.concatenate([[0], total])[first[:-1]]
    return total - np.repeat(before, np.diff(first))


def draw_choices(config: WorldConfig, utility: Utility, timeline: Timeline) -> np.ndarray:
    """Samples the place of every visit.

    Returns:
      `[visits]` int64 rows of places; no user visits a place twice.
    """
    chosen = np.empty(len(timeline.user), np.int64)
    for users in blocks(len(utility.people), len(utility.places)):
        _draw_block(config, utility, timeline, users, chosen)
    return chosen


def _draw_block(
    config: WorldConfig, utility: Utility, timeline: Timeline, users: np.ndarray, chosen: np.ndarray
) -> None:
    """Fills `chosen` for the consecutive rows `users`."""
    num_items, num_kinds = len(utility.places), len(words.KINDS)
    visits = slice(timeline.first[users[0]], timeline.first[users[-1] + 1])
    begin = timeline.first[users] - visits.start
    counts = np.diff(timeline.first)[users]
    # Gumbel noise of the choice of a kind, from a stream of each user: it does not depend on the
    # block.
    kind_noise = np.empty((visits.stop - visits.start, num_kinds))
    for row, user in enumerate(users):
        kind_noise[begin[row] : begin[row] + counts[row]] = streams.uniform(
            config.seed, Purpose.CHOICE_OF_KIND, (int(counts[row]), num_kinds), row=int(user)
        )
    kind_noise = streams.to_gumbel(kind_noise)
    bonus = utility.kind_bonus() / config.noise

    fixed = utility.fixed(users)
    seen = np.zeros((len(users), num_items), bool)
    last = np.full(len(users), -1)
    change, owner = timeline.change[visits], timeline.user[visits] - users[0]
    # State by state: within one, only the sequence term changes between visits.
    for state in range(int(change.max()) + 1):
        length = np.bincount(owner[change == state], minlength=len(users))
        rows = np.flatnonzero(length)
        length = length[rows]
        score = utility.described_taste(utility.tastes.first[users[rows]] + state)
        score = (score + fixed[rows]) / config.noise
        race = _Race(config, utility, users[rows], state, score, seen[rows], int(length.max()))
        # First visit of each user in this state.
        start = begin[rows] + np.bincount(owner[change < state], minlength=len(users))[rows]
        # One visit of all users that have one left in this state.
        for step in range(int(length.max())):
            active = np.flatnonzero(length > step)
            visit, line = start[active] + step, rows[active]
            with np.errstate(divide="ignore"):
                logits = np.log(race.mass_left(active))
            # Gumbel-max: first the kind, in proportion to its remaining weight and the sequence
            # bonus, then the next place of that kind.
            kind = np.argmax(logits + bonus[last[line]] + kind_noise[visit], axis=1)
            item = race.take(active, kind)
            chosen[visits.start + visit] = item
            seen[line, item] = True
            last[line] = kind


class _Race:
    """Plackett-Luce order of the places of each kind, and the weight that each kind has left."""

    def __init__(
        self,
        config: WorldConfig,
        utility: Utility,
        users: np.ndarray,
        state: int,
        score: np.ndarray,
        seen: np.ndarray,
        steps: int,
    ):
        """Samples the orders.

        Args:
          config: parameters of the world.
          utility: gives the kinds of places.
          users: `[n]` rows.
          state: number of the state, for the random stream.
          score: `[n, items]` utility / tau without the sequence term.
          seen: `[n, items]` bool, places already visited.
          steps: most places that are taken from a row.
        """
        kind = utility.places.kind
        noise = np.empty_like(score)
        for row, user in enumerate(users):
            noise[row] = streams.uniform(
                config.seed, Purpose.CHOICE_OF_PLACE, score.shape[1], row=int(user), sub=state
            )
        # Sorting by score plus Gumbel noise samples the whole order at once.
        key = streams.to_gumbel(noise)
        key += score
        key[seen] = -np.inf
        best = np.max(score, axis=1, where=~seen, initial=-np.inf, keepdims=True)
        weight = np.exp(np.maximum(score - best, _LEAST_LOG_WEIGHT))
        weight[seen] = 0.0

        # One column after a kind's last place stays 0: the kind is used up.
        sizes = np.minimum(np.bincount(kind, minlength=len(words.KINDS)), steps) + 1
        self._first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._used = np.zeros((len(users), len(words.KINDS)), np.int64)
        self._order = np.zeros((len(users), sizes.sum()), np.int64)
        self._mass = np.zeros((len(users), sizes.sum()))
        for index, (first, size) in enumerate(zip(self._first, sizes, strict=True)):
            items = np.flatnonzero(kind == index)
            order = np.argsort(-key[:, items], axis=1)
            ordered = np.take_along_axis(weight[:, items], order, axis=1)
            # Suffix sums, accumulated from the end: subtracting from a total would lose digits.
            left = np.cumsum(ordered[:, ::-1], axis=1)[:, ::-1]
            kept = slice(first, first + size - 1)
            self._order[:, kept] = items[order[:, : size - 1]]
            self._mass[:, kept] = left[:, : size - 1]

    def mass_left(self, rows: np.ndarray) -> np.ndarray:
        """Total weight of the unvisited places of each kind, `[rows, kinds]`."""
        return self._mass[rows[:, None], self._first + self._used[rows]]

    def take(self, rows: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Takes the next place of `kind` for each row, `[rows]`."""
        item = self._order[rows, self._first[kind] + self._used[rows, kind]]
        self._used[rows, kind] += 1
        return item
