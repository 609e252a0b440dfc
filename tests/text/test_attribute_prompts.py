"""Questions that do not hold their answers: values, layouts, leaks, files, splits by user."""

import json

import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import templates
from xrec_jax.text.records import attribute_prompts, attribute_questions, attributes
from xrec_jax.text.records.attributes import Attribute, Question

PLACE = {
    "name": "Red Owl",
    "kind": "bar",
    "cuisine": "none",
    "mood": "quiet",
    "price": 3,
    "popularity": None,
    "district": "Harbour",
}
CAFE = {**PLACE, "name": "The {Blue} Fox", "kind": "cafe", "cuisine": "Thai", "price": 1}
USER = {"gender": "woman", "age_band": "25-34", "occupation": "nurse", "home_district": "Eastfield"}
GENDER = Attribute("gender", ("man", "woman"))
KIND = Attribute("kind", ("bar", "cafe"))
PRICE = Attribute("price", ("1", "2", "3"), numeric=True)


# Values


def test_attributes_are_inferred_from_values():
    assert attributes.infer("a", ["y", "x", "y"]) == Attribute("a", ("x", "y"))
    assert attributes.infer("a", [2, 10, 2.5]) == Attribute(
        "a", ("2", "2.5", "10"), numeric=True, low=2, high=10
    )
    many = attributes.infer("a", [n / 2 for n in range(3, 30)])
    assert many == Attribute("a", (), numeric=True, low=1.5, high=14.5)
    with pytest.raises(UserError, match="attribute 'a' has numbers and texts: 1, 'x'"):
        attributes.infer("a", [1, "x"])
    with pytest.raises(UserError, match="'a' has no value"):
        attributes.infer("a", [])


def test_an_answer_is_json_that_reads_back():
    truth = {"user age": 47.0, "cost": 2.5, 'a "b"': "Café"}
    text = attributes.answer_text(truth)
    assert text == '{"user age": 47, "cost": 2.5, "a \\"b\\"": "Café"}'
    assert json.loads(text) == truth
    assert attributes.strict_object(text) == truth


# Prompts from rows


def test_a_question_about_the_item_hides_it_there_and_keeps_the_history():
    template = attribute_prompts.question_template(
        templates.get("places"), [KIND, PRICE], item=["kind", "price"], profile=["occupation"]
    )
    made = attribute_prompts.ask(
        template, [KIND, PRICE], row=CAFE, item=CAFE, history=[PLACE], user=USER, name="u1"
    )
    assert made.prompt == (
        "Places the user went to, oldest first:\n"
        "1. Red Owl: bar, quiet, price level 3, in Harbour\n"
        "\nAbout the user: occupation: nurse\n"
        "Recommended place: The {Blue} Fox, Thai food, quiet, in Harbour\n\n"
        "Tell from this:\n"
        '"kind": one of "bar", "cafe"\n"price": one of 1, 2, 3\n'
        "Answer with one JSON object and no other text.\n"
    )
    assert made.truth == {"kind": "cafe", "price": 1.0} and made.user == "u1"
    assert made.instruction.completion == '{"kind": "cafe", "price": 1}'
    assert made.instruction.prompt == made.prompt


def test_without_a_profile_no_line_of_it_is_left():
    template = attribute_prompts.question_template(templates.get("places"), [GENDER])
    made = attribute_prompts.ask(
        template, [GENDER], row=USER, item=PLACE, history=[], user=None, name="u1"
    )
    assert made.prompt.startswith(
        "Places the user went to, oldest first:\n(none)\n\nRecommended place: Red Owl: bar, quiet"
    )
    assert "About" not in made.prompt and made.truth == {"gender": "woman"}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("{a}: {b}[[, {c} food]] end", "{a}[[, {c} food]] end"),
        ("{a}: {x}[[, {b} and {c}]]", "{a}: {x}"),
        ("{b}, {a}", "{a}"),
        ("{{{b}}} {a}", "}} {a}"),
    ],
)
def test_fields_leave_a_layout(layout, expected):
    template = templates.Template(name="t", body="{history}{item}", entry="{a}", item=layout)
    assert attribute_prompts.without(template, ["b"], of="item") == expected


def test_a_column_goes_by_its_own_name():
    template = templates.Template(
        name="t", body="{history}{item}", entry="{a}", item="{a} {kind}", columns={"kind": "genre"}
    )
    assert attribute_prompts.without(template, ["kind"], of="item") == "{a} {kind}"
    assert attribute_prompts.without(template, ["genre"], of="item") == "{a}"
    with pytest.raises(UserError, match="'t' shows nothing of an item but"):
        attribute_prompts.question_template(template, [GENDER], item=["genre", "a"])


def test_a_missing_true_value_is_named():
    template = attribute_prompts.question_template(templates.get("places"), [GENDER])
    with pytest.raises(UserError, match="user u1: gender is 'robot'"):
        attribute_prompts.ask(
            template,
            [GENDER],
            row={"gender": "robot"},
            item=PLACE,
            history=[],
            user=None,
            name="u1",
        )


def test_a_shown_column_must_not_hold_an_asked_value():
    rows = [
        {**USER, "about": "A woman of age 25-34."},
        {**USER, "gender": "man", "about": "One of the women's club."},
    ]
    attribute_prompts.check_no_leak(rows, ["gender"], ["occupation"], what="attributes.profile")
    with pytest.raises(
        UserError,
        match=r"attributes.profile: column 'about', .* holds the value of 'gender' in 1 of 2 rows",
    ):
        attribute_prompts.check_no_leak(rows, ["gender"], ["about"], what="attributes.profile")
    with pytest.raises(UserError, match="'gender' is asked for and shown"):
        attribute_prompts.check_no_leak(rows, ["gender"], ["gender"], what="attributes.profile")


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a woman", "man", False),
        ("a Man.", "man", True),
        ("age 65+", "65+", True),
        ("age 165+", "65+", False),
        ("level 3", "3", True),
        ("level 13", "3", False),
    ],
)
def test_values_are_words_of_their_own(text, value, expected):
    assert attribute_prompts.holds(text, value) is expected


# Files

ENTRY = r"^\d+: (.+)$"


def write(tmp_path, *records):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(films, completion, more="", **others):
    lines = "".join(f"{n}: {film}\n" for n, film in enumerate(films, start=1))
    prompt = f"Seen:\n{lines}{more}\nTell the age and the sex, male or female."
    return {"prompt": prompt, "completion": completion, **others}


def test_a_file_is_read_and_what_is_malformed_is_counted(tmp_path):
    path = write(
        tmp_path,
        record(["A", "B"], '{"age": 30, "sex": "male"}'),
        record(["B", "A"], '{"age": 30, "sex": "male"}', "A female lead."),
        record(["B", "C"], '{"age": 41.5, "sex": "female"}', "A female lead."),
        record(["C"], '{"price": Free}'),
        record(["C"], '{"age": [1]}'),
        record(["C"], "{}"),
        record(["D"], '{"cost": 3}', user="u7"),
    )
    found = attribute_questions.read_questions(path, entry=ENTRY)
    assert found.malformed == 3 and found.example == '{"price": Free}'
    assert [one.truth for one in found.questions] == [
        {"age": 30.0, "sex": "male"},
        {"age": 30.0, "sex": "male"},
        {"age": 41.5, "sex": "female"},
        {"cost": 3.0},
    ]
    first, second, third, last = (one.user for one in found.questions)
    assert first == second != third and last == "u7"
    assert [one.key for one in found.questions[0].attributes] == ["age", "sex"]
    assert found.questions[0].attributes[1].values == ("female", "male")
    # The last line of every prompt names both sexes; only the third prompt gives its own away.
    assert found.stated == {"age": 0, "sex": 1, "cost": 0}
    only = attribute_questions.read_questions(path, keys=["age", "sex"], entry=ENTRY)
    assert only.questions == found.questions[:3]


def test_wrong_files_are_refused(tmp_path):
    path = write(tmp_path, record(["A"], '{"age": 30}'))
    with pytest.raises(UserError, match=r"no completion has the key 'ago'.*'age'"):
        attribute_questions.read_questions(path, keys=["ago"])
    with pytest.raises(UserError, match=r"attributes.entry='\(' is no regular expression"):
        attribute_questions.read_questions(path, entry="(")
    bad = write(tmp_path, record(["A"], "age: 30"))
    with pytest.raises(UserError, match="no completion is a JSON object of texts and numbers"):
        attribute_questions.read_questions(bad)


def test_a_user_is_known_by_entries_or_by_the_prompt(tmp_path):
    records = [record(["A", "B"], '{"age": 1}'), record(["A", "B"], '{"age": 1}', "again")]
    path = write(tmp_path, *records)
    for entry, users in ((ENTRY, 1), ("", 2), (r"^\* (.+)$", 2)):
        found = attribute_questions.read_questions(path, entry=entry).questions
        assert len({one.user for one in found}) == users


def test_texts_on_the_users_of_prompts_are_left_out():
    def listed(*names):
        return "".join(f"{n}: {name}\n" for n, name in enumerate(names, start=1))

    texts = [
        listed("d", "c", "b", "a") + "age 30",
        listed("a", "b", "x", "y"),
        listed("b", "c", "d", "z", "w"),
        "no list of anything",
        listed("e"),
    ]
    prompts = [listed("a", "b", "c", "d"), "no list either"]
    kept, count = attribute_questions.without_users(texts, prompts, ENTRY)
    assert (kept, count) == ([texts[1], texts[3], texts[4]], 2)
    assert attribute_questions.without_users(texts, prompts, ENTRY, share=0.8) == (texts[1:], 1)


@needs_shared_data
def test_the_shared_file_is_read():
    path = SHARED / "llmxrec" / "attributes.jsonl"
    found = attribute_questions.read_questions(path, entry=r"^\d+[:.] (.+)$")
    assert len(found.questions) == 526 and found.malformed == 174
    asked = {one.attributes for one in found.questions}
    assert {attribute.key for group in asked for attribute in group} == {
        "user age",
        "user gender",
        "user occupation",
        "popularity",
        "price_acc",
    }
    # The same history always comes with the same profile, so it does tell users.
    profiles: dict[str, set[str]] = {}
    for one in found.questions:
        if "user age" in one.truth:
            profiles.setdefault(one.user, set()).add(one.instruction.completion)
    assert len(profiles) == 217 and all(len(group) == 1 for group in profiles.values())


# Splits


def questions(count, users):
    return [Question(f"prompt {n}", (GENDER,), {"gender": "man"}, users[n]) for n in range(count)]


def test_a_split_shares_no_user_and_no_prompt():
    made = questions(60, [f"u{n % 17}" for n in range(60)])
    # Another user was asked the very same thing.
    made += [Question("prompt  0 ", (GENDER,), {"gender": "man"}, f"v{n}") for n in range(9)]
    train, held_out = attributes.split_by_user(made, share=0.3, seed=5)
    names = [{one.user for one in part} for part in (train, held_out)]
    prompts = [{one.instruction.group for one in part} for part in (train, held_out)]
    assert not names[0] & names[1] and not prompts[0] & prompts[1]
    assert len(names[1]) == round(0.3 * 26)
    assert train == [one for one in made if one in train]  # the order stays
    again = attributes.split_by_user(made[::-1], share=0.3, seed=5)
    assert {one.user for one in again[1]} == names[1]
    assert {one.user for one in attributes.split_by_user(made, share=0.3, seed=6)[1]} != names[1]


def test_a_split_needs_two_users_and_a_share():
    made = questions(3, "aaa")
    with pytest.raises(UserError, match="two users or more, found 1"):
        attributes.split_by_user(made, share=0.5, seed=0)
    with pytest.raises(UserError, match=r"above 0 and below 1, got 1\.0"):
        attributes.split_by_user(questions(3, "abc"), share=1.0, seed=0)
    train, held_out = attributes.split_by_user(questions(2, "ab"), share=0.01, seed=0)
    assert len(train) == len(held_out) == 1
