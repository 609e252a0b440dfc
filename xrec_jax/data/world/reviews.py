"""Texts in the users' own words: reviews of places, and a line about themselves.

A review mentions the kind, cuisine and mood of the place if the user has a taste for them. Some add
an aside on another taste, often a dislike that the visits never show. All statements are true, so
the texts reveal tastes that the visits alone only hint at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.people import TASTE_SLICES, TASTE_WORDS, named_tastes
from xrec_jax.data.world.streams import Purpose
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.data.world.utility import Utility

_Phrases = dict[str, tuple[str, ...]]
_LIKED: _Phrases = {
    "kind": ("always happy in a {value}", "my favourite sort of {value}", "I love a good {value}"),
    "cuisine": ("the {value} dishes were a joy", "could eat {value} food daily", "lovely {value}"),
    "mood": ("so {value}, just right", "loved how {value} it was", "wonderfully {value}"),
}
_DISLIKED: _Phrases = {
    "kind": ("never again a {value}", "a {value} bores me", "should have skipped the {value}"),
    "cuisine": ("{value} food is not for me", "did not enjoy the {value} dishes", "sadly {value}"),
    "mood": ("far too {value} for me", "so {value}, I left early", "annoyingly {value}"),
}
_ASIDE_LIKED: _Phrases = {
    "kind": ("next time a {value}", "almost as good as a {value}"),
    "cuisine": ("next time {value} food", "almost as good as {value} food"),
    "mood": ("next time somewhere {value}", "almost as good as somewhere {value}"),
}
_ASIDE_DISLIKED: _Phrases = {
    "kind": ("better than any {value}", "glad it was no {value}"),
    "cuisine": ("better than any {value} food", "glad it was not {value} food"),
    "mood": ("better than anywhere {value}", "glad it was not {value}"),
}
_ABOUT_LIKED: _Phrases = {
    "kind": ("I love a good {value}", "happiest in a {value}", "often in a {value}"),
    "cuisine": ("fond of {value} food", "{value} cooking is my favourite", "crave {value} dishes"),
    "mood": ("at home where it is {value}", "look for {value} places", "{value} suits me"),
}
_ABOUT_DISLIKED: _Phrases = {
    "kind": ("a {value} bores me", "no {value} for me", "never set foot in a {value}"),
    "cuisine": ("{value} food is not for me", "cannot stand {value} dishes", "no {value} cooking"),
    "mood": ("cannot bear it {value}", "{value} is not my thing", "{value} puts me off"),
}
_NOTHING = "nothing much to say about me"
_NEUTRAL = ("it was all right", "an ordinary visit", "nothing special to report", "fine")
_NAMES = tuple(TASTE_SLICES)
_UNIFORMS = 8 + 2 * len(_NAMES)

Fact = tuple[str, str, bool]  # attribute, value, true if liked


class Review(NamedTuple):
    """A review: its text, and the facts stated in it."""

    text: str
    facts: tuple[Fact, ...]


def write_reviews(
    config: WorldConfig, utility: Utility, users: np.ndarray, items: np.ndarray, states: np.ndarray
) -> list[Review | None]:
    """Writes the review of each visit; None for visits without one.

    Args:
      config: `review_share` and `review_asides` are used.
      utility: utility of the world.
      users: `[visits]` rows of the users, sorted.
      items: `[visits]` rows of the places.
      states: `[visits]` rows of the tastes at the visit.
    """
    uniforms = np.empty((len(users), _UNIFORMS))
    start = np.flatnonzero(np.diff(users, prepend=-1))
    for first, last in zip(start, [*start[1:], len(users)], strict=True):
        uniforms[first:last] = streams.uniform(
            config.seed, Purpose.REVIEWS, (last - first, _UNIFORMS), row=int(users[first])
        )
    affinity = np.stack([utility.affinity(name, states, items) for name in _NAMES], axis=1)
    return [
        _review(config, utility, int(item), utility.tastes.theta[state], likes, row)
        if row[0] < config.review_share
        else None
        for item, state, likes, row in zip(items, states, affinity, uniforms, strict=True)
    ]


def write_about(config: WorldConfig, theta: np.ndarray) -> list[Review]:
    """Writes a line about themselves for every user, from their initial tastes.

    Args:
      config: `about_share` is used.
      theta: `[users, TASTE_SIZE]`.
    """
    lines = []
    for user, row in enumerate(theta):
        uniforms = streams.uniform(config.seed, Purpose.ABOUT, (16, 4), row=user)
        statements: list[tuple[float, str, Fact]] = []
        tastes = named_tastes(row)
        every = [
            (name, value, side == "likes")
            for side in ("likes", "dislikes")
            for name in _NAMES
            for value in tastes[side][name]
        ]
        for (name, value, liked), numbers in zip(every, uniforms, strict=False):
            if numbers[0] < config.about_share:
                phrases = (_ABOUT_LIKED if liked else _ABOUT_DISLIKED)[name]
                statements.append(
                    (numbers[1], _phrase(phrases, name, value, *numbers[2:]), (name, value, liked))
                )
        # Sorted by a random key: the order of the statements carries no information.
        statements.sort()
        text = ", ".join(text for _, text, _ in statements) or _NOTHING
        lines.append(Review(text, tuple(fact for _, _, fact in statements)))
    return lines


def _review(
    config: WorldConfig,
    utility: Utility,
    item: int,
    theta: np.ndarray,
    likes: np.ndarray,
    uniforms: np.ndarray,
) -> Review:
    phrases_used: list[str] = []
    facts: list[Fact] = []
    for column, name in enumerate(_NAMES):
        if likes[column]:
            value = TASTE_WORDS[name][getattr(utility.places, name)[item]]
            phrases = _LIKED if likes[column] > 0 else _DISLIKED
            phrases_used.append(
                _phrase(phrases[name], name, value, *uniforms[8 + 2 * column : 10 + 2 * column])
            )
            facts.append((name, value, bool(likes[column] > 0)))
    # Fixed columns for each decision, so that no choice shifts the numbers of another.
    if uniforms[1] < 0.5:
        phrases_used.reverse()
    if uniforms[2] < config.review_asides:
        name = _NAMES[int(uniforms[3] * len(_NAMES))]
        liked = bool(uniforms[4] < 0.5)
        known = named_tastes(theta)["likes" if liked else "dislikes"][name]
        value = known[int(uniforms[5] * len(known))]
        if (name, value, liked) not in facts:
            phrases = _ASIDE_LIKED if liked else _ASIDE_DISLIKED
            phrases_used.append(_phrase(phrases[name], name, value, uniforms[6], uniforms[7]))
            facts.append((name, value, liked))
    if not phrases_used:
        phrases_used.append(_NEUTRAL[int(uniforms[1] * len(_NEUTRAL))])
    return Review(", ".join(phrases_used), tuple(facts))


def _phrase(phrases: tuple[str, ...], name: str, value: str, choice: float, variant: float) -> str:
    words = {"kind": KIND_WORDS, "mood": MOOD_WORDS}.get(name, {}).get(value, (value,))
    return phrases[int(choice * len(phrases))].format(value=words[int(variant * len(words))])
