"""Judgements to train a judge with, and a language model as a judge of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import Progress
from xrec_jax.core.sections import read_section
from xrec_jax.data.packing import Example
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.audit.contents import PromptContent, read_content, same_request
from xrec_jax.evaluation.judging.readout import AnswerReader
from xrec_jax.llm import run_base
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.tasks.prompting import prompting, visits_to_explain
from xrec_jax.text.records.judgements import (
    ANSWERS,
    Judgement,
    Shortened,
    both_orders,
    judge_prompt,
    read_judgements,
    shorten_prompt,
    split_judgements,
)
from xrec_jax.text.synthetic.corruptions import world_judgements
from xrec_jax.text.synthetic.instructions import Case

_SEED = 51  # offset of the seed of choices in a world, to differ from the instruction set's


@dataclasses.dataclass(frozen=True)
class JudgementsConfig:
    """Source and split of judgements: keys of the config section `judge`.

    Attributes:
      source: "world" or "file" ("planted" needs no judgements).
      path: JSONL file of the source "file".
      pair: key of a record that names the two systems compared; "" for none.
      block: number of consecutive records that compare the same two systems; 0 if unknown.
      stratify: key of a file's records by which the split is stratified; "" none.
      held_out: share of prompts to hold out.
      examples: number of judgements of a world.
    """

    source: str
    path: str
    pair: str
    block: int
    stratify: str
    held_out: float
    examples: int


class JudgementSet(NamedTuple):
    """Judgements in their original order, split by prompt.

    Attributes:
      train: training judgements; each is later shown in both orders.
      held_out: judgements never seen in training.
    """

    train: list[Judgement]
    held_out: list[Judgement]


def judgements(
    config: Any, data: RunData, *, seed: int, tokenizer: Tokenizer | None = None
) -> JudgementSet:
    """Builds or reads the judgements of a config, and splits them by prompt.

    Args:
      config: configuration of the run.
      data: data of the run.
      seed: seed of all choices.
      tokenizer: counts tokens to keep prompts of a world within `instruct.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source, a file that cannot be read, or too few judgements.
    """
    cfg = read_section(JudgementsConfig, config.judge)
    if cfg.source == "world":
        need_world(data, "judge.source")
        records = _from_world(config, data, seed, tokenizer)
    elif cfg.source == "file":
        if not cfg.path:
            raise UserError("judge.source='file' needs judge.path: a JSONL file")
        records = read_judgements(cfg.path, pair=cfg.pair, block=cfg.block)
        if cfg.stratify and not all(cfg.stratify in record.meta for record in records):
            raise UserError(
                f"{cfg.path}: not every record has the key {cfg.stratify!r} of judge.stratify; "
                "--config.judge.stratify= does without"
            )
    else:
        raise UserError(f"judge.source={cfg.source!r} is not valid; valid: world, file, planted")
    stratify = cfg.stratify if cfg.source == "file" else ""
    return JudgementSet(
        *split_judgements(
            records,
            held_out=cfg.held_out,
            seed=seed,
            stratify=stratify or None,
            # In a file, one request may come in several wordings; a world renders each once.
            cases=_cases(records) if cfg.source == "file" else None,
        )
    )


def _cases(records: Sequence[Judgement]) -> list[str]:
    """Group key of each judgement, equal for all prompts about the same recommendation."""
    prompts = {record.group: record.prompt for record in records}
    # A union-find over prompts: each points towards the representative of its group.
    representative = {group: group for group in prompts}

    def first(group: str) -> str:
        while representative[group] != group:
            group = representative[group]
        return group

    similar: dict[tuple[str, str], list[tuple[str, PromptContent]]] = {}
    for group, prompt in prompts.items():
        content = read_content(prompt)
        if not content.read:
            continue
        # Equal requests share item and latest entry, so only few have to be compared.
        key = (content.target, content.shown[-1] if content.shown else "")
        others = similar.setdefault(key, [])
        for other, known in others:
            if same_request(known, content):
                # Where histories were cut, equality is not transitive: whole groups are merged.
                representative[first(group)] = first(other)
        others.append((group, content))
    return [first(record.group) for record in records]


def _from_world(
    config: Any, data: RunData, seed: int, tokenizer: Tokenizer | None
) -> list[Judgement]:
    """Judgements on training visits of a world: a true explanation against a corrupted one."""
    count = config.judge.examples
    if count < 2:
        raise UserError(f"judge.examples={count} must be 2 or more for a world")
    if data.world is None:
        raise UserError("judge.source='world' needs a planted world")
    prompts = prompting(config.instruct, data, tokenizer)
    pairs = visits_to_explain(data, count, seed=seed + _SEED)
    users, items, visits_before = (np.array([pair[i] for pair in pairs]) for i in (0, 1, 3))
    candidates = [
        Case(
            item=prompts.items[item],
            history=prompts.history(before, item),
            reasons=reasons,
            user=prompts.user(user),
            meta={
                "user": str(data.dataset.user_ids[user]),
                "item": str(data.dataset.item_ids[item]),
            },
        )
        for (user, item, before, _), reasons in zip(
            pairs, data.world.reasons(users, items, visits_before), strict=True
        )
    ]
    return world_judgements(
        candidates,
        prompts.template,
        seed=seed,
        count_tokens=prompts.count_tokens,
        max_tokens=prompts.max_tokens,
        named=config.instruct.named,
    )


class JudgePrompts:
    """Tokenizes judgements, and counts shortened prompts and refused rows.

    Attributes:
      answers: the two tokens in which the answers differ.
      length: largest number of tokens of a row, including the answer.

    Args:
      tokenizer: tokenizer of the base.
      template: whether to use the chat template; None lets the tokenizer decide.
      max_prompt_tokens: limit of prompts, above which old history entries are cut; 0 for none.
      length: largest number of tokens of a row.

    Raises:
      UserError: if the tokenizer writes both answers alike.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, template: bool | None, max_prompt_tokens: int, length: int
    ):
        self._tokenizer, self._template = tokenizer, template
        self._limit, self.length = max_prompt_tokens, length
        self._known: dict[str, Shortened] = {}
        self.refused = 0
        # The tokens between a prompt and the one in which the answers differ are always the same.
        begin = len(tokenizer.prompt("?", template=template))
        first, second = (
            tokenizer.render(("?", answer), template=template).ids[begin:] for answer in ANSWERS
        )
        lead = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), -1)
        if lead < 0:
            raise UserError(f"{tokenizer.where}: writes the answers 1 and 2 alike; cannot judge")
        self._lead, self.answers = first[:lead], (first[lead], second[lead])

    def _prompt(self, text: str) -> str:
        if not self._limit:
            return text
        # A prompt recurs in every pair of its answers and in both orders.
        if text not in self._known:
            self._known[text] = shorten_prompt(
                text, count_tokens=lambda t: len(self._tokenizer.encode(t)), limit=self._limit
            )
        return self._known[text].text

    def ids(self, prompt: str, first: str, second: str) -> list[int] | None:
        """Tokens up to the answer; None if they do not fit a row, which is counted."""
        text = judge_prompt(self._prompt(prompt), first, second)
        tokens = [*self._tokenizer.prompt(text, template=self._template), *self._lead]
        # One place is left for the answer.
        if len(tokens) >= self.length:
            self.refused += 1
            return None
        return tokens

    def examples(self, records: Sequence[Judgement]) -> list[Example]:
        """Tokenizes both orders of each judgement, with only the answer's token trained.

        Raises:
          UserError: if a judgement does not fit a row.
        """
        result = []
        for judgement in both_orders(records):
            ids = self.ids(judgement.prompt, judgement.first, judgement.second)
            if ids is None:
                raise UserError(
                    f"a judgement does not fit judge.length={self.length} tokens: "
                    f"{judgement.prompt[:60]!r}; raise it, or lower judge.max_prompt_tokens"
                )
            trained = np.zeros(len(ids) + 1, bool)
            trained[-1] = True
            result.append(
                Example(np.array([*ids, self.answers[judgement.better - 1]], np.int32), trained)
            )
        return result

    def describe(self) -> str:
        """Message about prompts cut and rows refused so far."""
        cut = [prompt for prompt in self._known.values() if prompt.dropped]
        longer = sum(prompt.tokens > self._limit for prompt in self._known.values())
        text = (
            f"{len(cut)} of {len(self._known)} prompts cut to {self._limit} tokens "
            f"({sum(prompt.dropped for prompt in cut)} older history entries dropped)"
            if self._limit
            else "no prompt cut"
        )
        if longer:
            text += f", {longer} cannot be cut so far and stay longer"
        return text + (f"; {self.refused} rows refused as too long" if self.refused else "")


class LanguageJudge:
    """Language model as a judge: `judge(prompts, firsts, seconds)` gives p(first is better).

    A pair that does not fit the model is NaN, and counted.

    Args:
      asking: tokenizes the pairs.
      reader: reads probabilities of the answers.
      progress: creates a progress bar from a number of pairs.
    """

    def __init__(
        self,
        judge_prompts: JudgePrompts,
        reader: AnswerReader,
        *,
        progress: Callable[[int], Progress] | None = None,
    ):
        self.judge_prompts, self._reader, self._progress = judge_prompts, reader, progress

    def __call__(
        self, prompt: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """Probability `[pairs]` float64 that the text shown first is better."""
        # Pairs of one prompt are read together, so that its tokens are computed once.
        order: dict[str, list[int]] = {}
        for number, text in enumerate(prompt):
            order.setdefault(text, []).append(number)
        probabilities = np.full(len(prompt), np.nan)
        bar = self._progress(len(prompt)) if self._progress is not None else None
        for numbers in _portions(list(order.values()), 1024):
            rows: list[list[int]] = []
            fitting: list[int] = []
            groups: list[list[int]] = []
            for group in numbers:
                members = []
                for number in group:
                    ids = self.judge_prompts.ids(prompt[number], first[number], second[number])
                    if ids is not None:
                        # `members` index rows that fit, `fitting` their pairs.
                        members.append(len(rows))
                        rows.append(ids)
                        fitting.append(number)
                groups.append(members)
            # Pairs that were refused keep their NaN.
            if rows:
                probabilities[fitting] = self._reader(rows, groups=[g for g in groups if g])
            if bar is not None:
                bar.advance(sum(map(len, numbers)))
        if bar is not None:
            bar.close()
        return probabilities


def _portions(groups: list[list[int]], limit: int) -> list[list[list[int]]]:
    """Divides groups into portions of about `limit` members, to bound the memory of rows."""
    portions: list[list[list[int]]] = [[]]
    size = 0
    for group in groups:
        if size + len(group) > limit and portions[-1]:
            portions.append([])
            size = 0
        portions[-1].append(group)
        size += len(group)
    return portions


def judge_prompts(config: Any, tokenizer: Tokenizer, *, max_positions: int) -> JudgePrompts:
    """Tokenizer of judgements with the settings of `config.judge`.

    Args:
      config: configuration of the run.
      tokenizer: tokenizer of the base.
      max_positions: largest number of tokens that the model takes.

    Raises:
      UserError: if rows are longer than that.
    """
    cfg = config.judge
    if not 0 < cfg.length <= max_positions:
        raise UserError(f"judge.length={cfg.length}, but the model takes 1 to {max_positions}")
    return JudgePrompts(
        tokenizer,
        template=run_base.template(config),
        max_prompt_tokens=cfg.max_prompt_tokens,
        length=cfg.length,
    )
