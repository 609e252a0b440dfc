"""Judgements as text: files, prompts cut in plain sight, both orders, worse explanations."""

import gzip
import json

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.tasks import prompting as prompting_module
from xrec_jax.tasks.judgements import judgements
from xrec_jax.tasks.prompting import visits_to_explain
from xrec_jax.text.prompts.templates import get
from xrec_jax.text.records.judgements import (
    Judgement,
    both_orders,
    judge_prompt,
    read_judgements,
    shorten_prompt,
    split_judgements,
)
from xrec_jax.text.synthetic import corruptions
from xrec_jax.text.synthetic.explanations import mentioned_reasons
from xrec_jax.text.synthetic.instructions import Case

GAMES = (
    "The history games are:\n1: Rust\nThe tags are [Action].\n"
    "2: 3: a title\nThe tags are [Indie].\n"
    "3: Limbo\nThe tags are [Dark].\n\nGive reasons.\n1: is not an entry\n"
)


def write(path, records):
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    return path


def record(number=0, **changed):
    made = {"prompt": f"p{number}", "first": "a", "second": "b", "better": 1 + number % 2}
    return made | {"set": "x"} | changed


# Files


def test_judgements_are_read_with_their_other_keys(tmp_path):
    path = write(tmp_path / "j.jsonl.gz", [record(i) for i in range(4)])
    found = read_judgements(path)
    assert found[1] == Judgement("p1", "a", "b", 2, {"set": "x"})
    assert [one.meta["pair"] for one in read_judgements(path, pair="set")] == ["x"] * 4
    assert [one.meta["pair"] for one in read_judgements(path, block=2)] == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"better": 3}, "better=3 must be 1 or 2"),
        ({"better": "1"}, "better='1'"),
        ({"first": " "}, "first must be text"),
        ({"prompt": None}, "prompt must be text"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, changed, message):
    path = write(tmp_path / "j.jsonl.gz", [record(), record(**changed)])
    with pytest.raises(UserError, match=f"line 2: {message}"):
        read_judgements(path)


def test_wrong_keys_and_blocks_are_named(tmp_path):
    path = write(tmp_path / "j.jsonl.gz", [record(i) for i in range(4)])
    with pytest.raises(UserError, match="no key 'sets'; did you mean 'set'"):
        read_judgements(path, pair="sets")
    with pytest.raises(UserError, match="4 judgements are not whole blocks of 3"):
        read_judgements(path, block=3)
    with pytest.raises(UserError, match="not both"):
        read_judgements(path, pair="set", block=2)
    lacking = record()
    del lacking["second"]
    with pytest.raises(UserError, match="line 1: no key 'second'"):
        read_judgements(write(tmp_path / "k.jsonl.gz", [lacking]))


def test_no_prompt_is_on_both_sides_of_the_split():
    rows = [Judgement(f"p{i % 7}" + " " * (i % 2), "a", "b", 1 + i % 2) for i in range(30)]
    train, held = split_judgements(rows, held_out=0.3, seed=1)
    assert len(train) + len(held) == 30
    assert len({one.group for one in held}) == 2
    assert not {one.group for one in held} & {one.group for one in train}
    assert split_judgements(rows[::-1], held_out=0.3, seed=1)[1] == held[::-1]
    with pytest.raises(UserError, match="both need one or more"):
        split_judgements(rows[:1], held_out=0.3)


# Prompts


def test_one_case_in_two_wordings_is_on_one_side(tmp_path):
    """Ten cases, each asked twice: with a word in front and with a shorter history."""

    def asked(case, entries):
        lines = [f"{n + 1}: Film {case}.{9 - entries + n}" for n in range(entries)]
        return "\n".join(["Seen:", *lines, "We recommend this title:", f"Movie {case}", "Why?"])

    records = [
        {
            "prompt": ("" if entries == 4 else "Hello.\n") + asked(case, entries),
            "first": f"a{case}",
            "second": f"b{entries}",
            "better": 1 + case % 2,
        }
        for case in range(10)
        for entries in (4, 6)
    ]
    path = tmp_path / "j.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    config = tiny.language()
    config.judge.update(dict(source="file", path=str(path), held_out=0.3, stratify=""))
    for seed in range(4):
        found = judgements(config, None, seed=seed)  # type: ignore[arg-type]
        sides = [{one.first for one in part} for part in found]
        assert not sides[0] & sides[1] and len(sides[1]) == 3
        assert [one.prompt for part in found for one in part if one.first == "a3"] == [
            asked(3, 4),
            "Hello.\n" + asked(3, 6),
        ]


def test_every_judgement_is_there_in_both_orders():
    one = Judgement("p", "good", "bad", 1, {"pair": "x"})
    assert both_orders([one]) == [one, Judgement("p", "bad", "good", 2, {"pair": "x"})]
    assert one.swapped.swapped == one


def test_the_prompt_of_the_judge():
    text = judge_prompt(" p {first} ", "one", "two")
    assert text.index("p {first}") < text.index("Explanation 1:\none") < text.index("2:\ntwo")
    assert judge_prompt("p", "one", "two", form="{second}|{first}|{prompt}") == "two|one|p"
    with pytest.raises(UserError, match="has the fields"):
        judge_prompt("p", "one", "two", form="{third}")


ENTRIES = ("1: Rust\nThe tags are [Action].\n", "2: 3: a title\nThe tags are [Indie].\n")


@pytest.mark.parametrize("limit, dropped", [(99, 0), (31, 0), (30, 1), (25, 1), (24, 2), (3, 2)])
def test_the_oldest_entries_are_cut_in_plain_sight(limit, dropped):
    """31 words in all, 6 in the first entry, 8 in the second; the last one always stays."""
    kept = GAMES
    for entry in ENTRIES[:dropped]:
        kept = kept.replace(entry, "")
    found = shorten_prompt(GAMES, count_tokens=str.split, limit=limit)
    assert (found.text, found.dropped, found.tokens) == (kept, dropped, len(kept.split()))


def test_a_prompt_without_a_history_is_left_alone():
    text = "Why this place? " * 9
    found = shorten_prompt(text, count_tokens=len, limit=10)
    assert (found.text, found.dropped, found.tokens) == (text, 0, len(text))


# Judgements of a world


def world_cases(count=30):
    config, data = tiny.language(), tiny.data()
    prompting = prompting_module.prompting(config.instruct, data, None)
    visits = visits_to_explain(data, count, seed=0)
    users, items, made = (np.array([visit[i] for visit in visits]) for i in (0, 1, 3))
    return [
        Case(
            item=prompting.items[item],
            history=prompting.history(before, item),
            reasons=why,
            user=prompting.user(user),
            meta={"user": str(user), "item": str(item)},
        )
        for (user, item, before, _), why in zip(
            visits, data.world.reasons(users, items, made), strict=True
        )
    ]


def test_a_world_gives_true_explanations_against_three_kinds_of_worse_ones():
    cases = world_cases()
    found = corruptions.world_judgements(cases, get("places"), seed=3)
    assert [one.meta["pair"] for one in found] == list(corruptions.KINDS) * 10
    assert {one.better for one in found} == {1, 2}
    assert found == corruptions.world_judgements(cases, get("places"), seed=3)
    worse_misses = 0
    for case, one in zip(cases, found, strict=True):
        better, worse = (one.first, one.second) if one.better == 1 else (one.second, one.first)
        reasons = [*case.reasons.for_, *case.reasons.against]
        assert len(mentioned_reasons(better, reasons)) == len(reasons)
        assert better != worse and case.item["name"] in worse
        worse_misses += len(mentioned_reasons(worse, reasons)) < len(reasons)
    assert worse_misses > 20


def test_repetition_is_about_as_long_with_half_the_content():
    text = "One is here. Two is there now! Three? Four of them come. Five is it."
    # 15 words; the first two sentences have 3 and 4 of them, so 14 words come nearest.
    again = "One is here. Two is there now!"
    assert corruptions.repeated(text) == f"{again} {again}"
    assert corruptions.repeated("Only one.") == "Only one. Only one."


def test_worlds_of_one_kind_of_visit_are_refused():
    case = world_cases(1)[0]
    with pytest.raises(UserError, match="different reasons"):
        corruptions.world_judgements([case, case], get("places"))


def test_judgements_of_a_config():
    config = tiny.language()
    config.judge.update(dict(examples=12, held_out=0.25))
    found = judgements(config, tiny.data(), seed=0)
    assert len(found.train) + len(found.held_out) == 12
    assert len({one.group for one in found.held_out}) == 3
    for changed, message in (
        (dict(source="files"), "'files' is not valid"),
        (dict(source="file"), "needs judge.path"),
        (dict(source="world", examples=1), "must be 2 or more"),
    ):
        config.judge.update(changed)
        with pytest.raises(UserError, match=message):
            judgements(config, tiny.data(), seed=0)
