"""Texts that a small base reads before it is tuned: descriptions after prompts, and small talk."""

import re

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts.parsing import parse_prompt
from xrec_jax.text.prompts.templates import get
from xrec_jax.text.synthetic.comprehension import reading_exercises
from xrec_jax.text.synthetic.filler import filler_paragraphs

ITEMS = [
    {
        "name": "Ash",
        "kind": "cafe",
        "cuisine": "Thai",
        "mood": "quiet",
        "price": 2,
        "district": "Harbour",
        "popularity": "famous",
    },
    {
        "name": "Birch",
        "kind": "cafe",
        "cuisine": "Greek",
        "mood": "lively",
        "price": 3,
        "district": "Harbour",
        "popularity": "little-known",
    },
    {
        "name": "Cedar",
        "kind": "museum",
        "cuisine": "none",
        "mood": "quiet",
        "price": 1,
        "district": "Old Town",
        "popularity": "well-liked",
    },
    {
        "name": "Dogwood",
        "kind": "gallery",
        "cuisine": None,
        "mood": "artsy",
        "price": 4,
        "district": "Old Town",
        "popularity": "famous",
    },
]
USERS = [
    {
        "age_band": "25-34",
        "gender": "woman",
        "occupation": "nurse",
        "home_district": "Harbour",
        "user_text": "A nurse.",
    }
]
NUMBERS = {"none": 0, "one": 1, "two": 2, "three": 3}
BY_NAME = {item["name"]: item for item in ITEMS}


def readings(copies=60, **more):
    return list(
        reading_exercises(
            get("places"), ITEMS, USERS, [(0, [0, 1, 2, 3])], latest=3, copies=copies, **more
        )
    )


def whole(**more):
    """Exercises on a whole prompt: the prompt read back, its item and history rows, the answer."""
    for one in readings(**more):
        if one.prompt.startswith("Tell the user"):
            parsed = parse_prompt(get("places"), one.prompt)
            history = [BY_NAME[entry["name"]] for entry in parsed.history]
            yield parsed.item, history, one.answer


def test_half_of_them_show_the_item_alone():
    alone = [one for one in readings(200) if not one.prompt.startswith("Tell the user")]
    assert 70 < len(alone) < 130
    for one in alone:
        line, _, rest = one.prompt.partition("\n")
        assert rest == "\n" and line.partition(":")[0] in BY_NAME


def test_the_item_is_invented():
    """Its values are drawn one by one, so that no name tells them."""
    seen = {name: set() for name in BY_NAME}
    for item, _, _ in whole(copies=300):
        seen[item["name"]].add((item["kind"], item["mood"], item["district"]))
    assert all(len(values) > 4 for values in seen.values())


def test_what_is_said_is_so():
    """Every claim of likeness names exactly the entries of the prompt that share the value."""
    checked = 0
    for item, history, described in whole(copies=150):
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


def test_without_names_values_and_counts_are_true():
    counts = 0
    for item, history, described in whole(copies=300, named=False):
        assert not [name for name in BY_NAME if re.search(rf"\b{name}\b", described)]
        for number, total, mood in re.findall(
            r"(\w+) of the (\w+) places before (?:was|were) (\w+)", described
        ):
            assert mood == item["mood"]
            assert NUMBERS[number.lower()] == sum(row["mood"] == mood for row in history)
            assert NUMBERS[total] == len(history)
            counts += 1
        for kind in re.findall(r"last visit was to an? (\w+)", described):
            assert kind == history[-1]["kind"]
        for price in re.findall(r"price level (?:is )?(\d)", described):
            assert price == str(item["price"])
    assert counts > 10


def test_values_of_the_item_only():
    for item, _, described in whole():
        for price in re.findall(r"price level (?:of [A-Z][a-z]+ is )?(\d)", described):
            assert price == str(item["price"])


def test_the_same_for_the_same_seed():
    assert readings(5) == readings(5) and readings(5) != readings(5, seed=1)
    assert readings(5) == readings(9)[:5]  # a copy does not depend on how many there are


def test_nobody_without_visits_is_described():
    assert list(reading_exercises(get("places"), ITEMS, USERS, [(0, [])], latest=3)) == []


def test_an_item_without_a_name_is_refused():
    with pytest.raises(UserError, match="no 'name' in a row"):
        list(reading_exercises(get("places"), [{"kind": "cafe"}], USERS, [], latest=3))


def test_small_talk_names_no_item():
    found = list(filler_paragraphs(ITEMS, 200))
    assert len(found) == 200 and len(set(found)) > 190
    assert not [text for text in found for item in ITEMS if item["name"] in text]
    assert not [text for text in found if "{" in text or "none" in text]
    assert found[:7] == list(filler_paragraphs(ITEMS, 7))
    for text in found:
        assert 3 <= len(re.findall(r"[.!?](?: |$)", text)) <= 6
        assert text[0].isupper() and not re.search(r"\ba [aeiou]", text)
