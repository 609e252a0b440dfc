"""Prompts that ask for attributes, built from tables without leaking them."""

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
    """Removes columns from a layout of a template.

    An optional part with such a column is removed as a whole; elsewhere the field is removed
    together with the text before it.

    Args:
      template: the template.
      columns: columns to remove.
      of: "item", "entry" or "user".
    """
    kept: list[str] = []
    for part in layouts.parse_layout(getattr(template, of)):
        removed = [
            isinstance(piece, layouts.Field)
            and template.columns.get(piece.name, piece.name) in columns
            for piece in part.pieces
        ]
        if part.optional and any(removed):
            continue
        text = ""
        for place, piece in enumerate(part.pieces):
            # A literal goes with the field behind it, which it introduces ("; price level
            # {price}").
            before_removed = place + 1 < len(removed) and removed[place + 1]
            if isinstance(piece, layouts.Field):
                text += "" if removed[place] else f"{{{piece.name}}}"
            elif not before_removed:
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
    """Builds a template from another one up to the item, followed by the question.

    Args:
      template: source of the layouts of history and item and of the text between them.
      attributes: attributes to ask for.
      item: columns removed from the recommended item.
      profile: columns of the user to show; empty for no profile.

    Raises:
      UserError: if no column of the item would be left.
    """
    head = template.body[: template.body.index("{item}") + len("{item}")]
    # A paragraph before the first field holds the original instruction, which is dropped.
    first = min(head.index(f) for f in ("{history}", "{user}", "{item}") if f in head)
    head = head[head.rfind("\n\n", 0, first) + 2 :] if "\n\n" in head[:first] else head
    # The profile of the question is a chosen set of columns, never the template's own.
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
    """Builds one question from rows.

    Args:
      template: from `question_template`.
      attributes: attributes to ask for.
      row: row with the true values: that of the item or of the user.
      item: row of the recommended item.
      history: rows of the item table, oldest first.
      user: row of the user, if the template has a profile.
      name: name of the user.
      count_tokens: see `render.render_prompt`.
      max_tokens: token budget.

    Raises:
      UserError: if a true value is missing.
    """
    # A question without a valid answer could neither be learned nor scored.
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
    rows: Iterable[Mapping[str, Any]], targets: Sequence[str], shown: Sequence[str], *, what: str
) -> None:
    """Checks that no shown column reveals the value of a target column of the same row.

    Args:
      rows: rows of a table.
      targets: columns to predict.
      shown: columns of the same row that the prompt shows, apart from its title.
      what: config key to change, for the message.

    Raises:
      UserError: names a shown column that is a target, or whose text contains a target value.
    """
    for column in shown:
        if column in targets:
            raise UserError(f"{what}: {column!r} is asked for and shown")
    count: Counter[tuple[str, str]] = Counter()
    total = 0
    for row in rows:
        total += 1
        for column in shown:
            text = layouts.text_value(row, column) or ""
            for key in targets:
                value = layouts.text_value(row, key)
                if value and holds(text, value):
                    count[column, key] += 1
    # The worst leak is named; without one there is nothing to go through.
    for (column, key), cases in count.most_common(1):
        raise UserError(
            f"{what}: column {column!r}, which the prompt shows, holds the value of {key!r} in "
            f"{cases} of {total} rows; leave it out"
        )


def holds(text: str, value: str) -> bool:
    """True if a text contains a value as separate words, ignoring case."""
    return bool(finder([value]).search(text))
