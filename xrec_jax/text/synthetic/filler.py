"""Filler paragraphs for pre-training: general statements about places and tastes.

They teach the vocabulary of explanations without referring to a particular user or item: no
recommendation is explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xrec_jax.core.rng import keyed_random
from xrec_jax.text.synthetic.grammar import plural, sentence, with_article

_SENTENCES = (
    "people who like {mood} places often enjoy {kinds}",
    "if you are fond of {cuisine} cooking, {a_kind} with {cuisine} dishes on the menu is a choice",
    "some tend to avoid {kinds}, others have a soft spot for them",
    "{kinds} are not really everybody's thing",
    "a taste for {cuisine} food is something you share with many",
    "as a rule, a price level of {price} is within the usual budget of those who like {kinds}",
    "you pay more at price level {price} than at level 1, and most people stay with their budget",
    "prices that are cheaper than usual please some, pricier ones feel right to others",
    "what is close to your home is easy to reach, what is farther away takes a longer way",
    "a place {km} km from home is nearer than most places, and one at {far} km farther than most",
    "the way there is short for those who live nearby and long compared with most for the others",
    "after {a_kind}, {a_other} makes a good next stop",
    "coming from {a_kind}, many find {a_other} a fitting next visit",
    "going to {a_kind} straight after another {kind} may feel repetitive and offers little change",
    "{a_mood} atmosphere matters to many, and to some it does not",
    "a famous spot has more visitors than most and draws people from all over",
    "being well-liked, a place is more popular than most",
    "what counts as little-known is less popular than most places, and fewer people go there",
    "there is something to be said for trying a place in {district}",
    "there are good reasons for a visit to {district}, and some that speak against it",
    "consider your taste and your budget before your next outing",
    "how about a change of scene, say {a_kind} in {district}",
    "for your next visit, you may want to look at {kinds} you have not been to before",
    "on top of that, it is good to know what you like and what you do not like much",
    "what is more, {mood} places suit those who feel at home in them",
    "besides, {kinds} are among the places that people enjoy most",
    "moreover, {a_mood} setting matches the taste of many",
    "keep in mind that the points in favour weigh more for one than for another",
    "however, another point against {kinds} is that they are not open every day",
    "the drawback of {a_kind} is that it may be full",
    "you should know, though, that most {kinds} in {district} are {mood}",
    "all in all, a visit seems worth your time if you look for something {mood}",
    "overall, it deserves a try",
    "even so, we think that {kinds} belong to every city",
    "nothing we know of speaks clearly against {cuisine} food",
    "your history also says what you look for: if your visits include many {kinds}, you like them",
    "among the {kinds} you have been to, you already know which could be a good match for you",
    "our suggestion for a day in {district}: first {a_kind}, then {a_other}",
    "one of your favourites may be {a_mood} {kind}",
)


def filler_paragraphs(
    items: Sequence[Mapping[str, Any]], count: int, *, seed: int = 0
) -> Iterator[str]:
    """Generates paragraphs of three to six sentences, each with its own random key.

    Args:
      items: rows with any of kind, cuisine, mood, price, district, the source of values.
      count: number of paragraphs.
      seed: random seed.
    """

    def values(name: str, other: str) -> list[str]:
        return sorted({str(i[name]) for i in items if i.get(name) not in (None, "", "none")}) or [
            other
        ]

    # Sorted values, so that the order of rows does not matter; a default for tables without a
    # column.
    kinds, cuisines = values("kind", "place"), values("cuisine", "local")
    moods, prices = values("mood", "quiet"), values("price", "2")
    districts = values("district", "the city")
    for number in range(count):
        rng = keyed_random("talk", seed, number)
        clauses = []
        for text in rng.sample(_SENTENCES, rng.randint(3, 6)):
            # All placeholders are drawn for every sentence, used or not: the texts of a seed must
            # not change with the wording.
            kind, other, mood = rng.choice(kinds), rng.choice(kinds), rng.choice(moods)
            clauses.append(
                text.format(
                    kind=kind,
                    kinds=plural(kind),
                    a_kind=with_article(kind),
                    a_other=with_article(other),
                    mood=mood,
                    a_mood=with_article(mood),
                    cuisine=rng.choice(cuisines),
                    price=rng.choice(prices),
                    district=rng.choice(districts),
                    km=f"{rng.uniform(0.2, 3.0):.1f}",
                    far=f"{rng.uniform(5.0, 12.0):.1f}",
                )
            )
        yield " ".join(map(sentence, clauses))
