"""Instruction sets of a config: read from a file or built from a planted world, split by prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.sections import read_section
from xrec_jax.data.packing import Example
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.tasks.pretraining import TELLING, Text, level_of, rendered
from xrec_jax.tasks.prompting import planted_explanations, prompting, visits_to_explain
from xrec_jax.text.records.instructions import Instruction, deduplicate, read_instructions
from xrec_jax.text.records.splits import match_lengths, one_answer_each, select, split_by_prompt
from xrec_jax.text.words import word_count

_POOL = 4  # candidates per example, to choose a balanced set from


@dataclasses.dataclass(frozen=True)
class InstructionsConfig:
    """Source, size and split of an instruction set: keys of the config section `instruct`.

    Attributes:
      source: "world" or "file".
      path: JSONL file of the source "file".
      stratify: key of a file's records by which the split and the choice are stratified; "" none.
      held_out: share of prompts to hold out.
      held_out_path: JSONL file of held-out examples instead of a share; "" none.
      balance: key whose groups get equal numbers and lengths; "" none.
      examples: number of training examples; 0 for all of a file.
      named: whether explanations of a world name places.
      template: template of the prompts of a world.
      history: number of history entries in a prompt of a world.
      max_prompt_tokens: token budget of a prompt of a world; 0 for none.
    """

    source: str
    path: str
    stratify: str
    held_out: float
    held_out_path: str
    balance: str
    examples: int
    named: bool
    template: Any
    history: int
    max_prompt_tokens: int


class Instructions(NamedTuple):
    """An instruction set, split by prompt.

    Attributes:
      train: training examples.
      held_out: examples never seen in training, nor in pre-training.
      notes: messages about what was cut and dropped.
    """

    train: list[Instruction]
    held_out: list[Instruction]
    notes: tuple[str, ...]


def instructions(
    config: Any, data: RunData, *, seed: int, tokenizer: Tokenizer | None = None
) -> Instructions:
    """Builds or reads the instruction set of a config, and splits it by prompt.

    Args:
      config: configuration of the run.
      data: data of the run.
      seed: seed of all choices and wordings; the held-out prompts depend on nothing else.
      tokenizer: counts tokens to keep prompts of a world within `instruct.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source, a file that cannot be read, or too few examples.
    """
    cfg = read_section(InstructionsConfig, config.instruct)
    if cfg.source == "world":
        if cfg.held_out_path:
            raise UserError(
                f"instruct.held_out_path={cfg.held_out_path!r} needs instruct.source='file'; of a "
                "world the share instruct.held_out is held out"
            )
        need_world(data, "instruct.source")
        return _from_world(cfg, data, seed, tokenizer)
    if cfg.source != "file":
        raise UserError(f"instruct.source={cfg.source!r} is not valid; valid: world, file")
    if not cfg.path:
        raise UserError("instruct.source='file' needs instruct.path: a JSONL file")
    # Repeated records would weigh more in training.
    records, dropped = deduplicate(read_instructions(cfg.path))
    _need_key(cfg.path, records, cfg.stratify)
    if cfg.held_out_path:
        held_out = deduplicate(read_instructions(cfg.held_out_path))[0]
        _need_key(cfg.held_out_path, held_out, cfg.stratify)
        groups = {example.group for example in held_out}
        train = [record for record in records if record.group not in groups]
    else:
        train, held_out = split_by_prompt(
            records, held_out=cfg.held_out, seed=seed, stratify=cfg.stratify or None
        )
    if not train:
        raise UserError(f"{cfg.path}: every prompt is held out, so nothing is left to tune on")
    if not held_out:
        raise UserError(
            f"{cfg.path} leaves nothing to hold out with instruct.held_out={cfg.held_out}; it "
            "must be above 0, and the file have two prompts or more"
        )
    # Several answers to one prompt would count as several examples of its group.
    if cfg.balance:
        train = one_answer_each(train)
    if cfg.examples > len(train):
        raise UserError(
            f"instruct.examples={cfg.examples}, but {cfg.path} leaves {len(train)} to tune on "
            f"with {len(held_out)} held out; 0 takes all"
        )
    if cfg.balance:
        train, note = _balanced(train, cfg, seed)
        return Instructions(train, held_out, (str(dropped), note))
    if cfg.examples:
        train = select(train, cfg.examples, seed=seed, balance=cfg.stratify or None)
    return Instructions(train, held_out, (str(dropped),))


def _need_key(path: str, records: Sequence[Instruction], key: str) -> None:
    """Refuses a file whose records lack the key that the split is stratified by."""
    if key and not all(key in record.meta for record in records):
        raise UserError(
            f"{path}: not every record has the key {key!r} of instruct.stratify; "
            "--config.instruct.stratify= does without"
        )


def _from_world(
    cfg: InstructionsConfig, data: RunData, seed: int, tokenizer: Tokenizer | None
) -> Instructions:
    """Instructions on training visits of a world, with the first prompts held out."""
    if cfg.examples < 1:
        raise UserError(f"instruct.examples={cfg.examples} must be positive for a world")
    if not 0.0 <= cfg.held_out <= 1.0:
        raise UserError(f"instruct.held_out={cfg.held_out} must be from 0 to 1 in a world")
    spare = max(1, round(cfg.held_out * cfg.examples))
    count = cfg.examples + spare
    if cfg.balance:  # a larger pool to choose from
        count = max(count, min(_POOL * cfg.examples, len(data.split.train) // 2) + spare)
    pairs = visits_to_explain(data, count, seed=seed)
    planted, cut = planted_explanations(
        prompting(cfg, data, tokenizer), pairs, seed=seed, named=cfg.named
    )
    # The first visits of an order that a larger pool only extends: `balance` leaves them as is.
    held_out = planted[:spare]
    # Two users may have the same profile and history, which is the same prompt.
    groups = {example.group for example in held_out}
    train = [example for example in planted[spare:] if example.group not in groups]
    dropped = len(planted) - spare - len(train)
    notes = (str(cut), *([f"{dropped} left out that are held out too"] if dropped else []))
    if cfg.balance:
        train, note = _balanced(_with_column(train, data, cfg.balance), cfg, seed)
        notes = (*notes, note)
    return Instructions(train, held_out, notes)


def _with_column(examples: Sequence[Instruction], data: RunData, column: str) -> list[Instruction]:
    """Adds a column of the user table to the `meta` of each example."""
    users = data.dataset.users
    if users is None or column not in users.columns:
        hint = "" if users is None else did_you_mean(column, users.columns)
        raise UserError(f"instruct.balance={column!r}: no such column of the user table{hint}")
    ids = (str(name) for name in data.dataset.user_ids)
    cells = dict(zip(ids, users[column].to_list(), strict=True))
    return [
        dataclasses.replace(example, meta={**example.meta, column: cells[example.meta["user"]]})
        for example in examples
    ]


def _balanced(
    examples: list[Instruction], cfg: InstructionsConfig, seed: int
) -> tuple[list[Instruction], str]:
    """Chooses `instruct.examples` with equal groups; also returns a note on their lengths."""
    if not cfg.examples:
        raise UserError("instruct.balance needs instruct.examples: how many to choose")
    if lacking := [example for example in examples if cfg.balance not in example.meta]:
        hint = did_you_mean(cfg.balance, lacking[0].meta)
        raise UserError(f"instruct.balance={cfg.balance!r}: a record has no such key{hint}")
    chosen = match_lengths(examples, cfg.examples, key=cfg.balance, seed=seed)
    groups: dict[str, list[int]] = {}
    for example in chosen:
        groups.setdefault(str(example.meta[cfg.balance]), []).append(word_count(example.completion))
    parts = (
        f"{name} {len(words)} of {np.mean(words):.1f} words"
        for name, words in sorted(groups.items())
    )
    return chosen, f"balanced by {cfg.balance}: {', '.join(parts)}"


def without_held_out(
    texts: Sequence[Text], held_out: Sequence[Instruction]
) -> tuple[list[Text], int]:
    """Drops texts that contain a held-out prompt or answer, whatever their white space.

    Returns:
      The remaining texts, and the number dropped.
    """
    forbidden = {
        phrase for example in held_out for phrase in (example.group, level_of(example.completion))
    }
    # A short answer occurs in other texts by chance, and its occurrence gives nothing away.
    forbidden = {phrase for phrase in forbidden if len(phrase) >= TELLING}
    kept = [text for text in texts if not any(phrase in level_of(text) for phrase in forbidden)]
    return kept, len(texts) - len(kept)


def examples(
    tokenizer: Tokenizer, records: Sequence[Instruction], *, template: bool | None
) -> list[Example]:
    """Tokenizes instructions, with a mask of the answers' tokens.

    Raises:
      UserError: names an example that the tokenizer or its template rejects.
    """
    result = []
    for record in records:
        if record.system is None and not record.turns:
            turns: Any = (record.prompt, record.completion)
        else:
            turns = [{"role": role, "content": text} for role, text in record.messages]
        try:
            example = rendered(tokenizer, turns, template=template)
        except UserError as error:
            raise UserError(f"{record.name}: {error}") from error
        result.append(dataclasses.replace(example, name=record.name))
    return result
