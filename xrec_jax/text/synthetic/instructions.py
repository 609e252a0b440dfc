"""Instruction sets from rows and planted reasons: prompts with target explanations."""

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
      history: item rows of the user's earlier choices, oldest first.
      reasons: true reasons of the pair.
      user: row of the user.
      meta: kept with the instruction; its values also key the random wording.
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
    """Builds an instruction for every case; explanations cite only entries that the prompt shows.

    Args:
      cases: recommendations with their true reasons.
      template: template of the prompts.
      latest: most history entries in a prompt; None for all.
      count_tokens: as in `render_prompt`.
      max_tokens: token budget of a prompt.
      seed: random seed of the wording.
      title: title column.
      length: target length of the explanations.
      named: mention places by name in explanations.

    Returns:
      The instructions, and statistics of the truncation of their prompts.

    Raises:
      UserError: if a column is missing or a prompt does not fit.
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
        # The prompt comes first: truncation decides which entries an explanation may cite.
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
