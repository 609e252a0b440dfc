"""Contrastive explanation pairs of a user: why they may like what comes, and why not.

A pair is one text, "Why: ..." and on the next line "Why not: ...", so that a model writes both in
one go. Nothing in it is about one item: it speaks of the user, and helps to rank every item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xrec_jax.core.rng import keyed_random
from xrec_jax.text.prompts.templates import Template, register
from xrec_jax.text.synthetic.grammar import listing, plural

WHY, WHY_NOT = "Why:", "Why not:"

# What a user wrote is most of what can be known of them; names of places would tell nothing here.
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
    """Both parts of an explanation; a part that was not written is empty."""

    why: str
    why_not: str


def join_pair(pair: Pair) -> str:
    """The text of a pair: the inverse of `split_pair`."""
    return f"{WHY} {pair.why}\n{WHY_NOT} {pair.why_not}"


def split_pair(text: str) -> Pair:
    """Both parts of a text; without the second marker all of it is the first part."""
    why, marker, why_not = text.partition(WHY_NOT)
    why = why.strip().removeprefix(WHY).strip()
    return Pair(why, why_not.strip() if marker else "")


Values = Mapping[str, Sequence[str]]  # kind, cuisine or mood to its values, strongest first


def phrases(values: Values) -> str:
    """Values as a list: "cafes and bars, Thai food, quiet places"; "" for none."""
    said = []
    if found := values.get("kind"):
        said.append(listing([plural(value) for value in found]))
    if found := values.get("cuisine"):
        said.append(f"{listing(list(found))} food")
    if found := values.get("mood"):
        said.append(f"{listing(list(found))} places")
    return ", ".join(said)


def taste_pair(likes: Values, dislikes: Values) -> Pair:
    """A pair that states tastes."""
    liked, avoided = phrases(likes), phrases(dislikes)
    return Pair(
        f"you like {liked}." if liked else "nothing is known of what you like.",
        f"you avoid {avoided}." if avoided else "nothing is known of what you avoid.",
    )


def values_of(facts: Iterable[tuple[str, str, bool]]) -> dict[str, list[str]]:
    """Values of each attribute, once each, in the order in which facts first tell them."""
    found: dict[str, list[str]] = {}
    for attribute, value, _ in facts:
        values = found.setdefault(attribute, [])
        if value not in values:
            values.append(value)
    return found


class Visit(NamedTuple):
    """A visit to read about.

    Attributes:
      row: of the item table.
      review: what was written; may be empty.
      facts: (attribute, value, whether it was praised) that the review states.
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
    """Prompts of invented people, with what their reviews praise and complain of.

    The visits of a prompt and what its user says come from many people, so nothing can be learned
    by heart but the words. Half of the exercises are one line: finding something is learned on
    short texts first.

    Args:
      template: layout of the prompts.
      visits: to draw from; give only what training may see.
      people: rows of the user table to draw from, with what they say of themselves.
      count: exercises.
      latest: entries of a prompt at most.
      seed: of the draws.

    Yields:
      (prompt, answer).
    """
    for number in range(count if visits else 0):
        rng = keyed_random("reviews", seed, number)
        alone = rng.random() < 0.5
        length = 1 if alone else rng.choice((2, 3, 4, latest))
        drawn = [visits[rng.randrange(len(visits))] for _ in range(min(length, latest))]
        entries = [
            template.render_entry({**one.row, "review": one.review or None}, place)
            for place, one in enumerate(drawn, start=1)
        ]
        person = rng.choice(people) if people and template.user else None
        if alone:
            own_words = person is not None and rng.random() < 0.5
            prompt = "".join(entries)
            if person is not None and own_words:
                drawn, prompt = [person], f"{template.render_user(person.row)}\n"
        else:
            user = template.render_user(person.row) if person is not None else ""
            drawn += [person] if person is not None else []
            # A prompt that asks about a place shows one; what to say is in the reviews alone.
            item = template.render_item(rng.choice(visits).row) if template.item else ""
            prompt = template.assemble(user=user, item=item, entries=entries)
        praised, blamed = (
            values_of(fact for one in drawn for fact in one.facts if fact[2] is liked)
            for liked in (True, False)
        )
        yield (
            prompt,
            (
                f"Praised: {phrases(praised) or 'nothing'}.\n"
                f"Complained of: {phrases(blamed) or 'nothing'}."
            ),
        )
