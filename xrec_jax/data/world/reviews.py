"""Reviews: what users write of the places they visited, in their own words.

A review speaks of the kind, cuisine and mood of the place as far as the user has a taste for them,
and of nothing else. It is true, so who reads a user's reviews learns tastes that the visits alone
only hint at.
"""

from __future__ import annotations

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.streams import Purpose
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.data.world.utility import Utility

_TASTES = ("kind", "cuisine", "mood")
_LIKED = {
    "kind": ("always happy in a {value}", "my favourite sort of {value}", "I love a good {value}"),
    "cuisine": ("the {value} dishes were a joy", "could eat {value} food daily", "lovely {value}"),
    "mood": ("so {value}, just right", "loved how {value} it was", "wonderfully {value}"),
}
_DISLIKED = {
    "kind": ("never again a {value}", "a {value} bores me", "should have skipped the {value}"),
    "cuisine": ("{value} food is not for me", "did not enjoy the {value} dishes", "sadly {value}"),
    "mood": ("far too {value} for me", "so {value}, I left early", "annoyingly {value}"),
}
_NEUTRAL = ("it was all right", "an ordinary visit", "nothing special to report", "fine")
_DRAWS = 2 + 2 * len(_TASTES)


def write_reviews(
    config: WorldConfig, utility: Utility, users: np.ndarray, items: np.ndarray, states: np.ndarray
) -> list[str]:
    """The review of each visit; empty where none was written.

    Args:
      config: `review_share` is used.
      utility: of the world.
      users: `[visits]` rows, sorted.
      items: `[visits]` rows of the places.
      states: `[visits]` rows of the tastes at the visit.
    """
    draws = np.empty((len(users), _DRAWS))
    start = np.flatnonzero(np.diff(users, prepend=-1))
    for first, last in zip(start, [*start[1:], len(users)], strict=True):
        draws[first:last] = streams.uniform(
            config.seed, Purpose.REVIEWS, (last - first, _DRAWS), row=int(users[first])
        )
    affinity = np.stack([utility.affinity(name, states, items) for name in _TASTES], axis=1)
    return [
        _review(utility, int(item), likes, row) if row[0] < config.review_share else ""
        for item, likes, row in zip(items, affinity, draws, strict=True)
    ]


def _review(utility: Utility, item: int, likes: np.ndarray, draws: np.ndarray) -> str:
    places = utility.places
    parts = []
    for column, name in enumerate(_TASTES):
        if not likes[column]:
            continue
        how, which = draws[2 + 2 * column], draws[3 + 2 * column]
        said = {
            "kind": KIND_WORDS[words.KINDS[places.kind[item]]],
            "cuisine": (words.CUISINES[places.cuisine[item]],),
            "mood": MOOD_WORDS[words.MOODS[places.mood[item]]],
        }[name]
        phrases = (_LIKED if likes[column] > 0 else _DISLIKED)[name]
        phrase = phrases[int(how * len(phrases))]
        parts.append(phrase.format(value=said[int(which * len(said))]))
    if not parts:
        return _NEUTRAL[int(draws[1] * len(_NEUTRAL))]
    if draws[1] < 0.5:
        parts.reverse()
    return ", ".join(parts)
