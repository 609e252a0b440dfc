"""Explanations without a language model: a faithful template, and an unfaithful control.

Both use only the content of a prompt: the item's row, history and profile. They work for the
planted world and for any item table.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_random
from xrec_jax.text.synthetic import wording
from xrec_jax.text.synthetic.grammar import count_of, listing, plural, sentence, with_article
from xrec_jax.text.words import word_count

MOST_WORDS = 75
# Least share of the history with a value to count it as a habit.
_HABIT = 0.2
_LONGEST_VALUE = 40  # characters; longer cells are descriptions, not values
_ABSENT = ("", "none", "nan", "null", "unknown")

_SEEM = {
    "kind": "you seem to like {plural}, such as {cited}",
    "cuisine": "you seem to like {value} food, which you had at {cited}",
    "mood": "you seem to like {value} places, such as {cited}",
    "price": "its price level of {value} is what you usually choose, as at {cited}",
    "popularity": "you seem to like {value} places, such as {cited}",
    "district": "you often go out in {value}, for example to {cited}",
}
_SEEM_OTHER = "its {column} ({value}) speaks for it: {cited} in your history {share} it"
_NEAR = "it is close to your home, which is in {district} as well"
_OPENERS = ("{name} is our suggestion for you", "we picked {name} for you", "consider {name}")
_FURTHER = ("", "also, ", "besides, ")
_NOTHING = (
    "nothing that we know of {name} occurs in {entries} of yours, so take it as something new",
    "we cannot name a reason for {name}: it shares nothing we know of with {entries} of yours",
)
_NO_HISTORY = "we know of no earlier choice of yours, so we cannot name a reason for {name}"


@dataclasses.dataclass(frozen=True)
class _Habit:
    """A value that the item shares with the history.

    Attributes:
      column: name of the column.
      value: the value as text.
      titles: titles of the entries with it, oldest first.
      values: number of distinct values of the column in the history.
    """

    column: str
    value: str
    titles: tuple[str, ...]
    values: int


def template_explanation(
    item: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    user: Mapping[str, Any] | None = None,
    *,
    key: object = "",
    seed: int = 0,
    title: str = "name",
    columns: Iterable[str] | None = None,
    reasons: int = 3,
) -> str:
    """Explains an item by the values that it shares with the user's history, citing entries.

    A value counts if at least a fifth of the history has it. Values are sorted by their frequency
    relative to a uniform distribution over the values of their column: a value of half of all items
    is uninformative. A home in the item's district counts as near. If nothing matches, the text
    says so.

    Args:
      item: row of the item.
      history: rows of the item table, oldest first; the item itself is skipped, identified by
        `item_id`, or else by all of its values.
      user: row of the user; only `home_district` is used.
      key: identity of the pair; with the title it keys the random wording.
      seed: random seed.
      title: title column.
      columns: columns that may be mentioned; default: all but the title, ids and long texts.
      reasons: most reasons to name.

    Returns:
      One paragraph of at most 75 words, unless titles are too long.

    Raises:
      UserError: if the item or a history entry has no title.
    """
    name = _name(item, title)
    rng = keyed_random("template", seed, key, name)
    entries = [row for row in history if not _same_item(row, item)]
    for row in entries:
        _name(row, title)
    values = {"name": name, "entries": count_of(len(entries), "earlier choice")}
    if not entries:
        return sentence(_NO_HISTORY.format(**values))
    # Distance first, then the most telling habits.
    near = _near(item, user or {})
    habits = _habits(item, entries, title, columns)[: max(0, reasons - len(near))]
    if not near and not habits:
        return sentence(rng.choice(_NOTHING).format(**values))
    opener = sentence(rng.choice(_OPENERS).format(**values))
    # If the text is too long: cite fewer titles, then give fewer reasons.
    for kept in range(len(habits), 0, -1):
        for cited in (2, 1):
            clauses = near + [_habit_clause(habit, cited) for habit in habits[:kept]]
            text = " ".join([opener, *_as_sentences(clauses)])
            if word_count(text) <= MOST_WORDS:
                return text
    clauses = near or [_habit_clause(habits[0], 1)]
    return " ".join([opener, *_as_sentences(clauses)])


def unfaithful_explanation(
    item: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    user: Mapping[str, Any] | None = None,
    *,
    key: object = "",
    seed: int = 0,
    title: str = "name",
    vocabulary: Mapping[str, Iterable[object]] | None = None,
    reasons: int = 3,
) -> str:
    """Asserts attributes that the item lacks, as fluently as a true explanation.

    The control that a measure of faithfulness must detect.

    Args:
      item: row of the item.
      history: rows of the item table, oldest first.
      user: not used.
      key: identity of the pair; with the title it keys the random choices.
      seed: random seed.
      title: title column.
      vocabulary: values by column; default: those of the history. Only columns of the item are
        used, without the values that the item has.
      reasons: most reasons to name.

    Raises:
      UserError: if no other value of any column is known, or a row has no title.
    """
    del user
    name = _name(item, title)
    rng = keyed_random("unfaithful", seed, key, name)
    known = vocabulary or {
        column: [value for row in history for value in _cells(row.get(column))]
        for column in _columns(item, title)
    }
    false_claims = []
    for column, choices in known.items():
        # Distance and popularity are claimed by direction: a wrong value would not make them false.
        if column in ("popularity", "distance", "sequence", title) or column not in item:
            continue
        # What holds of the item is taken out, or the claim would not be false.
        own = set(_cells(item[column]))
        others = sorted({str(value) for value in choices} - own - {"none"})
        if others:
            false_claims.append((column, rng.choice(others)))
    if not false_claims:
        raise UserError(
            f"no value is known that {name!r} does not have: give columns and their values as "
            "vocabulary"
        )
    clauses = [
        _claim(rng, column, value) for column, value in rng.sample(false_claims, len(false_claims))
    ]
    opener = sentence(rng.choice(_OPENERS).format(name=name))
    return " ".join([opener, *_as_sentences(clauses[:reasons])])


def _name(row: Mapping[str, Any], title: str) -> str:
    if not row.get(title):
        raise UserError(f"an explanation needs the name of every item: no {title!r} in a row")
    return str(row[title])


def _same_item(row: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """True if two rows are of one item: by `item_id`, else by all of their values.

    Not by the title, which several items may share.
    """
    if "item_id" in row and "item_id" in item:
        return bool(row["item_id"] == item["item_id"])
    return row is item or repr(row) == repr(item)  # `repr`, since NaN differs from itself


def _columns(item: Mapping[str, Any], title: str) -> list[str]:
    """Columns whose values may be mentioned: not the title, ids or texts."""
    return [
        column
        for column in item
        if column != title and not re.search(r"(^|_)(id|text|description|url)s?$", column.lower())
    ]


def _cells(value: object) -> list[str]:
    """Values of a cell: none, one, or the elements of a list."""
    members = value if isinstance(value, (list, tuple)) else [value]
    texts = [
        "" if member is None or (isinstance(member, float) and math.isnan(member)) else str(member)
        for member in members
    ]
    return [text for text in texts if text.lower() not in _ABSENT and len(text) <= _LONGEST_VALUE]


def _habits(
    item: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    title: str,
    columns: Iterable[str] | None,
) -> list[_Habit]:
    """Frequent values of the history that the item has, the most informative first."""
    habits = []
    for column in _columns(item, title) if columns is None else columns:
        cells = [_cells(row.get(column)) for row in entries]
        # The more values a column has, the more a shared one says.
        different = len({value for values in cells for value in values})
        for value in _cells(item.get(column)):
            same = [
                _name(row, title) for row, own in zip(entries, cells, strict=True) if value in own
            ]
            if same and len(same) >= _HABIT * len(entries):
                habits.append(_Habit(column, value, tuple(same), different))
    return sorted(habits, key=lambda habit: -len(habit.titles) * habit.values)


def _near(item: Mapping[str, Any], user: Mapping[str, Any]) -> list[str]:
    district = item.get("district")
    return (
        [_NEAR.format(district=district)]
        if district and district == user.get("home_district")
        else []
    )


def _habit_clause(habit: _Habit, cited: int) -> str:
    titles = list(dict.fromkeys(habit.titles))[-cited:]
    return _SEEM.get(habit.column, _SEEM_OTHER).format(
        column=habit.column.replace("_", " "),
        value=habit.value,
        plural=plural(habit.value),
        cited=listing(titles),
        share="shares" if len(titles) == 1 else "share",
    )


def _claim(rng: random.Random, column: str, value: str) -> str:
    text = rng.choice(wording.FOR.get(column, wording.OTHER_FOR))
    return text.format(
        it="it",
        attribute=column.replace("_", " "),
        value=value,
        a_value=with_article(value),
        plural=plural(value),
        last="",
        phrase="it is what you look for",
    )


def _as_sentences(clauses: Sequence[str]) -> Iterator[str]:
    for place, clause in enumerate(clauses):
        yield sentence(_FURTHER[place % len(_FURTHER)] + clause)
