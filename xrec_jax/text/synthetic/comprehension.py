"""Reading-comprehension exercises for pre-training: prompts followed by descriptions.

A laptop-sized model learns from them to find the recommended item in a prompt, to describe it, and
to count or select history entries that share a feature with it. The recommended item is invented:
its values are drawn independently, so that only the prompt determines them. Half of the exercises
show the item alone, which is learned first and transfers to whole prompts. They never state why
anyone would want the item.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_random
from xrec_jax.text.prompts.templates import Template
from xrec_jax.text.synthetic.grammar import listing, plural, sentence, with_article

Row = Mapping[str, Any]

_WHAT = (
    "{name} is {a_what} in {district}",
    "{name} is {a_what}",
    "the place is called {name}, and it is {a_what}",
    "this is about {name}, {a_what}",
    "{name} can be found in {district}",
)
_DETAIL = {
    "price": ("the price level of {name} is {value}", "it has price level {value}"),
    "popularity": ("{name} counts as {value}", "the place is {value}"),
    "mood": ("the mood there is {value}", "{name} is {a_value} place"),
    "cuisine": ("the food is {value}", "{name} serves {value} food"),
    "kind": ("it is {a_value}", "{name} is {a_value}"),
    "district": ("it lies in {value}", "the district of {name} is {value}"),
}
_ALIKE = {
    "kind": ("{names} {are} {a_value} too", "like {name}, {names} {are} {a_value}"),
    "mood": ("{names} {are} {value} as well", "{names} {are} just as {value}"),
    "cuisine": ("{names} {serve} {value} food as well", "there is {value} food at {names} too"),
    "district": ("{names} {are} in {value} too", "in {value} there {are} {names} as well"),
}
_NONE = {
    "kind": "no other place on the list is {a_value}",
    "mood": "no other place on the list is {value}",
    "cuisine": "nowhere else on the list is there {value} food",
    "district": "nothing else on the list is in {value}",
}
_LAST = (
    "the last visit was to {name}, {a_what}",
    "{name} was visited last; it is {a_what}",
    "before this, the user went to {name}",
)
# Variants without names, which the smallest models do not learn to copy.
_PLAIN = {
    "price": ("the price level is {value}", "it is at price level {value}"),
    "popularity": ("it is {value}", "it counts as {value}"),
    "mood": ("it is {value}", "the mood there is {value}", "it has {a_value} atmosphere"),
    "cuisine": ("the food is {value}", "it serves {value} food"),
    "kind": ("it is {a_value}", "this is one of the {plural}"),
    "district": ("it is in {value}", "you will find it in {value}"),
}
_COUNTED = {
    "kind": (
        "{count} of the {total} earlier visits was to {a_value}",
        "{count} of the {total} earlier visits were to {plural}",
    ),
    "mood": (
        "{count} of the {total} places before was {value}",
        "{count} of the {total} places before were {value}",
    ),
    "cuisine": (
        "{count} of the {total} places before has {value} food",
        "{count} of the {total} places before have {value} food",
    ),
}
_LAST_KIND = ("the last visit was to {a_kind}", "before this, the user went to {a_kind}")
_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_HOME = ("the user lives in {home}", "the home of the user is in {home}")


class Reading(NamedTuple):
    """An exercise: prompt and answer."""

    prompt: str
    answer: str


def reading_exercises(
    template: Template,
    items: Sequence[Row],
    users: Sequence[Row],
    visits: Iterable[tuple[int, Sequence[int]]],
    *,
    latest: int,
    seed: int = 0,
    copies: int = 1,
    title: str = "name",
    named: bool = True,
) -> Iterator[Reading]:
    """Generates prompts from random ranges of visits and invented items, each with a description.

    Args:
      template: template of the prompts.
      items: rows with a title and any of kind, cuisine, mood, price, district, popularity.
      users: rows of the users; `home_district` may be mentioned.
      visits: (user row, item rows in order), training events only.
      latest: most history entries of a prompt.
      seed: random seed.
      copies: exercises for each user.
      title: title column.
      named: mention items by name in descriptions.

    Raises:
      UserError: if an item has no title.
    """
    for row in items:
        if not row.get(title):
            raise UserError(f"the corpus needs the name of every item: no {title!r} in a row")
    for user, visited in visits:
        for copy in range(copies if len(visited) else 0):
            rng = keyed_random("comprehension", seed, copy, user)
            item = _invented(rng, items, title)
            alone = rng.random() < 0.5
            # Short histories are more frequent: retrieval is learned on short texts first.
            length = min(latest, len(visited), rng.choice((0, 1, 1, 2, 2, 3, 4, 6, latest)))
            start = rng.randint(0, len(visited) - length)
            history = [items[row] for row in visited[start : start + length]]
            if alone:
                history, prompt = [], f"{template.render_item(item)}\n\n"
            else:
                prompt = template.assemble(
                    user=template.render_user(users[user]) if template.user else "",
                    item=template.render_item(item),
                    entries=[template.render_entry(r, n) for n, r in enumerate(history, start=1)],
                )
            # The description mentions only what the prompt shows.
            home = {} if alone else users[user]
            if named:
                others = [other for other in history if other[title] != item[title]]
                clauses = _describe(rng, item, others, home, title)
            else:
                clauses = _describe_plainly(rng, item, history, home)
            yield Reading(prompt, " ".join(map(sentence, clauses)))


def _invented(rng: random.Random, items: Sequence[Row], title: str) -> Row:
    """A row whose values are drawn independently from those of all items."""
    columns = [name for name in _DETAIL if any(name in row for row in items)]
    drawn = {name: rng.choice(items).get(name) for name in columns}
    # The name is that of a real item: only reading, not memory, gives the values.
    return {**rng.choice(items), **drawn}


def _describe_plainly(
    rng: random.Random, item: Row, history: Sequence[Row], user: Row
) -> list[str]:
    """Clauses without names: the item's values, counts of earlier items with them, last visit."""
    values = {name: str(item[name]) for name in _PLAIN if _has(item, name)}
    clauses = [
        rng.choice(_PLAIN[name]).format(
            value=value, a_value=with_article(value), plural=plural(value)
        )
        for name, value in values.items()
    ]
    # Counts depend on the whole history, so they cannot be answered from one line of the prompt.
    for name in _COUNTED if history else ():
        if name in values:
            value = values[name]
            count = sum(str(row.get(name)) == value for row in history)
            clauses.append(
                _COUNTED[name][count != 1].format(
                    count=_number(count),
                    total=_number(len(history)),
                    value=value,
                    a_value=with_article(value),
                    plural=plural(value),
                )
            )
    if history and _has(history[-1], "kind"):
        kind = with_article(str(history[-1]["kind"]))
        clauses.append(rng.choice(_LAST_KIND).format(a_kind=kind))
    if user.get("home_district"):
        clauses.append(rng.choice(_HOME).format(home=user["home_district"]))
    # In random order and cut: neither the place nor the want of a clause says anything of the item.
    rng.shuffle(clauses)
    return clauses[: rng.randint(3, 6)]


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _describe(
    rng: random.Random, item: Row, others: Sequence[Row], user: Row, title: str
) -> list[str]:
    """Clauses on the item, on similar items in the history, and on the last visit."""
    values = {name: str(item[name]) for name in _DETAIL if _has(item, name)}
    # The lead names the kind, with mood and cuisine half of the time.
    what = " ".join(
        [values[name] for name in ("mood", "cuisine") if name in values and rng.random() < 0.5]
        + [values.get("kind", "place")]
    )
    fields = {"name": item[title], "a_what": with_article(what)}
    fields["district"] = values.get("district", "the city")
    clauses = [rng.choice(_WHAT).format(**fields)]

    def detail(name: str) -> str:
        value = values[name]
        return rng.choice(_DETAIL[name]).format(
            value=value, a_value=with_article(value), name=item[title]
        )

    def alike(name: str) -> str:
        value = values[name]
        similar = [str(other[title]) for other in others if str(other.get(name)) == value]
        if not similar:
            return _NONE[name].format(value=value, a_value=with_article(value))
        many = len(similar) > 1
        return rng.choice(_ALIKE[name]).format(
            names=listing(similar),
            value=value,
            name=item[title],
            a_value=plural(value) if many else with_article(value),
            are="are" if many else "is",
            serve="serve" if many else "serves",
        )

    # Details and similarities in random order, a random number of them.
    more = [(detail, name) for name in values]
    more += [(alike, name) for name in _ALIKE if name in values]
    rng.shuffle(more)
    clauses += [clause_of(name) for clause_of, name in more[: rng.randint(2, 5)]]
    if others and rng.random() < 0.5:
        last = others[-1]
        kind = with_article(str(last["kind"])) if _has(last, "kind") else "a place"
        clauses.append(rng.choice(_LAST).format(name=last[title], a_what=kind))
    if user.get("home_district") and rng.random() < 0.3:
        clauses.append(rng.choice(_HOME).format(home=user["home_district"]))
    return clauses


def _has(row: Row, name: str) -> bool:
    return row.get(name) not in (None, "", "none")
