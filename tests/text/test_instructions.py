"""Instruction files in both forms, splits that never leak, balanced nested subsets."""

import gzip
import hashlib
import json

import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.text.records.instructions import (
    Instruction,
    deduplicate,
    from_messages,
    read_instructions,
    write_instructions,
)
from xrec_jax.text.records.splits import count_by, select, split_by_prompt

FINE = '{"prompt": "a", "completion": "b"}'


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_both_forms_are_read(tmp_path):
    path = tmp_path / "set.jsonl"
    conversation = said(("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"))
    conversation += said(("assistant", "a2 "))
    lines = [
        json.dumps({"prompt": "p\u2028q ", "completion": "c", "dataset": "d", "n": 1.5}),
        "",
        json.dumps({"messages": conversation, "user": 7}),
        json.dumps({"prompt": "p", "completion": "c", "system": "be kind"}),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    first, second, third = read_instructions(path)
    assert first == Instruction("p\u2028q ", "c", meta={"dataset": "d", "n": 1.5})
    assert first.messages == (("user", "p\u2028q "), ("assistant", "c"))
    assert second.prompt == "u2" and second.completion == "a2 " and second.system == "s"
    assert second.turns == (("user", "u1"), ("assistant", "a1")) and second.meta == {"user": 7}
    assert [role for role, _ in second.messages] == ["system", *["user", "assistant"] * 2]
    assert second.group == "u1" and first.group == "p q"
    assert third.system == "be kind" and third.meta == {}


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_what_is_written_is_read(tmp_path, name):
    turns = (("user", "å"), ("assistant", "b"))
    given = [
        Instruction("p \u2028\n", "c", meta={"dataset": "é", "k": [1]}),
        Instruction("p", "c", system="s", turns=turns),
        Instruction("p", "c", system="s"),
    ]
    path = tmp_path / "deep" / name
    write_instructions(path, given)
    assert read_instructions(path) == given
    first = path.read_bytes()
    assert (first[:2] == b"\x1f\x8b") == name.endswith("gz")
    write_instructions(path, given)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not valid JSON"),
        ("[1]", "line 3: not a JSON object"),
        ('{"promt": "a", "completion": "b"}', "no key 'prompt'.*did you mean 'promt'"),
        ('{"prompt": "a"}', "no key 'completion'"),
        ('{"prompt": "a", "completion": " \\n"}', "empty completion"),
        ('{"prompt": "", "completion": "b"}', "empty prompt"),
        ('{"prompt": 3, "completion": "b"}', "prompt must be text, found int"),
        ('{"prompt": "a", "completion": null}', "completion must be text, found NoneType"),
        ('{"prompt": "a", "completion": "b", "system": 3}', "system must be text"),
        ('{"messages": "hi"}', "messages must be a list"),
        ('{"messages": []}', "messages must be a list that is not empty"),
        ('{"messages": ["x"]}', "message 1 must be an object"),
        ('{"messages": [], "prompt": "a"}', "not both"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{FINE}\n\n{line}\n")
    with pytest.raises(UserError, match=f"bad.jsonl, line 3: .*{message.removeprefix('line 3: ')}"):
        read_instructions(path)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("user", "u")], "last message must be by the assistant"),
        ([("user", "u"), ("assistant", "a"), ("user", "u")], "last message"),
        ([("system", "s")], "last message"),
        ([("usr", "u"), ("assistant", "a")], "message 1 has the unknown role 'usr'.*'user'"),
        ([("assistant", "a")], "message 1 must be by the user"),
        ([("system", "s"), ("assistant", "a")], "message 2 must be by the user"),
        ([("user", "u"), ("user", "u"), ("assistant", "a")], "message 2 must be by the assistant"),
        ([("user", "u"), ("system", "s"), ("assistant", "a")], "message 2 must be by the assis"),
        ([("user", "u"), ("assistant", " ")], "empty content of message 2"),
    ],
)
def test_a_wrong_conversation_is_refused(pairs, message):
    with pytest.raises(UserError, match=message):
        from_messages(said(*pairs))
    with pytest.raises(UserError, match="has no 'content'; did you mean 'contents'"):
        from_messages([{"role": "user", "contents": "x"}])


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_instructions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_instructions(tmp_path)
    empty, latin, torn = (tmp_path / name for name in ("empty", "latin", "torn.gz"))
    empty.write_text("\n")
    with pytest.raises(UserError, match="no instruction in it"):
        read_instructions(empty)
    latin.write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_instructions(latin)
    whole = gzip.compress(FINE.encode())
    damaged = whole[:12] + b"\xff\xff" + whole[14:]
    for data in (whole[:-9], FINE.encode(), damaged):
        torn.write_bytes(data)
        with pytest.raises(UserError, match=r"torn.gz: cannot be read"):
            read_instructions(torn)


def test_duplicates_are_counted_by_hand():
    pairs = [("a", "x"), ("a ", "x"), ("a", "y"), ("b", "x"), ("a", "x"), (" a\n", "z")]
    kept, count = deduplicate([Instruction(p, c) for p, c in pairs])
    assert [(i.prompt, i.completion) for i in kept] == [
        ("a", "x"),
        ("a", "y"),
        ("b", "x"),
        (" a\n", "z"),
    ]
    assert (count.examples, count.repeated, count.reanswered) == (6, 2, 2)
    _, other = deduplicate([Instruction("a", "x"), Instruction("a", "x", system="s")])
    assert (other.repeated, other.reanswered) == (0, 1)


def a_set(count, groups=97):
    """Prompts that repeat, some with stray spaces, in three data sets of uneven size."""
    return [
        Instruction(
            f"prompt {n % groups}" + " " * (n % 3),
            f"answer {n}",
            meta={"dataset": "abc"[min(n % groups % 7, 2)]},
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("held_out", [0.004, 0.1, 0.37, 0.98])
@pytest.mark.parametrize("stratify", [None, "dataset"])
def test_a_split_never_leaks(held_out, stratify):
    given = a_set(300)
    train, held = split_by_prompt(given, held_out=held_out, seed=1, stratify=stratify)
    assert len(train) + len(held) == 300 and train and held
    sides = [{i.prompt.strip() for i in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    for strata in "abc" if stratify else [("abc")]:
        members = {i.prompt.strip() for i in given if i.meta["dataset"] in strata}
        want = min(max(int(held_out * len(members) + 0.5), 1), len(members) - 1)
        assert len(members & sides[1]) == want
    # Order does not matter, the seed does.
    _, again = split_by_prompt(given[::-1], held_out=held_out, seed=1, stratify=stratify)
    assert again == held[::-1]
    _, other = split_by_prompt(given, held_out=held_out, seed=2, stratify=stratify)
    assert other != held


def test_the_split_is_the_same_on_every_machine():
    given = [Instruction(f"p{n}", "c") for n in range(9)]
    _, held = split_by_prompt(given, held_out=0.3, seed=0)

    def key(prompt):
        digest = hashlib.blake2b(f"split\x1f0\x1f{prompt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    want = sorted([i.prompt for i in given], key=key)[:3]
    assert sorted(i.prompt for i in held) == sorted(want)


def test_a_prompt_in_two_data_sets_stays_whole():
    given = [Instruction("same", "x", meta={"dataset": d}) for d in "ba"]
    given += [Instruction(f"{d}{n}", "x", meta={"dataset": d}) for d in "ab" for n in range(3)]
    for seed in range(20):
        train, held = split_by_prompt(given, held_out=0.5, seed=seed, stratify="dataset")
        assert sum(i.prompt == "same" for i in held) in (0, 2)
        assert len({i.prompt for i in held}) == 4 and len(train) + len(held) == 8
        _, again = split_by_prompt(given[::-1], held_out=0.5, seed=seed, stratify="dataset")
        assert again == held[::-1]
    assert split_by_prompt(given, held_out=0.0) == (given, [])
    lone = [Instruction("p", "c")] * 4
    assert split_by_prompt(lone, held_out=0.2) == (lone, [])


def test_a_wrong_split_is_refused():
    with pytest.raises(UserError, match="below 1, got 1"):
        split_by_prompt(a_set(3), held_out=1)
    with pytest.raises(UserError, match="no 'datset' to group by; did you mean 'dataset'"):
        split_by_prompt(a_set(3), stratify="datset")


def test_subsets_are_balanced_and_nested():
    given = a_set(240)
    sizes = count_by(given, "dataset")
    before: list = []
    for count in (0, 1, 10, 20, 100, 239, 240):
        chosen = select(given, count, seed=4, balance="dataset")
        assert len(chosen) == count
        places = [given.index(i) for i in chosen]
        assert places == sorted(places) and set(before) <= set(places)
        before = places
        got = {d: sum(i.meta["dataset"] == d for i in chosen) for d in sizes}
        most = max(got.values())
        assert all(n >= most - 1 or n == sizes[d] for d, n in got.items())
    assert select(given, 10, seed=5, balance="dataset") != select(
        given, 10, seed=4, balance="dataset"
    )
    with pytest.raises(UserError, match="cannot choose 241 of 240"):
        select(given, 241)


@tiny.needs_shared_data
def test_the_published_set():
    given = read_instructions(tiny.SHARED / "llmxrec/instructions.jsonl")
    assert count_by(given, "dataset") == {"mind": 80, "ml-100k": 80, "steam": 80}
    train, held = split_by_prompt(given, held_out=0.1, stratify="dataset")
    assert not {i.group for i in train} & {i.group for i in held}
    chosen = select(given, 20, balance="dataset")
    assert sorted(count_by(chosen, "dataset").values()) == [6, 7, 7]
