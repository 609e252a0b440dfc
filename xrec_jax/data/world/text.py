"""Descriptions of places and people from a small grammar.

Item text states every observable attribute except, half the time, the popularity. User text states
the profile and nothing else: it is a function of the profile and the user's own text stream, which
is independent of the tastes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.people import People
from xrec_jax.data.world.places import Places
from xrec_jax.data.world.streams import Purpose

# Paraphrases of each value; readers of the text recognise a value by these.
MOOD_WORDS = {
    "quiet": ("quiet", "calm", "peaceful"),
    "lively": ("lively", "buzzing", "bustling"),
    "romantic": ("romantic", "candlelit", "intimate"),
    "family-friendly": ("family-friendly", "child-friendly", "all-ages"),
    "cosy": ("cosy", "snug", "homely"),
    "trendy": ("trendy", "stylish", "fashionable"),
    "traditional": ("traditional", "old-fashioned", "time-honoured"),
    "artsy": ("artsy", "bohemian", "creative"),
}
KIND_WORDS = {
    "restaurant": ("restaurant", "eatery", "dining room"),
    "cafe": ("cafe", "coffee house", "coffee shop"),
    "bar": ("bar", "pub", "taproom"),
    "bakery": ("bakery", "pastry shop", "patisserie"),
    "museum": ("museum", "museum of local history", "small museum"),
    "park": ("park", "public garden", "green space"),
    "bookshop": ("bookshop", "bookstore", "secondhand bookshop"),
    "gym": ("gym", "fitness studio", "fitness club"),
    "cinema": ("cinema", "film house", "picture house"),
    "gallery": ("gallery", "exhibition space", "art gallery"),
    "theatre": ("theatre", "playhouse", "stage"),
    "market": ("market", "street market", "covered market"),
}
PRICE_WORDS = {
    1: ("cheap", "very affordable", "easy on the wallet"),
    2: ("moderately priced", "fairly priced", "mid-priced"),
    3: ("upmarket", "on the pricier side", "a little expensive"),
    4: ("expensive", "high-end", "a real splurge"),
}
POPULARITY_WORDS = {
    "little-known": ("few people know it", "still a hidden find", "little-known so far"),
    "well-liked": ("well-liked by its visitors", "it has its regulars", "it draws a steady crowd"),
    "famous": (
        "famous across the city",
        "everyone seems to know it",
        "one of the best-known spots",
    ),
}
_FOOD_WORDS = ("{cuisine} {kind}", "{kind} with {cuisine} food", "{kind} serving {cuisine} dishes")

_ITEM_TEMPLATES = (
    "{name} is {a_mood} {what} in {district}. It is {price}{fame}.",
    "{A_mood} {what} in {district}, {name} is {price}{fame}.",
    "In {district}, {name} is {a_mood} {what}; prices: {price}{fame}.",
    "{name}: {mood} {what}, {district}, {price}{fame}.",
    "Visitors to {district} find {a_mood} {what} in {name}. Expect it to be {price}{fame}.",
    "{name} offers {district} {a_mood} {what}{fame}. It is {price}.",
    "The {mood} {what} {name} stands in {district} and is {price}{fame}.",
)
_FAME_CLAUSES = ("", "", "", ", {fame}", " ({fame})", " - {fame}")

_USER_TEMPLATES = (
    "A {gender} of age {age} who {does} and lives in {district}.",
    "{Gender}, {age}, {does}, lives in {district}.",
    "This user is a {gender} aged {age} who {does}; home is {district}.",
    "Lives in {district}, {does}, a {gender} aged {age}.",
    "{Gender} of {age} from {district} who {does}.",
    "From {district}: a {gender}, age {age}, who {does}.",
)
_GENDER_WORDS = {"woman": "woman", "man": "man", "nonbinary": "nonbinary person"}


def item_texts(config: WorldConfig, places: Places) -> list[str]:
    """Writes one or two sentences on each place; place k's text is the same in a larger world."""
    uniforms = streams.uniform(config.seed, Purpose.ITEM_TEXT, (len(places), 8))
    return [_item_text(places, row, uniforms[row]) for row in range(len(places))]


def _item_text(places: Places, row: int, uniforms: np.ndarray) -> str:
    what = _pick(KIND_WORDS[words.KINDS[places.kind[row]]], uniforms[0])
    if places.cuisine[row]:
        what = _pick(_FOOD_WORDS, uniforms[1]).format(
            kind=what, cuisine=words.CUISINES[places.cuisine[row]]
        )
    mood = _pick(MOOD_WORDS[words.MOODS[places.mood[row]]], uniforms[2])
    band = words.POPULARITY_BANDS[places.popularity_band[row]]
    fame = _pick(_FAME_CLAUSES, uniforms[3]).format(fame=_pick(POPULARITY_WORDS[band], uniforms[4]))
    return _pick(_ITEM_TEMPLATES, uniforms[5]).format(
        name=places.name[row],
        what=what,
        mood=mood,
        a_mood=with_article(mood),
        A_mood=with_article(mood).capitalize(),
        district=words.DISTRICTS[places.district[row]],
        price=_pick(PRICE_WORDS[int(places.price[row])], uniforms[6]),
        fame=fame,
    )


def user_texts(config: WorldConfig, people: People) -> list[str]:
    """Writes one sentence on each profile; user k's text is the same in a larger world."""
    uniforms = streams.uniform(config.seed, Purpose.USER_TEXT, (len(people), 2))
    return [_user_text(people, row, uniforms[row]) for row in range(len(people))]


def _user_text(people: People, row: int, uniforms: np.ndarray) -> str:
    gender = _GENDER_WORDS[words.GENDERS[people.gender[row]]]
    return _pick(_USER_TEMPLATES, uniforms[0]).format(
        age=words.AGE_BANDS[people.age[row]],
        gender=gender,
        Gender=gender.capitalize(),
        does=_occupation(words.OCCUPATIONS[people.occupation[row]], uniforms[1]),
        district=words.DISTRICTS[people.home_district[row]],
    )


def _occupation(name: str, uniform: float) -> str:
    if name == "student":
        return _pick(("is a student", "studies full-time"), uniform)
    if name == "retired":
        return _pick(("is retired", "no longer works (retired)"), uniform)
    works = ("works as {job}", "is {job}", "earns a living as {job}", "is {job} by profession")
    return _pick(works, uniform).format(job=with_article(name))


def with_article(phrase: str) -> str:
    """Adds "a" or "an" to a phrase of this vocabulary."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _pick(choices: Sequence[str], uniform: float) -> str:
    return choices[int(uniform * len(choices))]
