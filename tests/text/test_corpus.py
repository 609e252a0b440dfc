"""Plain text for pre-training, and the grammar below it."""

import functools
import re

import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.text.synthetic import grammar
from xrec_jax.text.synthetic.corpus import world_sentences


@functools.cache
def tables():
    data = tiny.data().dataset
    visits: dict[int, list[int]] = {}
    for user, item in zip(
        data.interactions.user.tolist(), data.interactions.item.tolist(), strict=True
    ):
        visits.setdefault(user, []).append(item)
    return data.items.to_dicts(), data.users.to_dicts(), tuple(visits.items())


def test_grammar_by_hand():
    articles = {
        "artsy bar": "an artsy bar",
        "bar": "a bar",
        "university": "a university",
        "hour": "an hour",
        "Ethiopian cafe": "an Ethiopian cafe",
        "European cafe": "a European cafe",
        "one-way street": "a one-way street",
        "onion": "an onion",
        "18-24": "an 18-24",
        "1.8": "a 1.8",
        "80": "an 80",
        "11": "an 11",
        "110": "a 110",
        "usual": "a usual",
        "user": "a user",
        "": "a ",
    }
    assert {word: grammar.with_article(word) for word in articles} == articles
    plurals = {
        "gallery": "galleries",
        "bakery": "bakeries",
        "park": "parks",
        "bus stop": "bus stops",
        "day": "days",
        "church": "churches",
        "box": "boxes",
        "pub": "pubs",
    }
    assert {word: grammar.plural(word) for word in plurals} == plurals
    assert grammar.listing([]) == ""
    assert grammar.listing(["A"]) == "A"
    assert grammar.listing(["A", "B"]) == "A and B"
    assert grammar.listing(["A", "B", "C"]) == "A, B and C"
    assert grammar.count_of(1, "gallery") == "one gallery"
    assert grammar.count_of(2, "gallery") == "two galleries"
    assert grammar.count_of(13, "visit") == "13 visits"
    assert grammar.count_of(0, "visit") == "no visits"
    assert grammar.sentence(" the end") == "The end."
    assert grammar.sentence("3 of 4?") == "3 of 4?"


def test_the_corpus_tells_of_everything_and_explains_nothing():
    items, users, visits = tables()
    texts = list(world_sentences(items, users, visits, copies=3))
    assert len(texts) > 3 * (len(items) + len(visits)) and len(set(texts)) > 0.85 * len(texts)
    whole = "\n".join(texts)
    assert all(item["name"] in whole for item in items)
    assert not re.search(r"\b(you like|you enjoy|suits?|because|recommend|suggest)\b", whole)
    for text in texts:
        assert text[0].isupper() or text[0].isdigit()
        assert text[-1] in ".)" and "{" not in text and "None" not in text and "none" not in text
        assert not re.search(r"\b(a [aeiouAEIOU]|an [^aeiouAEIOU\s\d])", text), text


def test_what_is_told_of_an_item_is_true():
    item = dict(
        name="Ai Fox", kind="gym", mood="artsy", price=4, district="Harbour", cuisine="none"
    )
    other = dict(name="Bo Oak", kind="gym", mood="quiet", price=1, district="Old Town")
    texts = [t for seed in range(80) for t in world_sentences([item, other], seed=seed)]
    about = [t for t in texts if "Ai Fox" in t and "Bo Oak" not in t]
    assert any(t.startswith("Ai Fox is an artsy gym in Harbour.") for t in about)
    for text in about:
        assert "artsy" in text and "4" in text and "gym" in text and "Harbour" in text
        assert not re.search(r"quiet|\b1\b|Old Town|food|cooking|dishes", text)
    assert {t for t in texts if "Ai Fox" in t and "Bo Oak" in t} == {
        "Both Ai Fox and Bo Oak are gyms.",
        "Both Bo Oak and Ai Fox are gyms.",
        "Ai Fox and Bo Oak are two gyms.",
        "Bo Oak and Ai Fox are two gyms.",
    }


def test_diaries_keep_the_order_of_visits():
    items, users, visits = tables()
    names = [item["name"] for item in items]
    for user, rows in visits[:40]:
        told = list(world_sentences(items, users, [(user, rows)], seed=7))
        diary = told[-1]
        # Longer names first, as one may stand inside another.
        found = []
        for match in re.finditer("|".join(sorted(map(re.escape, names), key=len)[::-1]), diary):
            found.append(names.index(match.group()))
        start = rows.index(found[0])
        assert found == rows[start : start + len(found)]


def test_the_same_seed_tells_the_same():
    items, users, visits = tables()
    first = list(world_sentences(items, users, visits, seed=1))
    assert list(world_sentences(items, users, visits, seed=1)) == first
    assert list(world_sentences(items, users, visits, seed=2)) != first
    # Fewer visits leave the rest as it was.
    fewer = list(world_sentences(items, users, visits[:5], seed=1))
    assert fewer == first[: len(fewer)]


def test_gaps_and_wrong_rows():
    assert list(world_sentences([{"name": "A"}], [{}])) == list(world_sentences([{"name": "A"}]))
    assert next(iter(world_sentences([{"name": "A"}]))) in (
        "A is a place.",
        "A is the name of a place.",
    )
    with pytest.raises(UserError, match="no 'name' in a row"):
        list(world_sentences([{"title": "A"}]))
    for visit, what in (((0, [3]), "item row 3"), ((2, [0]), "user row 2"), ((0, [-1]), "row -1")):
        with pytest.raises(UserError, match=what):
            list(world_sentences([{"name": "A"}], [{}], [visit]))
