"""Prompts and planted explanations for pairs of a run's data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.text.prompts.render import Prompt, TruncationCount, render_prompt, select_history
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.synthetic.instructions import Case, build_instructions

_EARLIEST = 3  # visits before the first one that is explained: a history to speak of


class Prompting:
    """Renders prompts from a data set's tables.

    Args:
      data: of the run.
      template: a registered name, or values (see `text.templates.template_from`).
      history: entries of a prompt.
      count_tokens: of a text, where there is a budget.
      max_tokens: the budget.
    """

    def __init__(
        self,
        data: RunData,
        template: Any,
        *,
        history: int,
        count_tokens: Callable[[str], int] | None = None,
        max_tokens: int | None = None,
    ):
        if data.dataset.items is None:
            raise UserError("prompts need a table of items: their titles and features")
        self.data, self.template = data, template_from(template)
        self.latest, self.count_tokens, self.max_tokens = history, count_tokens, max_tokens

    @functools.cached_property
    def items(self) -> list[dict[str, Any]]:
        """Rows of the item table."""
        table = self.data.dataset.items
        return [] if table is None else table.to_dicts()

    @functools.cached_property
    def users(self) -> list[dict[str, Any]] | None:
        """Rows of the user table."""
        table = self.data.dataset.users
        return None if table is None else table.to_dicts()

    def user(self, row: int) -> dict[str, Any] | None:
        """A row of the user table, if there is one."""
        return None if self.users is None else self.users[row]

    def history(self, items: Iterable[int], target: int) -> list[dict[str, Any]]:
        """Rows of the latest entries before a recommendation; the target itself is left out."""
        kept = select_history(list(items), latest=self.latest, without=target)
        return [self.items[item] for item in kept]

    def prompt(self, user: int, item: int, history: Iterable[int]) -> Prompt:
        """The prompt that asks why `item` suits `user`, whose events so far are `history`."""
        return render_prompt(
            self.template,
            item=self.items[item],
            history=self.history(history, item),
            user=self.user(user),
            count_tokens=self.count_tokens,
            max_tokens=self.max_tokens,
        )


def visits_to_explain(
    data: RunData, count: int, *, seed: int
) -> list[tuple[int, int, np.ndarray, int]]:
    """Chooses training visits: one of each user in a keyed order of users, round after round.

    Returns:
      `(user, item, items before, number of visits before)`.

    Raises:
      UserError: if there are fewer than `count` with a history of some length.
    """
    histories = Histories.of([data.split.train], data.dataset.num_users)
    order = rng.permutation(rng.fold(seed, Stream.EXPLAINED_USERS), data.dataset.num_users)
    choices = {
        int(user): _EARLIEST
        + rng.permutation(
            rng.fold(seed, Stream.EXPLAINED_VISITS, int(user)),
            max(0, int(histories.lengths[user]) - _EARLIEST),
        )
        for user in order
    }
    found: list[tuple[int, int, np.ndarray, int]] = []
    turn = 0
    while len(found) < count and any(len(places) > turn for places in choices.values()):
        for user, places in choices.items():
            if len(places) > turn and len(found) < count:
                start, place = histories.start[user], int(places[turn])
                before = histories.items[start : start + place]
                found.append((user, int(histories.items[start + place]), before, place))
        turn += 1
    if len(found) < count:
        raise UserError(
            f"instruct.examples and what is held out ask for {count} visits to explain, "
            f"but only {len(found)} have {_EARLIEST} visits before them; lower it or enlarge the "
            "world"
        )
    return found


def planted_explanations(
    prompting: Prompting,
    pairs: Sequence[tuple[int, int, np.ndarray, int]],
    *,
    seed: int,
    named: bool = True,
) -> tuple[list[Instruction], TruncationCount]:
    """Instructions whose completions say the true reasons of the planted world.

    Args:
      prompting: renders the prompts.
      pairs: from `visits_to_explain`.
      seed: of the wording.
      named: whether explanations name places.

    Raises:
      UserError: if the data has no planted reasons.
    """
    data = prompting.data
    if data.world is None:
        raise UserError("planted explanations need a planted world")
    users, items, made = (np.array([pair[i] for pair in pairs]) for i in (0, 1, 3))
    cases = [
        Case(
            item=prompting.items[item],
            history=[prompting.items[i] for i in before],
            reasons=why,
            user=prompting.user(user),
            meta={
                "user": str(data.dataset.user_ids[user]),
                "item": str(data.dataset.item_ids[item]),
                "reasons": why.describe(),
            },
        )
        for (user, item, before, _), why in zip(
            pairs, data.world.reasons(users, items, made), strict=True
        )
    ]
    return build_instructions(
        cases,
        prompting.template,
        latest=prompting.latest,
        count_tokens=prompting.count_tokens,
        max_tokens=prompting.max_tokens,
        seed=seed,
        named=named,
    )


def prompting(asked: Any, data: RunData, tokenizer: Tokenizer | None) -> Prompting:
    """How `config.instruct` renders prompts."""
    if tokenizer is None or not asked.max_prompt_tokens:
        return Prompting(data, asked.template, history=asked.history)
    return Prompting(
        data,
        asked.template,
        history=asked.history,
        count_tokens=lambda text: len(tokenizer.encode(text)),
        max_tokens=asked.max_prompt_tokens,
    )
