"""Checks of prompts: on clean sets nothing, on faulty ones exact counts."""

import pytest

from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.contents import LOOSE, ContentIndex, read_content, same_request
from xrec_jax.text.prompts import published
from xrec_jax.text.prompts.render import render_prompt

USER = {"age": 31, "gender": "female", "occupation": "baker"}
TITLES = [f"{word} of {other}" for word in ("House", "Night", "Song") for other in "ABCDEFGHIJ"]


def movie(title, history=("Alien", "Brazil", "Clue"), user=USER):
    row = lambda name: {"movie_title": name, "class": ["Drama", "War"]}  # noqa: E731
    return render_prompt(
        published.MOVIE, item=row(title), history=[row(name) for name in history], user=user
    ).text


def game(title, history=("Rust", "Dota")):
    row = lambda name: {"title": name, "tags": ["Action"]}  # noqa: E731
    return render_prompt(
        published.GAME, item=row(title), history=[row(name) for name in history]
    ).text


def records(prompts, dataset="ml", **more):
    return [{"prompt": prompt, "dataset": dataset, **more} for prompt in prompts]


def by_code(outcomes):
    return {outcome.code.split("/")[1]: outcome for outcome in outcomes if outcome is not None}


def counts(outcomes):
    return {code: one.count for code, one in by_code(outcomes).items() if one.count}


CLEAN = [*records(map(movie, TITLES)), *records(map(game, TITLES), "steam")]


def test_clean_prompts():
    cases = audit.read_contents(CLEAN)
    outcomes = [
        *audit.check_prompts(cases, "prompts"),
        audit.repeated(cases, "prompts"),
        audit.overlap(cases[:9], cases[9:], "tuning", "prompts"),
        audit.other_form(cases[:9], cases[9:], "tuning", "prompts"),
    ]
    assert len(by_code(outcomes)) == 7 and not counts(outcomes)


def test_reading():
    case = read_content("\n " + movie("Matrix, The") + " \n", dataset="ml")
    assert case.template == "llmxrec_movie" and case.title == "Matrix, The"
    assert case.history == ("Alien", "Brazil", "Clue") and case.shown == ("alien", "brazil", "clue")
    assert case.target == "matrix" and set(case.user) == {"31", "female", "baker"}
    loose = read_content(
        "Books so far:\n1. Emma; price: 3\n2) Dune\nA line.\nWe suggest this title:\nUlysses.\nWhy?"
    )
    assert (loose.template, loose.title, loose.history) == (LOOSE, "Ulysses", ("Emma", "Dune"))
    assert loose.user is None
    for text in ("Why this film?", "1. Emma\nWhy?", "We recommend:\nEmma"):
        assert not read_content(text).read


def test_target_in_history():
    known = [movie("The Alien (1979)", ("Clue", "Alien (1979)")), movie("CLUE!")]
    cases = audit.read_contents([*records(known), *CLEAN])
    found = by_code(audit.check_prompts(cases, "prompts"))["target_in_history"]
    assert (found.count, found.total, found.severity) == (2, 62, "warning")
    assert found.examples[0] == "ml: 2 of 32 (6.25 %), in 2 as the latest entry"
    assert found.examples[1] == "row 1 (ml): 'The Alien (1979)' is entry 2 of 2"
    # Another year is another film; a title within a title is not that title.
    other = [movie("Alien (1979)", ("Alien (1986)", "Aliens")), movie("Brazil", ("Brazil nuts",))]
    assert not counts(audit.check_prompts(audit.read_contents(records(other)), "x"))
    serious = audit.read_contents(records([*known, *map(movie, TITLES[:18])]))
    assert by_code(audit.check_prompts(serious, "x"))["target_in_history"].severity == "error"


def test_prompts_of_another_dataset():
    wrong = records([game("Doom"), game("Quake")], "ml")
    cases = audit.read_contents([*CLEAN, *wrong])
    found = by_code(audit.check_prompts(cases, "judgements"))["prompt_of_another_dataset"]
    assert (found.count, found.total, found.severity) == (2, 62, "error")
    assert found.examples[0].startswith("row 61 (ml): laid out as steam, ")


def test_collapse():
    # 30 prompts, 18 of one item: sizes 18, 4, 4, 4.
    titles = ["Doom"] * 18 + ["Quake", "Myst", "Worms"] * 4
    prompts = [game(title, (f"Old {place}", "Rust")) for place, title in enumerate(titles)]
    made = records(prompts, "steam", recommender="popular") + records(map(movie, TITLES))
    found = by_code(audit.check_prompts(audit.read_contents(made), "prompts"))[
        "recommendation_collapse"
    ]
    assert (found.count, found.total, found.severity) == (1, 2, "warning")
    # exp of -(.6 ln .6 + 3 * 2/15 ln 2/15) = 3.04; 4 + 31 titles in all.
    assert (
        "steam, popular: 4 items in 30 prompts that show 35 titles; 'Doom' in 60 %; as uneven "
        "as 3.0 equal items" in found.examples[0]
    )
    few = audit.read_contents(made[:19])  # too few to tell
    assert "recommendation_collapse" not in by_code(audit.check_prompts(few, "prompts"))
    again = audit.read_contents([made[0]] * 40)  # one prompt, however often it stands there
    assert "recommendation_collapse" not in by_code(audit.check_prompts(again, "prompts"))


def test_unread_and_repeated():
    cases = audit.read_contents([*CLEAN, {"prompt": "Why?"}, CLEAN[3], {"prompt": " Why? \n"}])
    found = by_code([*audit.check_prompts(cases, "prompts"), audit.repeated(cases, "prompts")])
    assert found["unread_prompts"].count == 2 and found["unread_prompts"].severity == "info"
    assert found["repeated_prompts"].count == 2
    assert found["repeated_prompts"].examples[0].startswith("rows 4 and 62: ")


@pytest.mark.parametrize(
    "other, same",
    [
        (dict(history=("Zorro", "Alien", "Brazil", "Clue")), True),  # cut
        (dict(history=("Brazil", "Clue")), False),  # too short to tell
        (dict(history=("Alien", "Clue", "Brazil")), False),
        (dict(user=USER | {"age": 32}), False),
        (dict(title="The Zulu"), True),
        (dict(title="Zulu 2"), False),
    ],
)
def test_same_case(other, same):
    first, second = read_content(movie("Zulu")), read_content(movie(**{"title": "Zulu", **other}))
    assert same_request(first, second) == same_request(second, first) == same
    assert ContentIndex([first]).find(second) == (0 if same else None)


def test_overlap():
    # The evaluated prompts show more of the history, with other titles of the same three rows.
    longer = [movie(title, ("Zorro", "Alien", "Brazil", "Clue")) for title in TITLES[:4]]
    evaluated = audit.read_contents([*records(longer), *records([game("Doom")], "steam")])
    tuned = audit.read_contents(
        [*records(map(movie, TITLES[2:7])), *records([" " + game("Doom")], "steam")]
    )
    found = audit.overlap(tuned, evaluated, "instructions", "prompts")
    assert (found.code, found.severity) == ("instructions/also_in_prompts", "error")
    assert (found.count, found.total) == (3, 6)
    assert "(3 of 5 there), 1 of them word for word" in found.message
    assert found.examples[:2] == ("ml: 2 of 5", "steam: 1 of 1")
    assert found.examples[2].startswith("row 1 (ml) is row 3 (ml) there: 'House of C'")
    assert audit.overlap(tuned, evaluated, "a", "b", tuned=False).severity == "warning"


def test_other_form():
    def news(template):
        item = {"title": "A", "category": "b", "sub_category": "c"}
        return render_prompt(template, item=item, history=[]).text

    tuned = audit.read_contents(
        [*records([news(published.NEWS)], "mind"), *records([movie("Zulu")])]
    )
    asked = audit.read_contents(
        [*records([news(published.NEWS_ASKED)], "mind"), *records([movie("Zulu", TITLES)])]
    )
    found = audit.other_form(tuned, asked, "instructions", "prompts")
    assert (found.count, found.total) == (2, 2)
    assert found.examples == (
        "mind: laid out as llmxrec_news, not llmxrec_news_asked (1 row)",
        "ml: at most 3 history entries, there up to 30 (1 row)",
    )
