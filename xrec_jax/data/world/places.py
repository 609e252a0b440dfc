"""Catalogue of places: attributes, positions and names."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.streams import Purpose


@dataclasses.dataclass(frozen=True)
class Places:
    """The catalogue as indices into the vocabulary.

    Attributes:
      kind: `[items]` int64 into `KINDS`.
      cuisine: `[items]` int64 into `CUISINES`; 0, "none", where no food is served.
      mood: `[items]` int64 into `MOODS`.
      price: `[items]` int64, 1 to 4.
      district: `[items]` int64 into `DISTRICTS`.
      position: `[items, 2]` km east and north of the middle.
      popularity: `[items]` float64, standard normal, hidden.
      popularity_band: `[items]` int64 into `POPULARITY_BANDS`, the observable part of popularity.
      name: `[items]` unicode, all different.
    """

    kind: np.ndarray
    cuisine: np.ndarray
    mood: np.ndarray
    price: np.ndarray
    district: np.ndarray
    position: np.ndarray
    popularity: np.ndarray
    popularity_band: np.ndarray
    name: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)


def draw_places(config: WorldConfig) -> Places:
    """Draws the catalogue; the first places of a larger one are the same places."""
    uniforms = streams.uniform(config.seed, Purpose.PLACES, (config.num_items, 10))
    normal = streams.to_normal(uniforms[:, 4:])
    kind = streams.to_category(uniforms[:, 0], words.KIND_WEIGHTS)
    is_food = np.isin(kind, [words.KINDS.index(name) for name in words.FOOD_KINDS])
    cuisine = np.where(is_food, 1 + streams.to_category(uniforms[:, 1], words.CUISINE_WEIGHTS), 0)
    district = streams.to_category(uniforms[:, 3], words.PLACE_DISTRICT_WEIGHTS)
    price = np.clip(np.rint(2.4 + words.KIND_PRICE[kind] + 0.8 * normal[:, 0]), 1, 4)
    popularity = normal[:, 1]
    return Places(
        kind=kind,
        cuisine=cuisine,
        mood=streams.to_category(uniforms[:, 2], words.MOOD_WEIGHTS),
        price=price.astype(np.int64),
        district=district,
        position=words.DISTRICT_CENTRES[district] + words.DISTRICT_SPREAD_KM * normal[:, 2:4],
        popularity=popularity,
        popularity_band=np.searchsorted(words.POPULARITY_CUTS, popularity),
        name=np.array(place_names(config.seed, config.num_items)),
    )


def place_names(seed: int, count: int) -> list[str]:
    """Distinct, uninformative names; that of place k does not depend on `count`.

    Place i takes the pair (opener, noun) numbered a i + b modulo the number of pairs, a coprime to
    that number, so no pair returns before all are used. Every further round adds a street, and once
    the streets are used up a house number, so names never collide.

    Args:
      seed: seed of the world.
      count: number of names.
    """
    pairs = len(words.OPENERS) * len(words.NOUNS)
    start, stride, round_shift = (
        int(value * pairs) for value in streams.uniform(seed, Purpose.NAMES, 3)
    )
    # From the middle third on, neighbours in the catalogue share neither word.
    stride = pairs // 3 + stride // 3
    # A stride coprime to the number of pairs visits each of them once a round.
    while math.gcd(stride, pairs) != 1:
        stride += 1
    names = []
    for index in range(count):
        opener, noun = divmod((start + stride * index) % pairs, len(words.NOUNS))
        name = f"{words.OPENERS[opener]} {words.NOUNS[noun]}"
        if opener < words.NUM_ADJECTIVES and (opener + noun) % 2:
            name = f"The {name}"
        round_number, house = index // pairs, 0
        if round_number:
            house, turn = divmod(round_number - 1, len(words.STREETS))
            street = words.STREETS[(turn + round_shift) % len(words.STREETS)]
            name = (
                f"{name} on {house + 1} {street} Street" if house else f"{name} on {street} Street"
            )
        names.append(name)
    return names
