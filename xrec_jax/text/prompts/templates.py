"""Templates of explanation prompts, and their registry.

A template is text with placeholders, filled from rows of a user and an item table. New ones are
made by `Template(...)`, from a config by `template_from`, or for given columns by `generic`, and
registered under a name by `register`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.text.prompts import layout as layouts

_SLOTS = ("history", "user", "item")


@dataclasses.dataclass(frozen=True)
class Template:
    """Layout of a prompt that asks for an explanation.

    Attributes:
      name: name in configs.
      body: the whole prompt, with `{history}`, and `{item}` and `{user}` if these are not empty.
      entry: layout of a history entry: columns of the item table, and `{index}`, counted from 1.
      item: layout of the recommended item: columns of the item table; empty for a prompt about the
        user alone.
      user: layout of the profile: columns of the user table; empty for none.
      separator: text between two history entries.
      no_history: text of an empty history.
      columns: column by field name, for fields named differently.
      joiner: separator of the elements of a list value.
      listed: layout of a list value, with its joined elements as `{list}`.
      absent: values that mean "no value", besides None, NaN and "".
      unknown: replaces a missing value outside an optional part.
    """

    name: str
    body: str
    entry: str
    item: str = ""
    user: str = ""
    separator: str = ""
    no_history: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    joiner: str = ", "
    listed: str = "{list}"
    absent: tuple[str, ...] = ()
    unknown: str = "unknown"

    def __post_init__(self):
        slots = layouts.fields_of(self.body)
        for slot in slots:
            if slot not in _SLOTS:
                hint = did_you_mean(slot, _SLOTS)
                raise UserError(f"template {self.name!r}: unknown field {slot!r} in body{hint}")
        # Once each: the parser reads a prompt back by these places.
        if self.body.count("{history}") != 1:
            raise UserError(f"template {self.name!r}: body must hold {{history}} exactly once")
        for slot, layout in (("item", self.item), ("user", self.user)):
            if self.body.count(f"{{{slot}}}") != bool(layout):
                raise UserError(
                    f"template {self.name!r}: {slot} and {{{slot}}} in body need each other, once"
                )
        if layouts.fields_of(self.listed) != ("list",):
            raise UserError(f"template {self.name!r}: listed must hold {{list}}, no other field")
        for text in (self.entry, self.item, self.user):
            layouts.parse_layout(text)

    def render_entry(self, row: Mapping[str, Any], index: int) -> str:
        """Renders a history entry; `index` counts from 1."""
        return self._render(self.entry, row, "item table", index=str(index))

    def render_item(self, row: Mapping[str, Any]) -> str:
        """Renders the recommended item."""
        return self._render(self.item, row, "item table")

    def render_user(self, row: Mapping[str, Any]) -> str:
        """Renders the profile."""
        return self._render(self.user, row, "user table")

    def assemble(self, *, user: str, item: str, entries: Sequence[str]) -> str:
        """Assembles the prompt from rendered parts."""
        history = self.separator.join(entries) if entries else self.no_history
        filled = {"history": history, "user": user, "item": item}
        return layouts.render(self.body, filled.__getitem__, unknown=self.unknown)

    def _render(self, text: str, row: Mapping[str, Any], table: str, index: str = "") -> str:
        def value_of(name: str) -> str | None:
            if name == "index" and index:
                return index
            column = self.columns.get(name, name)
            try:
                return layouts.text_value(
                    row, column, joiner=self.joiner, listed=self.listed, absent=self.absent
                )
            except UserError as error:
                raise UserError(f"template {self.name!r}, {table}: {error}") from error

        return layouts.render(text, value_of, unknown=self.unknown)


def generic(
    *,
    item_columns: Sequence[str],
    user_columns: Sequence[str] = (),
    title: str | None = None,
    item_word: str = "item",
    name: str = "generic",
    words: int = 75,
) -> Template:
    """Builds a template for any item and user table.

    Args:
      item_columns: columns that describe an item, in order; missing values are left out.
      user_columns: columns that describe a user.
      title: title column; default: the first of `item_columns`.
      item_word: noun for an item: "book", "recipe".
      name: name of the template.
      words: requested length of an explanation.

    Raises:
      UserError: if no item column is given.
    """
    if not item_columns and title is None:
        raise UserError("a generic template needs at least one item column: item_columns")
    # Each detail is an optional part, so that a row without a value still gives a sentence.
    title = item_columns[0] if title is None else title
    others = [column for column in item_columns if column != title]
    details = "".join(f"[[; {_label(column)}: {{{column}}}]]" for column in others)
    profile = "".join(f"[[- {_label(column)}: {{{column}}}\n]]" for column in user_columns)
    return Template(
        name=name,
        body=(
            "Earlier choices of the user, oldest first:\n{history}\n"
            + ("About the user:\n{user}\n" if profile else "")
            + f"Recommended {item_word}:\n{{item}}\n\n"
            + f"Explain to the user why this {item_word} may suit them and what may speak against "
            f"it. Use only the facts above, address the user as you, and stay within {words} "
            "words.\n"
        ),
        entry=f"{{index}}. {{{title}}}{details}\n",
        item=f"{{{title}}}{details}",
        user=profile,
        no_history="(none)\n",
    )


def _label(column: str) -> str:
    # Braces in a column name would be placeholders of the layout.
    if not column or set("{}") & set(column):
        raise UserError(f"cannot use the column {column!r} in a prompt template: rename it")
    return column.replace("_", " ").strip()


_REGISTRY: dict[str, Template] = {}


def register(template: Template) -> Template:
    """Registers a template under its name.

    Raises:
      UserError: if another template has that name.
    """
    if _REGISTRY.get(template.name, template) != template:
        raise UserError(f"there already is another prompt template named {template.name!r}")
    _REGISTRY[template.name] = template
    return template


def names() -> tuple[str, ...]:
    """Names of the registered templates."""
    return tuple(sorted(_REGISTRY))


def get(name: str) -> Template:
    """Returns a registered template.

    Raises:
      UserError: for an unknown name.
    """
    if name not in _REGISTRY:
        raise UserError(f"unknown prompt template {name!r}{did_you_mean(name, _REGISTRY)}")
    return _REGISTRY[name]


def template_from(spec: str | Mapping[str, Any]) -> Template:
    """Builds the template of a config.

    Args:
      spec: a registered name, or the arguments of `Template`. With `base`, a registered name, only
        the differences are needed; with `name="generic"` the arguments of `generic`.

    Raises:
      UserError: for an unknown name or argument, or a missing one.
    """
    if isinstance(spec, str):
        return get(spec)
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in dict(spec).items()
    }
    base = values.pop("base", None)
    known = [field.name for field in dataclasses.fields(Template)]
    # A spelt-out template that happens to be named "generic" has a body.
    if base is None and "body" not in values and values.get("name") == "generic":
        known = ["item_columns", "user_columns", "title", "item_word", "name", "words"]
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {key!r} of a prompt template{did_you_mean(key, known)}")
    if "item_columns" in known:
        if "item_columns" not in values:
            raise UserError("the generic prompt template needs item_columns: a list of columns")
        return generic(**values)
    if "columns" in values:
        values["columns"] = dict(values["columns"])
    if base is not None:
        return dataclasses.replace(get(base), **values)
    for key in ("name", "body", "entry"):
        if key not in values:
            raise UserError(f"a prompt template needs {key!r}, or base: a registered template")
    return Template(**values)
