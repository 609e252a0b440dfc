"""The template explainer says what is so, and its unfaithful twin what is not."""

import functools
import re

import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.world import generate
from xrec_jax.evaluation.faithfulness.planted import world_vocabulary
from xrec_jax.text.claims.reader import read_claims
from xrec_jax.text.synthetic.template_explainer import template_explanation, unfaithful_explanation

BARS = [
    dict(item_id=n, name=f"Bar {n}", kind="bar", mood="quiet" if n < 2 else "lively", price=n)
    for n in range(1, 5)
]


@functools.cache
def pairs():
    """(item, history, user) of a world's last visits."""
    made = generate(WorldConfig(**tiny.WORLD))
    items, users = made.dataset.items.to_dicts(), made.dataset.users.to_dicts()
    events, cases = made.dataset.interactions, []
    for user, row in enumerate(users):
        visits = [items[i] for i in events.item[events.user == user]]
        cases.append((visits[-1], visits[-9:-1], row))
    return cases


def test_a_case_worked_by_hand():
    item = dict(item_id=9, name="Dusty Moon", kind="bar", mood="lively", price=7, item_text="A bar")
    text = template_explanation(item, BARS)
    opener, first, second = re.split(r"(?<=\.) ", text)
    assert "Dusty Moon" in opener
    # Lively: 3 of 4 where 2 moods occur; bars: 4 of 4 where all are.
    assert first == "You seem to like lively places, such as Bar 3 and Bar 4."
    assert second == "Also, you seem to like bars, such as Bar 3 and Bar 4."
    assert template_explanation(item, BARS, columns=["kind"]).endswith(
        "You seem to like bars, such as Bar 3 and Bar 4."
    )
    assert "lively" in template_explanation(item, BARS, reasons=1)
    assert "bars" not in template_explanation(item, BARS, reasons=1)


def test_claims_hold_and_citations_share_the_value():
    told = 0
    for item, history, user in pairs():
        text = template_explanation(item, history, user, key=user["user_id"])
        assert item["name"] in text and len(text.split()) <= 75
        assert text == template_explanation(item, history, user, key=user["user_id"])
        for claim in read_claims(text, world_vocabulary()):
            told += 1
            assert claim.direction == "for"
            if claim.attribute == "distance":
                assert item["district"] == user["home_district"]
                continue
            assert str(item[claim.attribute]) == claim.value
            same = [row for row in history if str(row[claim.attribute]) == claim.value]
            assert len(same) >= 0.2 * len(history)
            stem = claim.value[:-1] if claim.attribute == "kind" else claim.value
            clause = next(s for s in text.split(". ")[1:] if re.search(rf"\b{stem}", s))
            cited = [row for row in history if row["name"] in clause]
            assert cited and all(row in same for row in cited)
    assert told > 150


def test_nothing_to_say_is_said():
    item = dict(name="Solo", kind="gym", mood="artsy", price=9)
    text = template_explanation(item, BARS, dict(home_district="Harbour"))
    assert "Solo" in text and "four earlier choices" in text
    assert read_claims(text, world_vocabulary()) == set()
    assert "no earlier choice" in template_explanation(item, [])
    # The item itself in the history is no reason for it.
    assert "no earlier choice" in template_explanation(item, [item, item])


def test_any_table():
    films = [
        dict(title="Red, The", genres=["drama", "crime"], year=1999.0, rating=float("nan")),
        dict(title="Blue", genres=["drama"], year=2001.0, rating=None),
    ]
    item = dict(title="White", genres=["comedy", "drama"], year=2001.0, rating=float("nan"))
    text = template_explanation(item, films, title="title")
    assert "Its genres (drama) speaks for it: Red, The and Blue in your history share it." in text
    assert "ts year (2001.0) speaks for it: Blue in your history shares it." in text
    assert "nan" not in text and "comedy" not in text
    long = [dict(title="word " * 30 + str(n), genres=["drama"], year=2001.0) for n in range(3)]
    text = template_explanation(item, long, title="title")
    assert len(text.split()) <= 75 and text.count("word") == 30


def test_a_home_in_the_same_district_is_near():
    item = dict(name="Solo", kind="gym", district="Harbour")
    text = template_explanation(item, BARS, dict(home_district="Harbour"))
    assert {claim[:2] for claim in read_claims(text, world_vocabulary())} == {("distance", "for")}


def test_the_unfaithful_one_names_nothing_that_is_so():
    vocabulary = world_vocabulary()
    for item, history, user in pairs():
        text = unfaithful_explanation(item, history, user, key=user["user_id"])
        wrong = unfaithful_explanation(item, history, user, vocabulary=vocabulary, key=1)
        for said in (read_claims(text, vocabulary), read_claims(wrong, vocabulary)):
            assert len(said) >= 2
            for claim in said:
                assert str(item[claim.attribute]) != claim.value
        assert len(read_claims(wrong, vocabulary)) == 3


@pytest.mark.parametrize("explainer", [template_explanation, unfaithful_explanation])
def test_mistakes(explainer):
    with pytest.raises(UserError, match="no 'title' in a row"):
        explainer(BARS[0], BARS, title="title")
    with pytest.raises(UserError, match="no value is known that 'Solo' does not have"):
        unfaithful_explanation(dict(name="Solo", kind="bar"), BARS[:1])
