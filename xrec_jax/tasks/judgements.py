"""Judgements to train a judge on, and a language model as a judge of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import Progress
from xrec_jax.data.packing import Example
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.audit.cases import Case as Asked
from xrec_jax.evaluation.audit.cases import read_case, same_case
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

_SEED = 51  # of choices in a world; others belong to the instruction set


class JudgementSet(NamedTuple):
    """Judgements in the order in which they were given, split by prompt.

    Attributes:
      train: to learn from; both orders are made of each later.
      held_out: never seen in training.
    """

    train: list[Judgement]
    held_out: list[Judgement]


def judgements(
    config: Any, data: RunData, *, seed: int, tokenizer: Tokenizer | None = None
) -> JudgementSet:
    """The judgements of a config.

    Args:
      config: of the run.
      data: of the run.
      seed: of all choices.
      tokenizer: keeps prompts of a world within `instruct.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source, a file that cannot be read, or too few judgements.
    """
    asked = config.judge
    if asked.source == "world":
        need_world(data, "judge.source")
        found = _from_world(config, data, seed, tokenizer)
    elif asked.source == "file":
        if not asked.path:
            raise UserError("judge.source='file' needs judge.path: a JSONL file")
        found = read_judgements(asked.path, pair=asked.pair, block=asked.block)
        if asked.stratify and not all(asked.stratify in one.meta for one in found):
            raise UserError(
                f"{asked.path}: not every record has the key {asked.stratify!r} of judge.stratify; "
                "--config.judge.stratify= does without"
            )
    else:
        raise UserError(f"judge.source={asked.source!r} is not valid; valid: world, file, planted")
    stratify = asked.stratify if asked.source == "file" else ""
    return JudgementSet(
        *split_judgements(
            found,
            held_out=asked.held_out,
            seed=seed,
            stratify=stratify or None,
            cases=_cases(found) if asked.source == "file" else None,
        )
    )


def _cases(found: Sequence[Judgement]) -> list[str]:
    """A prompt for each judgement that stands for all that ask about the same recommendation."""
    prompts = {one.group: one.prompt for one in found}
    stands = {group: group for group in prompts}

    def first(group: str) -> str:
        while stands[group] != group:
            group = stands[group]
        return group

    alike: dict[tuple[str, str], list[tuple[str, Asked]]] = {}
    for group, prompt in prompts.items():
        case = read_case(prompt)
        if not case.read:
            continue
        # Equal cases have these two in common; so few are compared with each other.
        others = alike.setdefault((case.target, case.shown[-1] if case.shown else ""), [])
        for other, known in others:
            if same_case(known, case):
                stands[first(group)] = first(other)
        others.append((group, case))
    return [first(one.group) for one in found]


def _from_world(
    config: Any, data: RunData, seed: int, tokenizer: Tokenizer | None
) -> list[Judgement]:
    count = config.judge.examples
    if count < 2:
        raise UserError(f"judge.examples={count} must be 2 or more for a world")
    if data.world is None:
        raise UserError("judge.source='world' needs a planted world")
    asked = prompting(config.instruct, data, tokenizer)
    pairs = visits_to_explain(data, count, seed=seed + _SEED)
    users, items, made = (np.array([pair[i] for pair in pairs]) for i in (0, 1, 3))
    cases = [
        Case(
            item=asked.items[item],
            history=asked.history(before, item),
            reasons=why,
            user=asked.user(user),
            meta={
                "user": str(data.dataset.user_ids[user]),
                "item": str(data.dataset.item_ids[item]),
            },
        )
        for (user, item, before, _), why in zip(
            pairs, data.world.reasons(users, items, made), strict=True
        )
    ]
    return world_judgements(
        cases,
        asked.template,
        seed=seed,
        count_tokens=asked.count_tokens,
        max_tokens=asked.max_tokens,
        named=config.instruct.named,
    )


class Asking:
    """Turns judgements into tokens; what it cuts and what it refuses is counted.

    Attributes:
      answers: the two tokens that tell the answers apart.
      length: tokens of a row at most, the answer included.

    Args:
      tokenizer: of the base.
      template: whether a chat template is used; None lets the tokenizer decide.
      max_prompt_tokens: older history entries of longer prompts are cut; 0: no limit.
      length: tokens of a row.

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
        # What follows a prompt does not depend on it: the tokens up to the one that differs.
        begin = len(tokenizer.prompt("?", template=template))
        one, two = (
            tokenizer.render(("?", answer), template=template).ids[begin:] for answer in ANSWERS
        )
        lead = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), -1)
        if lead < 0:
            raise UserError(f"{tokenizer.where}: writes the answers 1 and 2 alike; cannot judge")
        self._lead, self.answers = one[:lead], (one[lead], two[lead])

    def _prompt(self, text: str) -> str:
        if not self._limit:
            return text
        if text not in self._known:
            self._known[text] = shorten_prompt(
                text, count_tokens=lambda t: len(self._tokenizer.encode(t)), limit=self._limit
            )
        return self._known[text].text

    def ids(self, prompt: str, first: str, second: str) -> list[int] | None:
        """Tokens up to the answer; None, and counted, where they do not fit a row."""
        text = judge_prompt(self._prompt(prompt), first, second)
        found = [*self._tokenizer.prompt(text, template=self._template), *self._lead]
        if len(found) >= self.length:
            self.refused += 1
            return None
        return found

    def examples(self, found: Sequence[Judgement]) -> list[Example]:
        """Both orders of each judgement; only the answer's token is trained.

        Raises:
          UserError: if one does not fit.
        """
        made = []
        for one in both_orders(found):
            ids = self.ids(one.prompt, one.first, one.second)
            if ids is None:
                raise UserError(
                    f"a judgement does not fit judge.length={self.length} tokens: "
                    f"{one.prompt[:60]!r}; raise it, or lower judge.max_prompt_tokens"
                )
            trained = np.zeros(len(ids) + 1, bool)
            trained[-1] = True
            made.append(Example(np.array([*ids, self.answers[one.better - 1]], np.int32), trained))
        return made

    def describe(self) -> str:
        """What was cut and refused so far, in words."""
        cut = [one for one in self._known.values() if one.dropped]
        longer = sum(one.tokens > self._limit for one in self._known.values())
        text = (
            f"{len(cut)} of {len(self._known)} prompts cut to {self._limit} tokens "
            f"({sum(one.dropped for one in cut)} older history entries dropped)"
            if self._limit
            else "no prompt cut"
        )
        if longer:
            text += f", {longer} cannot be cut so far and stay longer"
        return text + (f"; {self.refused} rows refused as too long" if self.refused else "")


class LanguageJudge:
    """A language model as a judge: `judge(prompts, firsts, seconds)` gives p(first is better).

    A pair that does not fit the model is NaN, and counted.

    Args:
      asking: makes the rows.
      reader: reads the answers.
      progress: from a number of pairs to a bar that counts them.
    """

    def __init__(
        self,
        asking: Asking,
        reader: AnswerReader,
        *,
        progress: Callable[[int], Progress] | None = None,
    ):
        self.asking, self._reader, self._progress = asking, reader, progress

    def __call__(
        self, prompt: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """Probability `[pairs]` float64 that what is shown first is better."""
        order: dict[str, list[int]] = {}
        for number, text in enumerate(prompt):
            order.setdefault(text, []).append(number)
        out = np.full(len(prompt), np.nan)
        bar = self._progress(len(prompt)) if self._progress is not None else None
        for numbers in _portions(list(order.values()), 1024):
            rows: list[list[int]] = []
            kept: list[int] = []
            groups: list[list[int]] = []
            for group in numbers:
                members = []
                for number in group:
                    ids = self.asking.ids(prompt[number], first[number], second[number])
                    if ids is not None:
                        members.append(len(rows))
                        rows.append(ids)
                        kept.append(number)
                groups.append(members)
            if rows:
                out[kept] = self._reader(rows, groups=[g for g in groups if g])
            if bar is not None:
                bar.advance(sum(map(len, numbers)))
        if bar is not None:
            bar.close()
        return out


def _portions(groups: list[list[int]], most: int) -> list[list[list[int]]]:
    """Groups in portions of about `most` members, so that rows need not all be held at once."""
    portions: list[list[list[int]]] = [[]]
    size = 0
    for group in groups:
        if size + len(group) > most and portions[-1]:
            portions.append([])
            size = 0
        portions[-1].append(group)
        size += len(group)
    return portions


def asking(config: Any, tokenizer: Tokenizer, *, most: int) -> Asking:
    """How `config.judge` asks; `most` is what the model takes.

    Raises:
      UserError: if rows are longer than that.
    """
    asked = config.judge
    if not 0 < asked.length <= most:
        raise UserError(f"judge.length={asked.length}, but the model takes 1 to {most}")
    return Asking(
        tokenizer,
        template=run_base.template(config),
        max_prompt_tokens=asked.max_prompt_tokens,
        length=asked.length,
    )
