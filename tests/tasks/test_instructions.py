"""Instruction files as rows: whatever is wrong with a record is told by its file and line."""

import json

import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import bpe
from xrec_jax.stages.instruct import check_rows
from xrec_jax.tasks.instructions import Instructions, examples, instructions
from xrec_jax.text.records.instructions import read_instructions

RECORDS = [{"prompt": f"why item {i}?", "completion": f"because of {i}"} for i in range(6)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["why item because of", "0123456789 and the rest"] * 9
    return bpe.train_bpe(texts, tmp_path_factory.mktemp("bpe") / "tokenizer", vocab_size=300)


def read(path, **changed):
    """The set with changes to the record on line 4."""
    records = [dict(one) for one in RECORDS]
    records[3] |= changed
    path.write_text("\n".join(map(json.dumps, [records[0], records[1]])) + "\n\n")
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in records[3:])
    return read_instructions(path)


def config(**changed):
    made = tiny.language()
    made.instruct.update(dict(length=48) | changed)
    made.instruct.samples.max_new_tokens = 9
    return made


@pytest.mark.parametrize("pack", [True, False])
def test_an_example_that_no_row_holds(tokenizer, tmp_path, pack):
    path = tmp_path / "set.jsonl"
    found = read(path, completion="because " * 60)
    assert found[2].source == f"{path}, line 4"
    for parts in (Instructions(found, found[:1], ()), Instructions(found[:1], found, ())):
        with pytest.raises(UserError, match=rf"examples: {path}, line 4 has \d+ tokens, more than"):
            check_rows(config(pack=pack), parts, tokenizer, tiny.LLAMA)


def test_a_prompt_that_leaves_no_room_to_answer(tokenizer, tmp_path):
    found = read(tmp_path / "set.jsonl", prompt="why " * 12)
    made = config(length=64)
    made.instruct.samples.max_new_tokens = 50
    with pytest.raises(UserError, match=r"set.jsonl, line 4: the held-out prompt has \d+ tokens"):
        check_rows(made, Instructions(found[:1], found, ()), tokenizer, tiny.LLAMA)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": None}, "prompt must be text"),
        ({"completion": "because \ud83d of"}, "surrogate"),
        ({"completion": "a\x00b"}, "is no character of a text"),
        ({"completion": "  "}, "empty completion"),
    ],
)
def test_texts_that_are_none(tmp_path, changed, words):
    with pytest.raises(UserError, match=f"set.jsonl, line 4: .*{words}"):
        read(tmp_path / "set.jsonl", **changed)


def test_held_out_examples_of_a_file_of_their_own(tmp_path):
    for name, records in (("set", RECORDS), ("held", [RECORDS[4], {**RECORDS[1]}])):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    made = config(source="file", path=str(tmp_path / "set.jsonl"), examples=0)
    made.instruct.held_out_path = str(tmp_path / "held.jsonl")
    for seed in (0, 1):
        train, held_out, _ = instructions(made, None, seed=seed)
        assert [record.prompt for record in held_out] == ["why item 4?", "why item 1?"]
        assert [record.prompt for record in train] == [f"why item {n}?" for n in (0, 2, 3, 5)]
    made.instruct.path = made.instruct.held_out_path
    with pytest.raises(UserError, match="every prompt is held out"):
        instructions(made, None, seed=0)
    made.instruct.source = "world"
    with pytest.raises(UserError, match=r"held_out_path=.*needs instruct.source='file'"):
        instructions(made, None, seed=0)


def test_what_a_template_refuses(tokenizer, tmp_path):
    found = read(tmp_path / "set.jsonl")
    tokenizer.hf.chat_template = "{{ messages[0].content }}{{ messages[1].content.x.y }}"
    with pytest.raises(UserError, match=r"set.jsonl, line 1: .*chat template fails"):
        examples(tokenizer, found, template=True)
