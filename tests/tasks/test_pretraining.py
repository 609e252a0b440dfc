"""Where texts and instructions come from: files joined, chosen and kept apart from the held-out."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.run_data import prepare
from xrec_jax.llm.io.bpe import train_bpe
from xrec_jax.tasks import instructions, pretraining
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.synthetic.comprehension import Reading

NAMES = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ivy", "Jo"]


def write(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    data = gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode()
    path.write_bytes(data)
    return str(path)


def asking(path, **changed):
    """A config that reads instructions from a file."""
    config = tiny.language("instruct")
    config.data.format = "none"
    config.instruct.update(dict(source="file", path=str(path), examples=0, held_out=0.3) | changed)
    return config


def read(config, seed=0, **options):
    return instructions.instructions(config, prepare(config.data), seed=seed, **options)


def pairs(count=10, kinds=("a", "b")):
    return [
        {"prompt": f"Why {NAMES[n]}?", "completion": f"Since {n}.", "kind": kinds[n % len(kinds)]}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"{r['prompt']} {r['completion']} be brief" for r in pairs()] * 4
    return train_bpe(texts, tmp_path_factory.mktemp("corpora") / "bpe", vocab_size=280)


# Instructions from files


def test_pairs_and_messages_are_read(tmp_path, tokenizer):
    turns = [
        {"role": "user", "content": "Why Ada?"},
        {"role": "assistant", "content": "Near."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Since Bo."},
    ]
    system = [{"role": "system", "content": "be brief"}]
    records = [{"messages": turns}, {"messages": system + turns}, *pairs(6)]
    path = write(tmp_path / "set.jsonl.gz", records)
    found = read(asking(path))
    everything = found.train + found.held_out
    assert len(everything) == 8
    by_turns = {len(one.messages): one for one in everything}
    assert by_turns.keys() == {2, 4, 5}
    plain, chat, led = instructions.examples(
        tokenizer, [by_turns[n] for n in (2, 4, 5)], template=False
    )
    end = tokenizer.eos_id

    def answers(example):
        return tokenizer.hf.decode(example.ids[example.trained])

    assert answers(plain) == by_turns[2].completion + "</s>"
    assert answers(chat) == answers(led) == "Near.</s>Since Bo.</s>"
    assert chat.ids[-1] == end and np.sum(chat.ids == end) == 2
    assert np.all(chat.trained[chat.ids == end])  # every end is trained
    assert len(led.ids) > len(chat.ids)
    for example in (plain, chat, led):
        assert example.ids[0] == tokenizer.bos_id and np.sum(example.ids == tokenizer.bos_id) == 1
    templated = instructions.examples(tokenizer, [by_turns[4]], template=True)[0]
    assert answers(templated) == answers(chat)
    assert templated.ids.tolist() != chat.ids.tolist()


def test_the_split_is_by_prompt(tmp_path):
    """Several answers to a prompt, also with stray spaces, stand on one side; copies go."""
    repeated = [{**r, "prompt": f" {r['prompt']}\n", "completion": "Other."} for r in pairs()]
    found = read(asking(write(tmp_path / "set.jsonl", pairs() + repeated + pairs(4))))
    assert len(found.train) == 14 and len(found.held_out) == 6
    assert not {one.group for one in found.train} & {one.group for one in found.held_out}
    assert "removed" in found.notes[0] or "4" in found.notes[0]


def test_what_is_held_out_depends_on_the_seed_only(tmp_path):
    path = write(tmp_path / "set.jsonl", pairs())
    whole, few, other = read(asking(path)), read(asking(path, examples=3)), read(asking(path), 1)
    assert few.held_out == whole.held_out and len(few.train) == 3
    assert {one.prompt for one in few.train} < {one.prompt for one in whole.train}
    assert {one.prompt for one in other.held_out} != {one.prompt for one in whole.held_out}


def test_strata_are_split_alike(tmp_path):
    path = write(tmp_path / "set.jsonl", pairs())
    found = read(asking(path, stratify="kind", held_out=0.2, examples=4))
    for part, count in ((found.held_out, 1), (found.train, 2)):
        kinds = [one.meta["kind"] for one in part]
        assert [kinds.count(kind) for kind in "ab"] == [count, count]


# Instructions from a world


def test_a_world_gives_what_is_asked_for_and_the_budget_cuts_histories():
    config = tiny.language()
    config.instruct.update(dict(examples=8, history=6))
    found = read(config)
    assert len(found.train) == 8 and len(found.held_out) == 2

    class Words:
        def encode(self, text):
            return text.split()

    config.instruct.max_prompt_tokens = 100
    cut = read(config, tokenizer=Words())
    assert max(len(one.prompt.split()) for one in cut.train + cut.held_out) <= 100
    assert max(len(one.prompt.split()) for one in found.train + found.held_out) > 100
    for one, other in zip(cut.held_out, found.held_out, strict=True):
        assert (one.meta["user"], one.meta["item"]) == (other.meta["user"], other.meta["item"])


def test_a_world_is_split_by_prompt():
    """Users with the same profile and the same history have the same prompt."""
    config = tiny.config("popularity")
    config.data.world.update(dict(num_users=400, num_items=60))
    config.instruct.update(dict(examples=1100, history=0))
    found = read(config)
    assert not {one.group for one in found.train} & {one.group for one in found.held_out}


def test_world_texts_without_any_history():
    config = tiny.language()
    config.instruct.history = 0
    assert len(pretraining.world_texts(config, prepare(config.data))) > 50


def test_no_held_out_visit_is_pretrained_on():
    """Diaries, exercises and readings of reviews are the same whatever is held out."""
    config = tiny.language()
    config.data.world.update(dict(num_users=40, review_share=0.8, about_share=0.4))
    config.joint.readings = 400
    data = prepare(config.data)

    def others(events):
        return Interactions(events.user, np.roll(events.item, 1), events.timestamp)

    split = data.split
    split = dataclasses.replace(split, valid=others(split.valid), test=others(split.test))
    dataset = dataclasses.replace(data.dataset, interactions=split.train)
    texts = pretraining.world_texts(config, data)
    assert sum(isinstance(text, Reading) for text in texts) > 300
    assert texts == pretraining.world_texts(config, data._replace(dataset=dataset, split=split))
    less = dataclasses.replace(split, train=split.train.take(np.arange(len(split.train) - 1)))
    assert texts != pretraining.world_texts(config, data._replace(split=less))


def test_what_holds_a_held_out_prompt_or_answer_is_left_out():
    config = tiny.language()
    data = prepare(config.data)
    found = instructions.instructions(config, data, seed=0)
    held, texts = found.held_out[0], pretraining.world_texts(config, data)
    leaks = [
        Reading(held.prompt, "It is quiet."),
        f"Before. {held.prompt.replace(' ', '  ')}",
        Reading("What?", f"Well: {held.completion}"),
    ]
    kept, left_out = instructions.without_held_out([*leaks, *texts], found.held_out)
    assert (kept, left_out) == (texts, 3)


# Texts to pre-train on


def files_config(*files, **changed):
    config = tiny.language("pretrain")
    config.data.format = "none"
    config.pretrain.update(dict(source="files", files=files) | changed)
    return config


def texts_of(config, without=()):
    return instructions.without_held_out(pretraining.file_texts(config), without)


def test_fields_are_joined_by_a_blank_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": " x ", "completion": "y\n"}, {"prompt": "z"}])
    other = write(tmp_path / "b.jsonl.gz", [{"title": "t", "text": "u"}])
    assert texts_of(files_config(path)) == (["x\n\ny", "z"], 0)
    config = files_config(path, other, fields=("text", "title", "prompt"))
    assert texts_of(config) == (["x", "z", "u\n\nt"], 0)


def test_files_joined_by_plus_share_their_prompts(tmp_path):
    prompts = [{"prompt_id": n, "prompt": f"p{n}", "model": "none"} for n in range(3)]
    answers = [
        {"prompt_id": 1, "completion": "one", "model": "A"},
        {"prompt_id": 1, "completion": "uno", "model": "B"},
        {"prompt_id": 0, "completion": "zero", "model": "B"},
        {"prompt_id": 9, "completion": "lost", "model": "A"},
        {"completion": "no key", "model": "A"},
    ]
    first, second = write(tmp_path / "p.jsonl", prompts), write(tmp_path / "a.jsonl.gz", answers)
    spec = f"{first}+{second}"
    assert texts_of(files_config(spec))[0] == ["p1\n\none", "p1\n\nuno", "p0\n\nzero"]
    kept = files_config(spec)
    kept.pretrain.keep.update(dict(field="model", among=("B", "C")))
    assert texts_of(kept)[0] == ["p1\n\nuno", "p0\n\nzero"]


def test_lines_without_a_key_are_not_joined(tmp_path):
    first = write(tmp_path / "p.jsonl", [{"prompt": "p"}, {"prompt_id": 1, "prompt": "q"}])
    second = write(tmp_path / "a.jsonl", [{"completion": "x"}, {"prompt_id": 1, "completion": "y"}])
    assert texts_of(files_config(f"{first}+{second}"))[0] == ["q\n\ny"]


def test_files_that_share_no_prompt_are_named(tmp_path):
    first = write(tmp_path / "p.jsonl", [{"prompt_id": 1, "prompt": "p"}])
    second = write(tmp_path / "a.jsonl", [{"prompt_id": 2, "completion": "x"}])
    with pytest.raises(UserError, match=r"a\.jsonl"):
        texts_of(files_config(f"{first}+{second}"))


def test_texts_that_hold_a_held_out_prompt_or_answer_are_left_out(tmp_path):
    """White space and what stands around it do not hide it."""
    records = [
        {"prompt": "Why  Ada\n?", "completion": "fine"},
        {"prompt": "other", "completion": "He said: Because\nof Bo. So."},
        {"prompt": "kept", "completion": "nothing of it"},
    ]
    path = write(tmp_path / "a.jsonl", records)
    held = [Instruction("Why Ada ?", "Since 1."), Instruction("Never asked", "Because of Bo.")]
    assert texts_of(files_config(path), held) == (["kept\n\nnothing of it"], 2)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (dict(fields=("text",)), "line 1: none of text is there"),
        (dict(keep=dict(field="model", among=("C",))), "has model in C; its values: A"),
        (dict(keep=dict(field="modle", among=("A",))), "has modle in A"),
    ],
    ids=["no field", "no value", "no key"],
)
def test_what_no_line_has_is_named(tmp_path, changed, named):
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "model": "A"}])
    with pytest.raises(UserError, match=named):
        texts_of(files_config(path, **changed))


def test_values_that_are_no_text_are_named(tmp_path):
    """A list is not trained on as Python writes it, and a null is no word."""
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "completion": None}])
    assert texts_of(files_config(path)) == (["x"], 0)
    for record, message in (
        ({"prompt": ["x"]}, r"a\.jsonl, line 1: prompt must be text or a number, not \['x'\]"),
        ({"prompt": None, "completion": ""}, "line 1: none of prompt, completion is there"),
    ):
        path = write(tmp_path / "a.jsonl", [record])
        with pytest.raises(UserError, match=message):
            texts_of(files_config(path))
    first = write(tmp_path / "p.jsonl", [{"prompt_id": 1, "prompt": "p"}])
    second = write(tmp_path / "a.jsonl", [{"prompt_id": [1], "completion": "x"}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: prompt_id must be text or a number"):
        texts_of(files_config(f"{first}+{second}"))


# Splitting and tokens


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.02, 1), (100, 0.1, 10), (3, 0.99, 2)])
def test_texts_are_split(count, share, held):
    texts = [f"text {n}" for n in range(count)]
    train, out = pretraining.split_texts(texts, share, seed=0)
    assert len(out) == held and sorted(train + out) == sorted(texts)
    assert pretraining.split_texts(texts, share, seed=0) == (train, out)
    if count == 100:
        assert pretraining.split_texts(texts, share, seed=1) != (train, out)


def test_too_few_texts_are_refused():
    with pytest.raises(UserError, match="fewer than two texts"):
        pretraining.split_texts(["one"], 0.5, seed=0)


def test_running_text_is_cut_and_of_readings_the_answer_is_trained(tokenizer):
    texts = ["Why Ada?", Reading("Why Ada?", " Since 1."), "Since 1.", Reading("Ada " * 40, "1")]
    found, too_long = pretraining.text_examples(tokenizer, texts, 16)
    assert too_long == 1
    *running, reading = found
    ids = np.concatenate([running[0].ids[:1], *(one.ids[1:] for one in running)])
    plain = tokenizer.encode_batch(["Why Ada?", "Since 1."])
    assert ids.tolist() == [*plain[0], tokenizer.eos_id, *plain[1], tokenizer.eos_id]
    assert all(one.trained.all() and len(one.ids) <= 16 for one in running)
    answer = reading.ids[reading.trained]
    assert tokenizer.decode(answer) == " Since 1." and answer[-1] == tokenizer.eos_id
    assert tokenizer.decode(reading.ids[~reading.trained]) == "Why Ada?"
