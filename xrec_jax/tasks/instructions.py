"""Texts to pre-train on and instructions to tune on, as a config asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.packing import Example
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.tasks.pretraining import TELLING, Text, level_of, rendered
from xrec_jax.tasks.prompting import planted_explanations, prompting, visits_to_explain
from xrec_jax.text.records.instructions import Instruction, deduplicate, read_instructions
from xrec_jax.text.records.splits import match_lengths, one_answer_each, select, split_by_prompt
from xrec_jax.text.words import word_count

_CHOICE = 4  # times as many examples as are wanted, to choose balanced ones from


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


def without_held_out(
    texts: Sequence[Text], held_out: Sequence[Instruction]
) -> tuple[list[Text], int]:
    """Leaves out texts that hold a held-out prompt or answer, however white space falls.

    Returns:
      The others, and how many were left out.
    """
    forbidden = {part for one in held_out for part in (one.group, level_of(one.completion))}
    forbidden = {part for part in forbidden if len(part) >= TELLING}
    kept = [text for text in texts if not any(part in level_of(text) for part in forbidden)]
    return kept, len(texts) - len(kept)


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
            example = rendered(tokenizer, turns, template=template)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error
        made.append(dataclasses.replace(example, name=one.name))
    return made
