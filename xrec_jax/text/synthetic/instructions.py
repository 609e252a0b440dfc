"""Instruction sets from rows and planted reasons: prompts with the explanations to learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.text.prompts.render import CountTokens, TruncationCount, render_prompt, select_history
from xrec_jax.text.prompts.templates import Template
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.synthetic.explanations import Length, Reasons, explain


@dataclasses.dataclass(frozen=True)
class Case:
    """A recommendation to explain.

    Attributes:
      item: row of the recommended item.
      history: item rows, oldest first, of what the user chose before.
      reasons: what is true of the pair.
      user: row of the user.
      meta: kept with the instruction; its values also tell cases apart when words are drawn.
    """

    item: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    reasons: Reasons
    user: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build_instructions(
    cases: Iterable[Case],
    template: Template,
    *,
    latest: int | None = 10,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    title: str = "name",
    length: Length | None = None,
    named: bool = True,
) -> tuple[list[Instruction], TruncationCount]:
    """Writes an instruction for every case; an explanation cites only what its prompt shows.

    Args:
      cases: recommendations with their true reasons.
      template: of the prompts.
      latest: history entries in a prompt at most; None for all.
      count_tokens: as in `render_prompt`.
      max_tokens: budget of a prompt.
      seed: of the wording.
      title: the column of an item's name.
      length: of the explanations.
      named: whether explanations name places.

    Returns:
      The instructions, and what was cut from their prompts.

    Raises:
      UserError: where a column is missing or a prompt does not fit.
    """
    instructions, cut = [], TruncationCount()
    for case in cases:
        history = select_history(case.history, latest=latest)
        prompt = render_prompt(
            template,
            item=case.item,
            history=history,
            user=case.user,
            count_tokens=count_tokens,
            max_tokens=max_tokens,
        )
        cut += TruncationCount.of([prompt])
        completion = explain(
            case.reasons,
            item=case.item,
            history=history[prompt.dropped :],
            user=case.user,
            key=sorted(case.meta.items()),
            seed=seed,
            title=title,
            length=length,
            named=named,
        )
        instructions.append(Instruction(prompt.text, completion, meta=dict(case.meta)))
    return instructions, cut
