"""Contrastive explanation pairs of a user: why they may like an item, and why not.

A pair is one text, "Why: ..." and on the next line "Why not: ...", so that a model generates both
at once. It describes the user, not one item, and helps to rank every item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xrec_jax.core.rng import keyed_random
from xrec_jax.text.prompts.templates import Template, register
from xrec_jax.text.synthetic.grammar import listing, plural

WHY, WHY_NOT = "Why:", "Why not:"

# A user's own texts are the most informative; names of places would be uninformative here.
TASTES = register(
    Template(
        name="tastes",
        body=(
            "Say what this user looks for in a place and what they avoid.\n\n"
            "Visits, oldest first, and what the user wrote:\n{history}The user: {user}\n\n"
        ),
        entry="{index}. {mood}[[ {cuisine}]] {kind}[[: {review}]]\n",
        user="{about}",
        no_history="(none)\n",
        absent=("none",),
    )
)


class Pair(NamedTuple):
    """Both sides of an explanation; a missing side is empty."""

    why: str
    why_not: str


def join_pair(pair: Pair) -> str:
    """Joins a pair to one text: the inverse of `split_pair`."""
    return f"{WHY} {pair.why}\n{WHY_NOT} {pair.why_not}"


def split_pair(text: str) -> Pair:
    """Splits a text into both sides; without the second marker all of it is the first side."""
    why, marker, why_not = text.partition(WHY_NOT)
    why = why.strip().removeprefix(WHY).strip()
    return Pair(why, why_not.strip() if marker else "")


Values = Mapping[str, Sequence[str]]  # kind, cuisine or mood to its values, strongest first


def phrases(values: Values) -> str:
    """Formats values: "cafes and bars, Thai food, quiet places"; "" for none."""
    clauses = []
    if kinds := values.get("kind"):
        clauses.append(listing([plural(value) for value in kinds]))
    if cuisines := values.get("cuisine"):
        clauses.append(f"{listing(list(cuisines))} food")
    if moods := values.get("mood"):
        clauses.append(f"{listing(list(moods))} places")
    return ", ".join(clauses)


def taste_pair(likes: Values, dislikes: Values) -> Pair:
    """Builds a pair that states tastes."""
    liked, avoided = phrases(likes), phrases(dislikes)
    return Pair(
        f"you like {liked}." if liked else "nothing is known of what you like.",
        f"you avoid {avoided}." if avoided else "nothing is known of what you avoid.",
    )


def values_of(facts: Iterable[tuple[str, str, bool]]) -> dict[str, list[str]]:
    """Distinct values by attribute, in the order of their first occurrence."""
    result: dict[str, list[str]] = {}
    for attribute, value, _ in facts:
        values = result.setdefault(attribute, [])
        if value not in values:
            values.append(value)
    return result


class Visit(NamedTuple):
    """A visit with its review.

    Attributes:
      row: row of the item table.
      review: text of the review; may be empty.
      facts: facts stated in the review: (attribute, value, true if liked).
    """

    row: Mapping[str, Any]
    review: str
    facts: Sequence[tuple[str, str, bool]]


def review_exercises(
    template: Template,
    visits: Sequence[Visit],
    people: Sequence[Visit],
    *,
    count: int,
    latest: int,
    seed: int = 0,
) -> Iterable[tuple[str, str]]:
    """Generates prompts of invented people, with the likes and dislikes stated in their reviews.

    The visits and the description of a prompt come from different people, so that only the wording
    can be memorised. Half of the exercises are one line: retrieval is learned on short texts first.

    Args:
      template: template of the prompts.
      visits: visits to draw from, training events only.
      people: rows of the user table to draw from, with their descriptions of themselves.
      count: number of exercises.
      latest: most entries of a prompt.
      seed: random seed.

    Yields:
      (prompt, answer).
    """
    for number in range(count if visits else 0):
        rng = keyed_random("reviews", seed, number)
        alone = rng.random() < 0.5
        length = 1 if alone else rng.choice((2, 3, 4, latest))
        drawn = [visits[rng.randrange(len(visits))] for _ in range(min(length, latest))]
        entries = [
            template.render_entry({**visit.row, "review": visit.review or None}, place)
            for place, visit in enumerate(drawn, start=1)
        ]
        person = rng.choice(people) if people and template.user else None
        if alone:
            # One line: a visit, or half of the time a person's description of themselves.
            own_words = person is not None and rng.random() < 0.5
            prompt = "".join(entries)
            if person is not None and own_words:
                drawn, prompt = [person], f"{template.render_user(person.row)}\n"
        else:
            user = template.render_user(person.row) if person is not None else ""
            drawn += [person] if person is not None else []
            # A template with an item needs one; the answer depends on the reviews alone.
            item = template.render_item(rng.choice(visits).row) if template.item else ""
            prompt = template.assemble(user=user, item=item, entries=entries)
        praised, blamed = (
            values_of(fact for visit in drawn for fact in visit.facts if fact[2] is liked)
            for liked in (True, False)
        )
        yield (
            prompt,
            (
                f"Praised: {phrases(praised) or 'nothing'}.\n"
                f"Complained of: {phrases(blamed) or 'nothing'}."
            ),
        )
