"""Rendering of prompts from rows: history selection by time, truncation to a token budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar

from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts.templates import Template

T = TypeVar("T")
# Returns the number of tokens of a text, or its encoding, whose length counts.
CountTokens = Callable[[str], int | Sized]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
      text: text of the prompt.
      shown: number of history entries in it.
      dropped: number of (oldest) history entries cut by the token budget.
      tokens: number of tokens; None without a budget.
    """

    text: str
    shown: int
    dropped: int = 0
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class TruncationCount:
    """Statistics of the truncation of a set of prompts, for logs.

    Attributes:
      prompts: number of prompts.
      cut: number of prompts that lost entries.
      dropped: total number of dropped entries.
      shown: total number of entries in the prompts.
    """

    prompts: int = 0
    cut: int = 0
    dropped: int = 0
    shown: int = 0

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> TruncationCount:
        """Sums over prompts."""
        total = cls()
        for prompt in prompts:
            total += cls(1, int(prompt.dropped > 0), prompt.dropped, prompt.shown)
        return total

    def __add__(self, other: TruncationCount) -> TruncationCount:
        return TruncationCount(
            self.prompts + other.prompts,
            self.cut + other.cut,
            self.dropped + other.dropped,
            self.shown + other.shown,
        )

    def __str__(self) -> str:
        return (
            f"{self.cut} of {self.prompts} prompts cut to the token budget: {self.dropped} of "
            f"{self.dropped + self.shown} history entries dropped"
        )


def select_history(
    entries: Sequence[T],
    times: Sequence[float] | None = None,
    *,
    latest: int | None = None,
    before: float | None = None,
    without: object = None,
) -> list[T]:
    """Selects the latest entries of a history, oldest first.

    Args:
      entries: item rows or ids.
      times: time of each entry; None if `entries` are in order. Ties keep their order.
      latest: most entries; None for all.
      before: exclusive upper bound of the times.
      without: an entry to exclude (the recommended item, if it is in the history).

    Raises:
      UserError: if `latest` is negative, lengths differ, or `before` is given without times.
    """
    if latest is not None and latest < 0:
        raise UserError(f"the number of latest history entries must be at least 0, got {latest}")
    if before is not None and times is None:
        raise UserError("history before a time needs the times of the entries")
    order = list(range(len(entries)))
    if times is not None:
        if len(times) != len(entries):
            raise UserError(f"{len(entries)} history entries but {len(times)} times")
        order.sort(key=lambda place: times[place])
        if before is not None:
            order = [place for place in order if times[place] < before]
    kept = [entries[place] for place in order]
    if without is not None:
        kept = [entry for entry in kept if entry != without]
    return kept if latest is None else kept[max(len(kept) - latest, 0) :]


def render_prompt(
    template: Template,
    *,
    item: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    user: Mapping[str, Any] | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> Prompt:
    """Renders a prompt, truncated to a token budget.

    The oldest history entries are dropped first; instruction, profile and recommended item are
    never cut. Takes at most 2 + log2(entries) token counts.

    Args:
      template: the template.
      item: row of the recommended item.
      history: rows of the item table, oldest first.
      user: row of the user table; required if the template has a profile.
      count_tokens: returns the number of tokens of a text, or its encoding, including the tokens
        added by a chat template.
      max_tokens: token budget; needs `count_tokens`.

    Raises:
      UserError: if a column is missing, or the prompt is too long even without history.
    """
    if template.user and user is None:
        raise UserError(
            f"template {template.name!r} needs a user row; give a user table (data.users), or a "
            "template without a profile: instruct.template=dict(name='generic', item_columns=...) "
            "in a config, --prompt=generic with `xrec explain`"
        )
    if max_tokens is not None and count_tokens is None:
        raise UserError("a token budget needs a way to count tokens: count_tokens")
    profile = template.render_user(user) if template.user and user is not None else ""
    target = template.render_item(item)

    def text(kept: int) -> str:
        rows = history[len(history) - kept :]
        entries = [template.render_entry(row, index) for index, row in enumerate(rows, start=1)]
        return template.assemble(user=profile, item=target, entries=entries)

    # Usually everything fits: one count settles it.
    full = text(len(history))
    if count_tokens is None or max_tokens is None:
        return Prompt(full, shown=len(history))
    length = _count(count_tokens, full)
    if length <= max_tokens:
        return Prompt(full, shown=len(history), tokens=length)
    # Otherwise the prompt without history must fit, or the item cannot be explained at all.
    best = Prompt(text(0), shown=0, dropped=len(history))
    length = _count(count_tokens, best.text) if history else length
    if length > max_tokens:
        raise UserError(
            f"the prompt of template {template.name!r} takes {length} tokens without any history, "
            f"more than the budget of {max_tokens}: allow more tokens or use a shorter template"
        )
    best = dataclasses.replace(best, tokens=length)
    # Binary search; invariant: `low` entries fit, `high` do not.
    low, high = 0, len(history)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = text(middle)
        length = _count(count_tokens, candidate)
        if length <= max_tokens:
            low = middle
            best = Prompt(candidate, middle, len(history) - middle, length)
        else:
            high = middle
    return best


def _count(count_tokens: CountTokens, text: str) -> int:
    counted = count_tokens(text)
    return len(counted) if isinstance(counted, Sized) else int(counted)
