"""Explanation pairs: split and joined, read back by the reader of claims, and the exercises."""

import itertools
import random

import pytest

from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.text.claims.reader import Claim, read_claims
from xrec_jax.text.synthetic.taste_pairs import (
    TASTES,
    Pair,
    Visit,
    join_pair,
    phrases,
    review_exercises,
    split_pair,
    taste_pair,
)

VOCABULARY = {"kind": KIND_WORDS, "cuisine": words.CUISINES[1:], "mood": MOOD_WORDS}
VALUES = {"kind": words.KINDS, "cuisine": words.CUISINES[1:], "mood": words.MOODS}

PARTS = [
    "",
    "you like bars.",
    "line one\nline two",
    "Why: again, why?",
    "it costs 3, why not",
    "why: small letters",
    "  ".join(["a", "b"]),
    "no full stop",
    "Straße, 東京 \U0001f35c",
]


def test_splitting_is_the_inverse_of_joining():
    for pair in itertools.starmap(Pair, itertools.product(PARTS, PARTS)):
        text = join_pair(pair)
        assert split_pair(text) == pair


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", "")),
        ("   \n ", ("", "")),
        ("you like bars.", ("you like bars.", "")),
        ("Why: you like bars.", ("you like bars.", "")),
        ("Why not: you avoid gyms.", ("", "you avoid gyms.")),
        ("Why: a Why not: b", ("a", "b")),
        ("Why: a\nWhy not: b\nWhy not: c", ("a", "b\nWhy not: c")),
        ("Why: a\nWhy not:", ("a", "")),
        ("Why not: b\nWhy: a", ("", "b\nWhy: a")),
        ("a\nwhy not: b", ("a\nwhy not: b", "")),
        ("Why:a\n\n\nWhy not:b  ", ("a", "b")),
        ("Why:Why not:", ("", "")),
        ("Why\nnot: b", ("Why\nnot: b", "")),
    ],
)
def test_texts_of_a_model_that_keeps_no_form(text, expected):
    assert split_pair(text) == Pair(*expected)


def test_a_list_of_tastes():
    values = {"mood": ["quiet"], "kind": ["cafe", "gallery", "bar"], "cuisine": ["Thai", "Greek"]}
    assert phrases(values) == "cafes, galleries and bars, Thai and Greek food, quiet places"
    assert phrases({"kind": [], "cuisine": ()}) == phrases({}) == ""
    assert taste_pair({}, {"mood": ["artsy"]}) == Pair(
        "nothing is known of what you like.", "you avoid artsy places."
    )
    assert taste_pair({"kind": ["gym"]}, {}) == Pair(
        "you like gyms.", "nothing is known of what you avoid."
    )


def drawn(rng):
    """Likes and dislikes without a common value."""
    sides = [{}, {}]
    for name, values in VALUES.items():
        chosen = rng.sample(list(values), rng.randint(0, 5))
        cut = rng.randint(0, len(chosen))
        sides[0][name], sides[1][name] = chosen[:cut], chosen[cut:]
    return sides


def test_the_reader_of_claims_reads_back_what_a_pair_states():
    rng = random.Random(5)
    seen = 0
    for _ in range(300):
        likes, dislikes = drawn(rng)
        expected = {
            Claim(name, direction, value)
            for direction, side in (("for", likes), ("against", dislikes))
            for name, values in side.items()
            for value in values
        }
        assert read_claims(join_pair(taste_pair(likes, dislikes)), VOCABULARY) == expected
        seen += len(expected)
    assert seen > 1000


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_read_on_both_sides(name):
    for value in VALUES[name]:
        for sides, direction in (
            (({name: [value]}, {}), "for"),
            (({}, {name: [value]}), "against"),
        ):
            found = read_claims(join_pair(taste_pair(*sides)), VOCABULARY)
            assert found == {Claim(name, direction, value)}


# Exercises


def visits(count):
    rng = random.Random(9)
    made = []
    for number in range(count):
        row = {name: rng.choice(values) for name, values in VALUES.items()}
        facts = [(name, row[name], rng.random() < 0.5) for name in VALUES if rng.random() < 0.6]
        review = f"review {number} of this" if facts and rng.random() < 0.8 else ""
        made.append(Visit(row, review, facts if review else ()))
    return made


PEOPLE = [
    Visit({"about": "I say one thing"}, "I say one thing", [("kind", "museum", False)]),
    Visit(
        {"about": "I say two"}, "I say two", [("mood", "quiet", True), ("cuisine", "Thai", True)]
    ),
    Visit({"about": "I say nothing"}, "I say nothing", ()),
]


PLAIN = [Visit({"about": "nothing"}, "", ())]


def exercises(count=120, seed=0, latest=4, visits_=None, people=()):
    given = visits(37) if visits_ is None else visits_
    return list(
        review_exercises(TASTES, given, people or PLAIN, count=count, latest=latest, seed=seed)
    )


def listed(line, head):
    """Values in a line of an answer: naive, by the words of `phrases`."""
    assert line.startswith(head) and line.endswith(".")
    text = line[len(head) : -1]
    return [] if text == "nothing" else text


def test_answers_state_exactly_the_facts_of_the_reviews_in_the_prompt():
    given = visits(37)
    by_review = {one.review: one for one in [*given, *PEOPLE] if one.review}
    lengths = set()
    for prompt, answer in exercises(visits_=given, people=PEOPLE):
        shown = [(prompt.index(t), t) for t in by_review if t + "\n" in prompt]
        first, second = answer.split("\n")
        for line, head, liked in ((first, "Praised: ", True), (second, "Complained of: ", False)):
            expected = {
                Claim(name, "for", value)
                for _, text in shown
                for name, value, how in by_review[text].facts
                if how is liked
            }
            text = listed(line, head)
            found = read_claims(f"You like {text}.", VOCABULARY) if text else set()
            assert found == expected, (prompt, answer)
        lengths.add(sum(line[:2] in {f"{n}." for n in range(1, 9)} for line in prompt.split("\n")))
    assert lengths == {0, 1, 2, 3, 4}  # 0: a person alone


def test_facts_are_told_in_the_order_of_the_visits():
    row = {"kind": "bar", "cuisine": "Thai", "mood": "quiet"}
    one = Visit(row, "first", [("kind", "bar", True), ("mood", "quiet", False)])
    for _, answer in exercises(count=20, visits_=[one]):
        assert answer in (
            "Praised: bars.\nComplained of: quiet places.",
            "Praised: nothing.\nComplained of: nothing.",  # of a person alone
        )


def test_visits_without_a_review_have_nothing_to_tell():
    bare = [Visit({"kind": "bar", "cuisine": "none", "mood": "quiet"}, "", ())]
    for prompt, answer in exercises(count=12, visits_=bare):
        assert answer == "Praised: nothing.\nComplained of: nothing."
        assert prompt == "nothing\n" or "1. quiet bar\n" in prompt
        assert "none" not in prompt.replace("(none)", "")


def test_half_of_the_exercises_are_short():
    share = sum("Visits, oldest first" not in prompt for prompt, _ in exercises(400)) / 400
    assert 0.4 < share < 0.6


def test_exercises_are_keyed():
    assert exercises(30) == exercises(60)[:30]
    assert exercises(30) != exercises(30, seed=1)
    assert len({prompt for prompt, _ in exercises(60)}) > 40
    assert exercises(visits_=[]) == [] and exercises(count=0) == []
    longest = exercises(40, latest=2)
    assert not [prompt for prompt, _ in longest if "\n3. " in prompt]
