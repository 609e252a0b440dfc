"""Pre-training corpus about a world: items, users and visits, without explanations.

It teaches what a language model should know before it is tuned: names, values and their wordings,
and the visits. It never states the reason of a visit.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_random
from xrec_jax.text.synthetic.grammar import count_of, listing, plural, sentence, with_article

_ITEM_LEADS = (
    "{name} is {a_what} in {district}",
    "in {district} you will find {name}, {a_what}",
    "{name}, {a_what}, stands in {district}",
    "there is {a_what} in {district} called {name}",
)
_ITEM_LEADS_NOWHERE = ("{name} is {a_what}", "{name} is the name of {a_what}")
_DETAILS = {
    "price": (
        "the price level is {value}",
        "prices are at level {value}",
        "expect price level {value}",
    ),
    "popularity": (
        "it counts as {value}",
        "among the people of the city it is {value}",
        "it is {value}",
    ),
    "cuisine": ("it serves {value} food", "the menu has {value} dishes", "the cooking is {value}"),
    "mood": ("the mood is {value}", "it has {a_value} atmosphere", "visitors call it {value}"),
}
_SAME = {
    "kind": ("both {a} and {b} are {plural}", "{a} and {b} are two {plural}"),
    "mood": ("{a} and {b} are both {value}", "{a} is as {value} as {b}"),
    "cuisine": (
        "{a} serves {value} food, and so does {b}",
        "{value} food is served at {a} and {b}",
    ),
    "district": ("{a} and {b} are both in {value}", "in {value} there are {a} and {b}"),
    "price": (
        "{a} and {b} share price level {value}",
        "price level {value} applies to {a} and {b}",
    ),
}
_DIARIES = (
    "{who} went to {list}",
    "the visits of {who}, in order, were to {list}",
    "{who} was seen at {list}, one after the other",
    "first to last, {who} visited {list}",
)
_DIARY_ONE = ("{who} went to {list}", "a visit of {who} was to {list}", "{who} visited {list}")
_LAST = (
    "the latest visit was to {name}, {a_what}",
    "the last place on the list is {name}, {a_what}",
    "after that came a visit to {name}, {a_what}",
)


def world_sentences(
    items: Sequence[Mapping[str, Any]],
    users: Sequence[Mapping[str, Any]] = (),
    visits: Iterable[tuple[int, Sequence[int]]] = (),
    *,
    seed: int = 0,
    copies: int = 1,
    title: str = "name",
) -> Iterator[str]:
    """Generates paragraphs on items, users and visits, each with its own random key.

    Args:
      items: rows with a title and any of kind, cuisine, mood, price, district, popularity,
        item_text.
      users: rows with any of age_band, gender, occupation, home_district, user_text.
      visits: (user row, item rows in order), training events only.
      seed: random seed.
      copies: number of wordings of each paragraph.
      title: title column.

    Yields:
      For each copy the paragraphs on items and comparisons, then users, then visits.

    Raises:
      UserError: if an item has no title, or a visit refers to a row that does not exist.
    """
    for row in items:
        if not row.get(title):
            raise UserError(f"the corpus needs the name of every item: no {title!r} in a row")
    diaries = [(user, list(rows)) for user, rows in visits]
    for user_row, rows in diaries:
        wrong = [row for row in rows if not 0 <= row < len(items)]
        if wrong or not 0 <= user_row < len(users):
            what = f"item row {wrong[0]}" if wrong else f"user row {user_row}"
            raise UserError(f"a visit names {what}, which does not exist")
    # Each paragraph has its own key: further copies do not change the earlier ones.
    same = _same_values(items)
    for copy in range(copies):
        for place, item in enumerate(items):
            rng = keyed_random("item", seed, copy, place, item[title])
            yield _item(rng, item, title)
            if pair := _comparison(rng, items, same, place, title):
                yield pair
        for place, user in enumerate(users):
            if text := _user(keyed_random("user", seed, copy, place), user):
                yield text
        for number, (user_row, rows) in enumerate(diaries):
            if rows:
                rng = keyed_random("visits", seed, copy, number)
                yield _diary(rng, users[user_row], [items[row] for row in rows], title)


def _item(rng: random.Random, item: Mapping[str, Any], title: str) -> str:
    if _value(item, "item_text") and rng.random() < 0.3:
        return sentence(str(item["item_text"]))
    what = _what(item, rng)
    district = _value(item, "district")
    lead = rng.choice(_ITEM_LEADS if district else _ITEM_LEADS_NOWHERE)
    lead = lead.format(name=item[title], a_what=with_article(what), district=district)
    # Mood and cuisine are left out where the lead has said them.
    details = [name for name in _DETAILS if _value(item, name) and _value(item, name) not in what]
    rng.shuffle(details)
    clauses = []
    for name in details:
        value = _value(item, name)
        text = rng.choice(_DETAILS[name])
        clauses.append(text.format(value=value, a_value=with_article(value)))
    return " ".join(sentence(clause) for clause in [lead, *clauses])


def _what(item: Mapping[str, Any], rng: random.Random | None = None) -> str:
    """Noun phrase of an item: "quiet Thai restaurant", with random omissions if `rng` is given."""
    words = [
        _value(item, name)
        for name in ("mood", "cuisine")
        if _value(item, name) and (rng is None or rng.random() < 0.6)
    ]
    return " ".join([*words, _value(item, "kind") or "place"])


def _same_values(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[int]]:
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        for name in _SAME:
            if value := _value(item, name):
                places[name, value].append(place)
    return places


def _comparison(
    rng: random.Random,
    items: Sequence[Mapping[str, Any]],
    same: Mapping[tuple[str, str], Sequence[int]],
    place: int,
    title: str,
) -> str | None:
    name = rng.choice(list(_SAME))
    value = _value(items[place], name)
    others = [other for other in same.get((name, value), ()) if other != place]
    if not others:
        return None
    other = items[rng.choice(others)]
    text = rng.choice(_SAME[name]).format(
        a=items[place][title], b=other[title], value=value, plural=plural(value)
    )
    return sentence(text)


def _user(rng: random.Random, user: Mapping[str, Any]) -> str | None:
    if _value(user, "user_text") and rng.random() < 0.4:
        return sentence(str(user["user_text"]))
    who, facts = _who(user), []
    if home := _value(user, "home_district"):
        facts.append(rng.choice((f"home is in {home}", f"the home district is {home}")))
    if age := _value(user, "age_band"):
        facts.append(rng.choice((f"the age is {age}", f"age band: {age}")))
    if not facts and who == "someone":
        return None
    rng.shuffle(facts)
    lead = rng.choice(("this is {who}", "the user is {who}", "here we have {who}"))
    return " ".join(sentence(clause) for clause in [lead.format(who=who), *facts])


def _who(user: Mapping[str, Any]) -> str:
    """Noun phrase of a user: "a nurse", "a retired man"."""
    gender = {"nonbinary": "nonbinary person"}.get(_value(user, "gender"), _value(user, "gender"))
    work = _value(user, "occupation")
    if work == "retired":
        return with_article(f"retired {gender or 'person'}")
    if work:
        return with_article(work)
    return with_article(gender) if gender else "someone"


def _diary(
    rng: random.Random, user: Mapping[str, Any], places: Sequence[Mapping[str, Any]], title: str
) -> str:
    # A short range, as long diaries would not fit a small model's context window.
    length = rng.randint(1, min(len(places), 6))
    start = rng.randint(0, len(places) - length)
    visited = places[start : start + length]
    # Users are described, never named, as in the prompts.
    who = _who(user)
    if home := _value(user, "home_district"):
        who = rng.choice((f"{who} from {home}", f"{who} who lives in {home}"))
    names = [
        f"{item[title]} ({_what(item)})" if rng.random() < 0.7 else str(item[title])
        for item in visited
    ]
    clauses = [
        rng.choice(_DIARIES if length > 1 else _DIARY_ONE).format(who=who, list=listing(names))
    ]
    if length > 1 and rng.random() < 0.4:
        kinds: dict[str, int] = defaultdict(int)
        for item in visited:
            kinds[_value(item, "kind") or "place"] += 1
        counts = [count_of(count, kind) for kind, count in kinds.items()]
        clauses.append(f"that makes {listing(counts)}")
    # The next visit, if there is one, gives the model an event to predict.
    follower = start + length
    if follower < len(places) and rng.random() < 0.6:
        item = places[follower]
        clauses.append(rng.choice(_LAST).format(name=item[title], a_what=with_article(_what(item))))
    return " ".join(sentence(clause) for clause in clauses)


def _value(row: Mapping[str, Any], column: str) -> str:
    """Text of a cell; empty if it has no value."""
    value = row.get(column)
    return "" if value is None or value == "none" else str(value)
