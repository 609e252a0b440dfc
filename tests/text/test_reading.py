"""Texts that a small base reads before it is tuned: descriptions after prompts, and small talk."""

import re

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.text.comprehension import comprehension_texts
from xrec_jax.text.parsing import parse_prompt
from xrec_jax.text.talk import small_talk
from xrec_jax.text.templates import get

ITEMS = [
    {"name": "Ash", "kind": "cafe", "cuisine": "Thai", "mood": "quiet", "price": 2,
     "district": "Harbour", "popularity": "famous"},
    {"name": "Birch", "kind": "cafe", "cuisine": "Greek", "mood": "lively", "price": 3,
     "district": "Harbour", "popularity": "little-known"},
    {"name": "Cedar", "kind": "museum", "cuisine": "none", "mood": "quiet", "price": 1,
     "district": "Old Town", "popularity": "well-liked"},
    {"name": "Dogwood", "kind": "gallery", "cuisine": None, "mood": "artsy", "price": 4,
     "district": "Old Town", "popularity": "famous"},
]  # fmt: skip
USERS = [
    {"age_band": "25-34", "gender": "woman", "occupation": "nurse", "home_district": "Harbour",
     "user_text": "A nurse."},
]  # fmt: skip
BY_NAME = {item["name"]: item for item in ITEMS}


def texts(copies=60, **more):
    return list(
        comprehension_texts(
            get("places"), ITEMS, USERS, [(0, [0, 1, 2, 3])], latest=3, copies=copies, **more
        )
    )


def split(text):
    """The prompt, and the description behind it."""
    end = "within 75 words.\n"
    prompt, _, described = text.partition(end)
    return parse_prompt(get("places"), prompt + end), described


def test_what_is_said_is_so():
    """Every claim of likeness names exactly the entries of the prompt that share the value."""
    checked = 0
    for text in texts():
        parsed, described = split(text)
        item = BY_NAME[parsed.item["name"]]
        history = [BY_NAME[entry["name"]] for entry in parsed.history]
        assert len(history) <= 3 and described
        others = [other for other in history if other["name"] != item["name"]]
        for name, pattern in (
            ("mood", r"([^.]*) (?:is|are) (?:just as )?" + item["mood"] + r"(?: as well)?\."),
            ("district", r"([^.]*) (?:is|are) in " + item["district"] + r" too\."),
        ):
            for found in re.findall(pattern, described):
                alike = [o["name"] for o in others if o[name] == item[name]]
                if found.strip() and not found.strip().startswith(("The mood", "It", "The place")):
                    if "other place" in found or found.strip() == item["name"]:
                        continue
                    assert re.findall(r"[A-Z][a-z]+", found) == alike
                    checked += 1
        if "no other place on the list is " + item["mood"] in described.lower():
            assert not [o for o in others if o["mood"] == item["mood"]]
            checked += 1
    assert checked > 10


def test_values_of_the_item_only():
    for text in texts():
        parsed, described = split(text)
        for price in re.findall(r"price level (?:of [A-Z][a-z]+ is )?(\d)", described):
            assert price == str(BY_NAME[parsed.item["name"]]["price"])


def test_the_same_for_the_same_seed():
    assert texts(5) == texts(5) and texts(5) != texts(5, seed=1)
    assert texts(5) == texts(9)[:5]  # a copy does not depend on how many there are


def test_nobody_without_visits_is_described():
    assert list(comprehension_texts(get("places"), ITEMS, USERS, [(0, [])], latest=3)) == []


def test_an_item_without_a_name_is_refused():
    with pytest.raises(UserError, match="no 'name' in a row"):
        list(comprehension_texts(get("places"), [{"kind": "cafe"}], USERS, [], latest=3))


def test_small_talk_names_no_item():
    found = list(small_talk(ITEMS, 200))
    assert len(found) == 200 and len(set(found)) > 190
    assert not [text for text in found for item in ITEMS if item["name"] in text]
    assert not [text for text in found if "{" in text or "none" in text]
    assert found[:7] == list(small_talk(ITEMS, 7))
    for text in found:
        assert 3 <= len(re.findall(r"[.!?](?: |$)", text)) <= 6
        assert text[0].isupper() and not re.search(r"\ba [aeiou]", text)
