"""Checks of attribute questions and of tables of ratings."""

import json

from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.contents import recommended_lines


def prompt(place, tags="calm", keys='"gender": "male or female", "price": "<number>"'):
    return (
        f"Played so far:\n1: Game {place}\nThe tags are [quick].\n\nWe suggest the title:\n"
        f"Title {place}.\nThe tags are [{tags}].\n\nYour mission is to infer.\n"
        f"Answer as\n{{{keys}}}"
    )


def rows(count=12, **changed):
    values = [
        {"gender": ("male", "female")[place % 2], "price": 10 + 3 * place % 7}
        for place in range(count)
    ]
    return [
        {"prompt": prompt(n), "completion": json.dumps(value)} for n, value in enumerate(values)
    ]


def found(records):
    outcomes = audit.check_attributes(audit.read_attributes(records))
    return {one.code.removeprefix("attributes/"): one for one in outcomes if one}


def test_clean_attributes():
    one = found(rows())
    # What is most frequent is always told, here below any warning: 6 of 12, 2 of 12.
    assert {code: f.count for code, f in one.items() if f.count} == {"majority_class": 2}
    assert one["majority_class"].severity == "info"
    assert one["majority_class"].examples[0] == "gender: 'male' in 6 of 12 (50 %; 2 values)"


def test_faulty_answers():
    records = rows()
    records[3]["completion"] = '{"gender": male, "price": Free to Play}'
    records[5]["completion"] = "no idea"
    records[7]["completion"] = '["male", 3]'
    records[8]["completion"] = '{"sex": "male", "price": 3}'
    records[9]["completion"] = {"gender": "female", "price": 3}  # an object as it is
    one = found(records)
    malformed = one["malformed_answers"]
    assert (malformed.count, malformed.total, malformed.severity) == (3, 12, "warning")
    assert malformed.examples[1] == "'no idea': 1 times"
    assert (one["other_keys"].count, one["other_keys"].total) == (1, 12)
    assert one["other_keys"].examples == ("asked for gender, price, answered price, sex: 1 times",)


def test_majority_warns():
    records = rows(10)
    for place in range(7):
        records[place]["completion"] = json.dumps({"gender": "male", "price": place})
    one = found(records)["majority_class"]
    assert one.severity == "warning" and one.count == 2
    assert one.examples[0] == "gender: 'male' in 8 of 10 (80 %; 2 values)"


def test_answers_in_prompts():
    assert recommended_lines(prompt(3, "x"))[:2] == ["Title 3.", "The tags are [x]."]
    records = rows()
    for place, record in enumerate(records):
        gender = json.loads(record["completion"])["gender"]
        record["prompt"] = prompt(place, f"for {gender} players")
    one = found(records)["answer_in_prompt"]
    assert (one.count, one.total, one.severity) == (12, 24, "error")
    assert "gender: 12 of 12 answers" in one.examples[0] and "(0 by chance)" in one.examples[0]
    for place, record in enumerate(records):  # both words everywhere: no telling which
        record["prompt"] = prompt(place, f"for male or female players of {place}")
    assert not found(records)["answer_in_prompt"].count


def test_ratings():
    table = [
        {
            "item": str(item),
            "model": model,
            "rater": "r",
            "reasonability": f"{item + 1.5}",
            "redundancy": "3",
        }
        for item in range(4)
        for model in ("a", "b")
    ]
    assert not any(one.count for one in audit.check_ratings(table))
    bare = [{key: value for key, value in row.items() if key != "rater"} for row in table][:-1]
    bare[0]["reasonability"], bare[2]["redundancy"] = "11", "?"
    one = {f.code: f for f in audit.check_ratings(bare)}
    assert {code: f.count for code, f in one.items()} == {
        "ratings/out_of_scale": 2,
        "ratings/repeated_rows": 0,
        "ratings/uneven": 1,
        "ratings/no_rater": 7,
    }
    assert one["ratings/out_of_scale"].total == 14
    assert one["ratings/out_of_scale"].examples[0] == "row 1, reasonability: '11'"
    assert one["ratings/uneven"].examples == ("3: 0 of b",)
