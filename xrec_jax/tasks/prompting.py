"""Prompts and planted explanations for user-item pairs of a run's data."""

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

_EARLIEST = 3  # visits before the first one that is explained, so that it has a history


class Prompting:
    """Renders prompts from a data set's tables.

    Args:
      data: data of the run.
      template: a registered name, or fields (see `text.prompts.templates.template_from`).
      history: number of history entries in a prompt.
      count_tokens: counts the tokens of a text; None without a budget.
      max_tokens: token budget of a prompt.

    Raises:
      UserError: if the data has no item table.
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
        """Row of the user table, if there is one."""
        return None if self.users is None else self.users[row]

    def history(self, items: Iterable[int], target: int) -> list[dict[str, Any]]:
        """Rows of the latest history entries, without the recommended item itself."""
        kept = select_history(list(items), latest=self.latest, without=target)
        return [self.items[item] for item in kept]

    def prompt(self, user: int, item: int, history: Iterable[int]) -> Prompt:
        """Prompt that asks why `item` suits `user`, whose items so far are `history`."""
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
    """Chooses training visits in rounds: one of each user per round, in a seeded order of users.

    Returns:
      `(user, item, items before, number of visits before)`.

    Raises:
      UserError: if there are fewer than `count` visits with a history.
    """
    histories = Histories.of([data.split.train], data.dataset.num_users)
    order = rng.permutation(rng.fold(seed, Stream.EXPLAINED_USERS), data.dataset.num_users)
    # Users have streams of their own, so that further users leave their visits as they are.
    choices = {
        int(user): _EARLIEST
        + rng.permutation(
            rng.fold(seed, Stream.EXPLAINED_VISITS, int(user)),
            max(0, int(histories.lengths[user]) - _EARLIEST),
        )
        for user in order
    }
    # Rounds spread the visits over users, so that active ones do not dominate a small set.
    visits: list[tuple[int, int, np.ndarray, int]] = []
    number = 0
    while len(visits) < count and any(len(places) > number for places in choices.values()):
        for user, places in choices.items():
            if len(places) > number and len(visits) < count:
                start, place = histories.start[user], int(places[number])
                # Only what came before the visit: later events would give its future away.
                before = histories.items[start : start + place]
                visits.append((user, int(histories.items[start + place]), before, place))
        number += 1
    if len(visits) < count:
        raise UserError(
            f"instruct.examples and what is held out ask for {count} visits to explain, "
            f"but only {len(visits)} have {_EARLIEST} visits before them; lower it or enlarge the "
            "world"
        )
    return visits


def planted_explanations(
    prompting: Prompting,
    pairs: Sequence[tuple[int, int, np.ndarray, int]],
    *,
    seed: int,
    named: bool = True,
) -> tuple[list[Instruction], TruncationCount]:
    """Instructions whose completions state the true reasons of the planted world.

    Args:
      prompting: renders the prompts.
      pairs: result of `visits_to_explain`.
      seed: seed of the wording.
      named: whether explanations name places.

    Raises:
      UserError: if the data has no planted reasons.
    """
    data = prompting.data
    if data.world is None:
        raise UserError("planted explanations need a planted world")
    # The reasons of a visit are those of its moment, since tastes may change.
    users, items, visits_before = (np.array([pair[i] for pair in pairs]) for i in (0, 1, 3))
    cases = [
        Case(
            item=prompting.items[item],
            history=[prompting.items[i] for i in before],
            reasons=reasons,
            user=prompting.user(user),
            meta={
                "user": str(data.dataset.user_ids[user]),
                "item": str(data.dataset.item_ids[item]),
                "reasons": reasons.describe(),
            },
        )
        for (user, item, before, _), reasons in zip(
            pairs, data.world.reasons(users, items, visits_before), strict=True
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


def prompting(cfg: Any, data: RunData, tokenizer: Tokenizer | None) -> Prompting:
    """Prompts as `config.instruct` renders them, within its token budget if there is a tokenizer.

    Args:
      cfg: the section `instruct`, or its typed form.
      data: data of the run.
      tokenizer: tokenizer of the base, if any.
    """
    if tokenizer is None or not cfg.max_prompt_tokens:
        return Prompting(data, cfg.template, history=cfg.history)
    return Prompting(
        data,
        cfg.template,
        history=cfg.history,
        count_tokens=lambda text: len(tokenizer.encode(text)),
        max_tokens=cfg.max_prompt_tokens,
    )
