"""Grounding of answers to prompts that exist as text only, such as those of published sets.

Item and history are read back from each prompt by its template; the catalogue, against which other
titles are found, is what all prompts of the set name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate
from xrec_jax.evaluation.texts.grounding import (
    Grounder,
    ground_pairs,
    grounding_metrics,
    vocabulary_of,
)
from xrec_jax.text.prompts.parsing import Parsed, parse_prompt, read_prompt
from xrec_jax.text.prompts.templates import Template

Context = dict[str, Any]  # `title`, `attributes` and `history` of a prompt, as a run's pairs have

ITEM_NAMED = "grounding/item_named"
_TITLES = ("title", "name")
# A field with more different values, such as a summary, holds nothing that a text can name.
_MOST_VALUES = 60


def prompt_context(prompt: str, template: Template | None = None) -> Context | None:
    """Item and history of a prompt; None if no template fits it.

    Args:
      prompt: text of the prompt.
      template: template to try before the registered ones.

    Returns:
      `title` and `attributes` of the item, and `history`, entries with the same two keys. Fields
      that the template writes as lists are lists.
    """
    match: tuple[Template, Parsed] | None = None
    if template is not None:
        try:
            match = template, parse_prompt(template, prompt)
        except UserError:
            match = None
    match = match or read_prompt(prompt)
    if match is None or not match[1].item:
        return None
    template, parsed = match
    return _row(template, parsed.item) | {
        "history": [_row(template, entry) for entry in parsed.history]
    }


def _row(template: Template, fields: Mapping[str, str | None]) -> Context:
    """Title and attributes of an entry; the title is a field of that name, or the first."""
    title = next((name for name in _TITLES if name in fields), next(iter(fields)))
    rest = {
        name: _values(template, text or "")
        for name, text in fields.items()
        if name not in (title, "index")
    }
    return {"title": fields[title] or "", "attributes": rest}


def _values(template: Template, text: str) -> list[str]:
    """Values of a field: the inverse of how a template writes a list."""
    before, behind = template.listed.split("{list}")
    if before and text.startswith(before) and text.endswith(behind):
        text = text[len(before) : len(text) - len(behind)]
    absent = ("", template.unknown, *template.absent)
    return [value for value in map(str.strip, text.split(template.joiner)) if value not in absent]


class PromptGrounder:
    """Grounds answers to the prompts of a set.

    Args:
      prompts: all prompts of the set; their titles are the catalogue.
      template: template to try before the registered ones.
    """

    def __init__(self, prompts: Iterable[str], template: Template | None = None):
        self._contexts = {
            prompt: prompt_context(prompt, template) for prompt in dict.fromkeys(prompts)
        }
        rows = [
            row
            for context in self._contexts.values()
            if context is not None
            for row in (context, *context["history"])
        ]
        # Prompts of several data sets have different fields, so each row gets all of them.
        columns = dict.fromkeys(name for row in rows for name in row["attributes"])
        full = [{name: row["attributes"].get(name, ()) for name in columns} for row in rows]
        named = vocabulary_of(full, list(columns))
        self._grounder = Grounder(
            [row["title"] for row in rows],
            {name: values for name, values in named.items() if len(values) <= _MOST_VALUES},
        )

    def figures(
        self, prompts: Sequence[str], texts: Sequence[str], *, resamples: int, seed: int = 0
    ) -> dict[str, Estimate]:
        """Figures of `grounding_metrics`, over the prompts that could be read; empty without any.

        Args:
          prompts: prompts of the set.
          texts: an answer to each.
          resamples: bootstrap samples of texts.
          seed: of the bootstrap.
        """
        pairs = [
            (context, text)
            for prompt, text in zip(prompts, texts, strict=True)
            if (context := self._contexts[prompt]) is not None
        ]
        if not pairs:
            return {}
        contexts, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        groundings = ground_pairs(self._grounder, contexts, answers)
        return grounding_metrics(groundings, resamples=resamples, seed=seed).corpus
