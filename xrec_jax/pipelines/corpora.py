"""Texts to pre-train on and instructions to tune on, as a config asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core import files
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data import keyed
from xrec_jax.data.histories import Histories
from xrec_jax.data.packing import Example, windows
from xrec_jax.llm.tokenizer import Tokenizer
from xrec_jax.pipelines import attribute_cases
from xrec_jax.pipelines.datasets import RunData, need_world
from xrec_jax.pipelines.joint_world import taught_words, world_readings
from xrec_jax.pipelines.prompting import Prompting, planted_explanations, visits_to_explain
from xrec_jax.text.comprehension import Reading, reading_exercises
from xrec_jax.text.corpus import world_sentences
from xrec_jax.text.fields import text_of, value_of
from xrec_jax.text.instructions import Instruction, deduplicate, read_instructions
from xrec_jax.text.sampling import match_lengths, one_answer_each, select, split_by_prompt
from xrec_jax.text.talk import small_talk
from xrec_jax.text.templates import template_from
from xrec_jax.text.words import word_count

_CHOICE = 4  # times as many examples as are wanted, to choose balanced ones from
Text = str | Reading
_TELLING = 8  # characters; shorter ones stand in many texts by chance


class Instructions(NamedTuple):
    """An instruction set, split by prompt.

    Attributes:
      train: to tune on.
      held_out: never seen in training, of pre-training neither.
      notes: what was cut and dropped, in words.
    """

    train: list[Instruction]
    held_out: list[Instruction]
    notes: tuple[str, ...]


def instructions(
    config: Any, data: RunData, *, seed: int, tokenizer: Tokenizer | None = None
) -> Instructions:
    """The instruction set of a config.

    Args:
      config: of the run.
      data: of the run.
      seed: of all choices and wordings; which prompts are held out depends on nothing else.
      tokenizer: keeps the prompts of a world within `instruct.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source, a file that cannot be read, or too few examples.
    """
    asked = config.instruct
    if asked.source == "world":
        need_world(data, "instruct.source")
        return _from_world(asked, data, seed, tokenizer)
    if asked.source != "file":
        raise UserError(f"instruct.source={asked.source!r} is not valid; valid: world, file")
    if not asked.path:
        raise UserError("instruct.source='file' needs instruct.path: a JSONL file")
    found, dropped = deduplicate(read_instructions(asked.path))
    if asked.stratify and not all(asked.stratify in one.meta for one in found):
        raise UserError(
            f"{asked.path}: not every record has the key {asked.stratify!r} of instruct.stratify; "
            "--config.instruct.stratify= does without"
        )
    train, held_out = split_by_prompt(
        found, held_out=asked.held_out, seed=seed, stratify=asked.stratify or None
    )
    if not held_out:
        raise UserError(
            f"{asked.path} leaves nothing to hold out with instruct.held_out={asked.held_out}; it "
            "must be above 0, and the file have two prompts or more"
        )
    if asked.balance:
        train = one_answer_each(train)
    if asked.examples > len(train):
        raise UserError(
            f"instruct.examples={asked.examples}, but {asked.path} leaves {len(train)} to tune on "
            f"with {len(held_out)} held out; 0 takes all"
        )
    if asked.balance:
        train, note = _balanced(train, asked, seed)
        return Instructions(train, held_out, (str(dropped), note))
    if asked.examples:
        train = select(train, asked.examples, seed=seed, balance=asked.stratify or None)
    return Instructions(train, held_out, (str(dropped),))


def _from_world(asked: Any, data: RunData, seed: int, tokenizer: Tokenizer | None) -> Instructions:
    if asked.examples < 1:
        raise UserError(f"instruct.examples={asked.examples} must be positive for a world")
    if not 0.0 <= asked.held_out <= 1.0:
        raise UserError(f"instruct.held_out={asked.held_out} must be from 0 to 1 in a world")
    spare = max(1, round(asked.held_out * asked.examples))
    wanted = asked.examples + spare
    if asked.balance:  # something to choose from
        wanted = max(wanted, min(_CHOICE * asked.examples, len(data.split.train) // 2) + spare)
    pairs = visits_to_explain(data, wanted, seed=seed)
    made, cut = planted_explanations(
        prompting(asked, data, tokenizer), pairs, seed=seed, named=asked.named
    )
    held_out = made[:spare]
    # Two users may have the same profile and history, which is the same prompt.
    groups = {one.group for one in held_out}
    train = [one for one in made[spare:] if one.group not in groups]
    dropped = len(made) - spare - len(train)
    notes = (str(cut), *([f"{dropped} left out that are held out too"] if dropped else []))
    if asked.balance:
        train, note = _balanced(_with_column(train, data, asked.balance), asked, seed)
        notes = (*notes, note)
    return Instructions(train, held_out, notes)


def _with_column(found: Sequence[Instruction], data: RunData, column: str) -> list[Instruction]:
    """Instructions of a world with a column of their user's row in `meta`."""
    users = data.dataset.users
    if users is None or column not in users.columns:
        hint = "" if users is None else did_you_mean(column, users.columns)
        raise UserError(f"instruct.balance={column!r}: no such column of the user table{hint}")
    ids = (str(name) for name in data.dataset.user_ids)
    cells = dict(zip(ids, users[column].to_list(), strict=True))
    return [
        dataclasses.replace(one, meta={**one.meta, column: cells[one.meta["user"]]})
        for one in found
    ]


def _balanced(found: list[Instruction], asked: Any, seed: int) -> tuple[list[Instruction], str]:
    """`instruct.examples` of a set, groups alike in number and length; and how they came out."""
    if not asked.examples:
        raise UserError("instruct.balance needs instruct.examples: how many to choose")
    if lacking := [one for one in found if asked.balance not in one.meta]:
        hint = did_you_mean(asked.balance, lacking[0].meta)
        raise UserError(f"instruct.balance={asked.balance!r}: a record has no such key{hint}")
    chosen = match_lengths(found, asked.examples, key=asked.balance, seed=seed)
    groups: dict[str, list[int]] = {}
    for one in chosen:
        groups.setdefault(str(one.meta[asked.balance]), []).append(word_count(one.completion))
    told = (
        f"{name} {len(words)} of {np.mean(words):.1f} words"
        for name, words in sorted(groups.items())
    )
    return chosen, f"balanced by {asked.balance}: {', '.join(told)}"


def prompting(asked: Any, data: RunData, tokenizer: Tokenizer | None) -> Prompting:
    """How `config.instruct` renders prompts."""
    if tokenizer is None or not asked.max_prompt_tokens:
        return Prompting(data, asked.template, history=asked.history)
    return Prompting(
        data, asked.template, history=asked.history,
        count_tokens=lambda text: len(tokenizer.encode(text)), max_tokens=asked.max_prompt_tokens,
    )  # fmt: skip


def world_texts(config: Any, data: RunData) -> list[Text]:
    """Texts on the world's places, people and training visits, and readings; no explanations."""
    need_world(data, "pretrain.source")
    histories = Histories.of([data.split.train], data.dataset.num_users)
    held_out = attribute_cases.held_out_rows(config, data)
    visits = [
        (user, histories.items[histories.start[user] : histories.start[user + 1]].tolist())
        for user in range(data.dataset.num_users)
        if user not in held_out
    ]
    items, users = (
        [] if table is None else table.to_dicts()
        for table in (data.dataset.items, data.dataset.users)
    )
    plain = world_sentences(items, users, visits, copies=config.pretrain.copies)
    described = reading_exercises(
        template_from(config.instruct.template), items, users, visits,
        latest=config.instruct.history, copies=config.pretrain.described,
        named=config.instruct.named,
    )  # fmt: skip
    reviews: list[Text] = []
    if config.joint.readings:
        reviews = [*(Reading(*one) for one in world_readings(config, data)), *taught_words(config)]
    return [*plain, *described, *reviews, *small_talk(items, config.pretrain.talk)]


def file_texts(config: Any) -> list[str]:
    """Texts of the pre-training files.

    Each of `pretrain.files` is a path, or two joined by "+": then lines of the second that share
    the key `prompt_id` with a line of the first get its fields too.

    Raises:
      UserError: if a file cannot be read or has none of the fields.
    """
    return [text for spec in config.pretrain.files for text in _joined(spec, config.pretrain)]


def without_held_out(
    texts: Sequence[Text], held_out: Sequence[Instruction]
) -> tuple[list[Text], int]:
    """Leaves out texts that hold a held-out prompt or answer, however white space falls.

    Returns:
      The others, and how many were left out.
    """
    forbidden = {part for one in held_out for part in (one.group, _level(one.completion))}
    forbidden = {part for part in forbidden if len(part) >= _TELLING}
    kept = [text for text in texts if not any(part in _level(text) for part in forbidden)]
    return kept, len(texts) - len(kept)


def plain(text: Text) -> str:
    """A text as one string."""
    return text if isinstance(text, str) else "".join(text)


def _level(text: Text) -> str:
    return " ".join(plain(text).split())


def _joined(spec: str, asked: Any) -> list[str]:
    if not isinstance(spec, str):
        raise UserError(f"pretrain.files: {spec!r} must be a path")
    paths = files.joined(spec)
    records = list(files.numbered_records(paths[0]))
    last = paths[0]
    for path in paths[1:]:
        by_key = {
            value_of(record, "prompt_id", f"{last}, line {number}"): record
            for number, record in records
            if "prompt_id" in record
        }
        records = [
            (number, {**by_key[record["prompt_id"]], **record})
            for number, record in files.numbered_records(path)
            if "prompt_id" in record
            and value_of(record, "prompt_id", f"{path}, line {number}") in by_key
        ]
        last = path
        if not records:
            raise UserError(f"{path}: no line shares its prompt_id with one of {paths[0]}")
    if not records:
        raise UserError(f"{paths[0]}: no record in it")
    if asked.keep.field:
        field, values = asked.keep.field, tuple(asked.keep.among)
        kept = [(number, record) for number, record in records if record.get(field) in values]
        if not kept:
            present = sorted({str(record.get(field)) for _, record in records})
            raise UserError(
                f"pretrain.keep: no line of {paths[-1]} has {field} in {', '.join(values)}; its "
                f"values: {', '.join(present[:8])}"
            )
        records = kept
    texts = []
    for number, record in records:
        where = f"{last}, line {number}"
        there = [name for name in asked.fields if record.get(name) not in (None, "")]
        parts = [text_of(record, name, where).strip() for name in there]
        if not any(parts):
            names = ", ".join(asked.fields)
            raise UserError(f"{where}: none of {names} is there")
        texts.append("\n\n".join(parts))
    return texts


def split_texts(texts: Sequence[Text], share: float, *, seed: int) -> tuple[list[Text], list[Text]]:
    """Texts to train on and to hold out, at least one each.

    Raises:
      UserError: if there are fewer than two, or the share is not valid.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"pretrain.held_out={share} must be above 0 and below 1")
    if len(texts) < 2:
        raise UserError("pretrain: fewer than two texts")
    order = keyed.permutation(keyed.fold(seed, 43), len(texts))
    count = min(max(1, round(share * len(texts))), len(texts) - 1)
    held = set(np.asarray(order[:count]).tolist())
    return (
        [text for place, text in enumerate(texts) if place not in held],
        [text for place, text in enumerate(texts) if place in held],
    )


def text_examples(
    tokenizer: Tokenizer, texts: Sequence[Text], length: int
) -> tuple[list[Example], int]:
    """Texts as tokens: running text cut into windows, of readings only the answers trained.

    Args:
      tokenizer: of the model.
      texts: in any order.
      length: tokens of a row.

    Returns:
      The examples, and how many readings were left out because they are longer.
    """
    running = tokenizer.encode_batch([text for text in texts if isinstance(text, str)])
    found = windows([np.array([*ids, tokenizer.eos_id], np.int32) for ids in running], length)
    readings = [
        _example(tokenizer, tuple(text), template=False)
        for text in texts
        if isinstance(text, Reading)
    ]
    kept = [one for one in readings if len(one.ids) <= length]
    return [*found, *kept], len(readings) - len(kept)


def _example(tokenizer: Tokenizer, turns: Any, *, template: bool | None) -> Example:
    rendered = tokenizer.render(turns, template=template)
    return Example(np.array(rendered.ids, np.int32), np.array(rendered.trained, bool))


def examples(
    tokenizer: Tokenizer, found: Sequence[Instruction], *, template: bool | None
) -> list[Example]:
    """Instructions as tokens with a mask of the answers.

    Raises:
      UserError: names the example that the tokenizer or its template refuses.
    """
    made = []
    for one in found:
        if one.system is None and not one.turns:
            turns: Any = (one.prompt, one.completion)
        else:
            turns = [{"role": role, "content": text} for role, text in one.messages]
        try:
            example = _example(tokenizer, turns, template=template)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error
        made.append(dataclasses.replace(example, name=one.name))
    return made
