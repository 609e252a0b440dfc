"""Sets of instructions for `instruction_curve.py`, and what none of them may hold."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import numbered_records
from xrec_jax.data.run_data import prepare
from xrec_jax.evaluation.audit.contents import ContentIndex, PromptContent, read_content
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.tasks.instructions import instructions
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.records.judgements import shorten_prompt
from xrec_jax.text.records.splits import select

SYSTEM = "GPT4"
_ENOUGH = 3  # titles in common that make two histories one user's


class Sets(NamedTuple):
    """What the counts are drawn from.

    Attributes:
      train: examples of the set that are not held out.
      held_out: the same for all runs.
      more: GPT-4's answers to other prompts.
      dropped: published prompts left out, by cause.
      uncut: the held-out prompts before they were cut.
    """

    train: list[Instruction]
    held_out: list[Instruction]
    more: list[Instruction]
    dropped: dict[str, int]
    uncut: list[str]


def same_user(first: PromptContent, second: PromptContent) -> bool:
    """True if two prompts of one data set are probably of one user; see the head of this file."""
    if first.dataset != second.dataset:
        return False
    titles, others = set(first.shown), set(second.shown)
    common = len(titles & others)
    return common >= _ENOUGH and 2 * common >= min(len(titles), len(others))


def further_examples(
    prompts: Sequence[Mapping[str, Any]],
    answers: Mapping[Any, str],
    train: Sequence[Instruction],
    held_out: Sequence[Instruction],
    *,
    shorten: Callable[[str], str],
) -> tuple[list[Instruction], dict[str, int]]:
    """Examples from published prompts and answers, without what would give a held-out one away.

    Args:
      prompts: records with `prompt_id`, `prompt`, `dataset` and `row`.
      answers: answer by `prompt_id`.
      train: examples to tune on.
      held_out: examples to hold out.
      shorten: cuts a prompt.

    Returns:
      The examples, and the number of prompts left out by cause.
    """

    def content(record: Instruction) -> PromptContent:
        return read_content(record.prompt, dataset=str(record.meta.get("dataset", "")))

    held = [content(record) for record in held_out]
    known = ContentIndex([*held, *(content(record) for record in train)])
    read = [read_content(r["prompt"], dataset=str(r["dataset"])) for r in prompts]
    # The rows, that is the users, in which held-out prompts are published.
    among_held = ContentIndex(held)
    rows = {
        (record["dataset"], record["row"])
        for record, published in zip(prompts, read, strict=True)
        if among_held.find(published) is not None
    }
    result: list[Instruction] = []
    dropped = {"in the set": 0, "of held-out users": 0, "without an answer": 0}
    for record, published in zip(prompts, read, strict=True):
        if known.find(published) is not None:
            dropped["in the set"] += 1
        elif (record["dataset"], record["row"]) in rows or any(
            same_user(published, other) for other in held
        ):
            dropped["of held-out users"] += 1
        elif not answers.get(record["prompt_id"], "").strip():
            dropped["without an answer"] += 1
        else:
            meta = {"dataset": record["dataset"], "prompt_id": record["prompt_id"]}
            result.append(
                Instruction(
                    shorten(record["prompt"]), answers[record["prompt_id"]].strip(), meta=meta
                )
            )
    return result, dropped


def published_sets(args: argparse.Namespace, config: ConfigDict) -> Sets:
    """The set of the config and the published answers beside it."""
    data = prepare(config.data)
    split = instructions(config, data, seed=config.seeds[0])
    folder = pathlib.Path(args.published or pathlib.Path(config.instruct.path).parent / "bpr-mf")
    tokenizer = load_tokenizer(config.llm.path)

    def shorten(text: str) -> str:
        return shorten_prompt(
            text, count_tokens=lambda t: len(tokenizer.encode(t)), limit=args.max_prompt_tokens
        ).text

    prompts = [record for _, record in numbered_records(folder / "prompts.jsonl.gz")]
    answers = {
        record["prompt_id"]: record["completion"] or ""
        for _, record in numbered_records(folder / "explanations.jsonl.gz")
        if record["model"] == SYSTEM
    }
    # What two prompts have in common is read from the whole prompts, before any is cut.
    more, dropped = further_examples(prompts, answers, split.train, split.held_out, shorten=shorten)

    def shortened(records: Sequence[Instruction]) -> list[Instruction]:
        return [dataclasses.replace(record, prompt=shorten(record.prompt)) for record in records]

    uncut = [record.prompt for record in split.held_out]
    return Sets(shortened(split.train), shortened(split.held_out), more, dropped, uncut)


def tiny_sets(config: ConfigDict) -> Sets:
    """Planted explanations of a small world: half as the set, half as the answers beside it."""
    split = instructions(config, prepare(config.data), seed=0)

    def of_world(records: Sequence[Instruction]) -> list[Instruction]:
        return [Instruction(r.prompt, r.completion, meta={"dataset": "world"}) for r in records]

    half = len(split.train) // 2
    train, more = of_world(split.train[:half]), of_world(split.train[half:])
    held_out = of_world(split.held_out)
    return Sets(train, held_out, more, {}, [record.prompt for record in held_out])


def drawn(sets: Sets, count: int, seed: int) -> list[Instruction]:
    """The examples of a run.

    Raises:
      UserError: if there are fewer than `count`.
    """
    if count > len(sets.train) + len(sets.more):
        raise UserError(
            f"--counts: {count} instructions, but the set has {len(sets.train)} and the published "
            f"answers {len(sets.more)} more"
        )
    first = select(sets.train, min(count, len(sets.train)), seed=seed, balance="dataset")
    rest = select(sets.more, max(0, count - len(sets.train)), seed=seed, balance="dataset")
    return [*first, *rest]
