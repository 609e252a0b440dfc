"""Prompts from tables that ask for attributes and do not hold them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.text.prompts import layout as layouts
from xrec_jax.text.prompts.render import CountTokens, render_prompt
from xrec_jax.text.prompts.templates import Template
from xrec_jax.text.records.attributes import Attribute, Question, Value
from xrec_jax.text.words import finder


def without(template: Template, columns: Sequence[str], *, of: str) -> str:
    """A layout of a template without some columns.

    An optional part that holds one goes as a whole; elsewhere the field goes with the text before
    it.

    Args:
      template: the template.
      columns: to leave out.
      of: "item", "entry" or "user".
    """
    kept: list[str] = []
    for part in layouts.parse_layout(getattr(template, of)):
        gone = [
            isinstance(piece, layouts.Field)
            and template.columns.get(piece.name, piece.name) in columns
            for piece in part.pieces
        ]
        if part.optional and any(gone):
            continue
        text = ""
        for place, piece in enumerate(part.pieces):
            follows_gone = place + 1 < len(gone) and gone[place + 1]
            if isinstance(piece, layouts.Field):
                text += "" if gone[place] else f"{{{piece.name}}}"
            elif not follows_gone:
                text += piece.replace("{", "{{").replace("}", "}}")
        kept.append(f"[[{text}]]" if part.optional else text)
    return "".join(kept).lstrip(",;: ")


def question_template(
    template: Template,
    attributes: Sequence[Attribute],
    *,
    item: Sequence[str] = (),
    profile: Sequence[str] = (),
) -> Template:
    """The layout of a template up to the item, followed by the question.

    Args:
      template: its layouts of history, item and what stands between are used.
      attributes: what is asked.
      item: columns that the recommended item is shown without.
      profile: columns of the user that are shown; empty for no profile.

    Raises:
      UserError: where the item would have nothing left to be shown by.
    """
    head = template.body[: template.body.index("{item}") + len("{item}")]
    # A paragraph before the first field is another task: what to do with the facts below.
    first = min(head.index(f) for f in ("{history}", "{user}", "{item}") if f in head)
    head = head[head.rfind("\n\n", 0, first) + 2 :] if "\n\n" in head[:first] else head
    if not profile:
        head = re.sub(r"[^\n]*\{user\}[^\n]*\n?", "", head)
    elif "{user}" not in head:
        head = head.replace("{item}", "{user}\n{item}")
    stripped = without(template, item, of="item")
    if not layouts.fields_of(stripped):
        raise UserError(f"template {template.name!r} shows nothing of an item but {list(item)}")
    lines = "\n".join(
        attribute.describe().replace("{", "{{").replace("}", "}}") for attribute in attributes
    )
    shown = ", ".join(f"{column.replace('_', ' ')}: {{{column}}}" for column in profile)
    return dataclasses.replace(
        template,
        name=f"{template.name}, asked",
        body=f"{head}\n\nTell from this:\n{lines}\nAnswer with one JSON object and no other text."
        "\n",
        item=stripped,
        user=shown,
    )


def ask(
    template: Template,
    attributes: Sequence[Attribute],
    *,
    row: Mapping[str, Any],
    item: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    user: Mapping[str, Any] | None,
    name: str,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> Question:
    """One question from rows.

    Args:
      template: from `question_template`.
      attributes: what is asked.
      row: where the true values stand: the row of the item or of the user.
      item: row of the recommended item.
      history: rows of the item table, oldest first.
      user: row of the user, where the template has a profile.
      name: of the user.
      count_tokens: see `prompts.render_prompt`, as the next.
      max_tokens: the budget.

    Raises:
      UserError: where a true value is missing.
    """
    truth: dict[str, Value] = {}
    for attribute in attributes:
        value = attribute.read(row[attribute.key])
        if value is None:
            raise UserError(f"user {name}: {attribute.key} is {row[attribute.key]!r}")
        truth[attribute.key] = value
    prompt = render_prompt(
        template,
        item=item,
        history=history,
        user=user,
        count_tokens=count_tokens,
        max_tokens=max_tokens,
    )
    return Question(prompt.text, tuple(attributes), truth, name)


def check_no_leak(
    rows: Iterable[Mapping[str, Any]], asked: Sequence[str], shown: Sequence[str], *, what: str
) -> None:
    """Makes sure that no column a prompt shows gives an asked value of the same row away.

    Args:
      rows: of a table.
      asked: columns to predict.
      shown: columns of the same row that the prompt shows, its title aside.
      what: the config key to change, for the message.

    Raises:
      UserError: names a shown column that is asked, or whose text holds an asked value.
    """
    for column in shown:
        if column in asked:
            raise UserError(f"{what}: {column!r} is asked for and shown")
    count: Counter[tuple[str, str]] = Counter()
    total = 0
    for row in rows:
        total += 1
        for column in shown:
            text = layouts.text_value(row, column) or ""
            for key in asked:
                value = layouts.text_value(row, key)
                if value and holds(text, value):
                    count[column, key] += 1
    for (column, key), cases in count.most_common(1):
        raise UserError(
            f"{what}: column {column!r}, which the prompt shows, holds the value of {key!r} in "
            f"{cases} of {total} rows; leave it out"
        )


def holds(text: str, value: str) -> bool:
    """Whether a text names a value as words of their own, in whatever case."""
    return bool(finder([value]).search(text))
