"""Blind rating forms: selection and order of the texts, and the key to them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax import rating
from xrec_jax.core.errors import UserError
from xrec_jax.rating.items import RatedItem
from xrec_jax.text.words import has_blanks, spaced

LOW, HIGH = 1, 10
# Answers to a comparison in a saved file, as the share of the first text.
SHARES = {"first": 1.0, "tie": 0.5, "second": 0.0}
QUESTIONS = (
    {
        "id": "reasonability",
        "label": "Reasonable",
        "text": "Do the reasons fit the recommended item and what this person did before?",
        "low": "not at all",
        "high": "completely",
    },
    {
        "id": "attractiveness",
        "label": "Attractive",
        "text": "Does the text make this person want to try the item?",
        "low": "not at all",
        "high": "very much",
    },
    {
        # High ratings are good for all questions, as in LLMXRec's published ratings.
        "id": "redundancy",
        "label": "To the point",
        "text": "Is the text free of repetition and of words that say nothing?",
        "low": "full of them",
        "high": "nothing to cut",
    },
)
GOLD_KINDS = ("other item", "shuffled words")
_ENOUGH = 6  # words that a text needs for a corruption to be noticeable


@dataclasses.dataclass(frozen=True)
class FormItem:
    """A recommendation in a rating form.

    Attributes:
      rated: the recommendation with its texts; in a gold check, one of them is broken.
      gold: kind of corruption of that text, one of `GOLD_KINDS`; "" for an ordinary item.
      broken: system whose text is replaced by the broken one.
    """

    rated: RatedItem
    gold: str = ""
    broken: str = ""


def choose(items: Sequence[RatedItem], *, pairs: int, gold: int, seed: int) -> list[FormItem]:
    """Draws the items of the forms: `pairs` ordinary ones, then `gold` checks on further ones.

    A gold check looks like any other item, but one text is about another item or has its words
    shuffled.

    Args:
      items: recommendations to draw from.
      pairs: number of ordinary items.
      gold: number of gold checks.
      seed: seed of all choices.

    Raises:
      UserError: if there are not enough items.
    """
    rng = np.random.default_rng(seed)
    order = [items[row] for row in rng.permutation(len(items))]
    if len(order) < pairs + gold:
        raise UserError(
            f"--pairs={pairs} with --gold={gold} needs {pairs + gold} recommendations, there are "
            f"{len(order)}; lower them, or explain more (config.explain.users)"
        )
    form_items, spare = [FormItem(item) for item in order[:pairs]], iter(order[pairs:])
    while len(form_items) < pairs + gold:
        item = next(spare, None)
        if item is None:
            raise UserError(
                f"--gold={gold}: too few recommendations are left whose texts can be broken; "
                "lower --gold or --pairs"
            )
        kind = GOLD_KINDS[(len(form_items) - pairs) % len(GOLD_KINDS)]
        if (check := _broken(item, kind, order, rng)) is not None:
            form_items.append(check)
    return form_items


def _broken(
    item: RatedItem, kind: str, items: Sequence[RatedItem], rng: np.random.Generator
) -> FormItem | None:
    """Gold check with one text of the item broken; None if no text can be broken."""
    names = [name for name, text in item.texts.items() if len(set(_pieces(text))) >= _ENOUGH]
    if not names:
        return None
    # The template's texts are always about their item, so a broken one is noticeable.
    system = "template" if "template" in names else names[rng.integers(len(names))]
    text = item.texts[system]
    # Either the words in another order, or the text of another item that does not fit this one.
    if kind == "shuffled words":
        words = _pieces(text)
        blank = " " if has_blanks(text) else ""
        new = blank.join(words[i] for i in rng.permutation(len(words)))
    else:
        places = rng.permutation(len(items))
        others = (items[i].texts[system] for i in places if _another(items[i], item))
        title = item.title.lower()
        new = next(
            (
                other
                for other in others
                if len(_pieces(other)) >= _ENOUGH and not (title and title in other.lower())
            ),
            text,
        )
    if new == text:
        return None
    return FormItem(dataclasses.replace(item, texts={**item.texts, system: new}), kind, system)


def _pieces(text: str) -> list[str]:
    """Words between blanks; single characters in scripts that are written without blanks."""
    return spaced(text).split()


def _another(first: RatedItem, second: RatedItem) -> bool:
    """True if two recommendations are of different items, as far as titles tell."""
    return first.prompt != second.prompt and (not first.title or first.title != second.title)


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of one rater.

    Attributes:
      id: hash of its content, which answer files carry.
      html: the page.
      steps: case and systems of every step, for the key.
    """

    id: str
    html: str
    steps: dict[str, dict[str, Any]]


def form(form_items: Sequence[FormItem], *, preferences: int, seed: int, number: int) -> Form:
    """Builds the page of one rater, with its own order of items, texts and sides.

    Args:
      form_items: items of the form.
      preferences: comparisons per item; -1 for all pairs of systems.
      seed: seed shared by the forms.
      number: number of the form, from 1.
    """
    rng = np.random.default_rng([seed, number])
    contexts: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}
    order = [int(row) for row in rng.permutation(len(form_items))]
    # Every system is as often first as second, up to one.
    sides = {
        pair: int(rng.integers(2)) for pair in itertools.combinations(form_items[0].rated.texts, 2)
    }
    # The page holds texts without names; only the key says whose they are.
    for place, row in enumerate(order):
        case = form_items[row].rated
        contexts.append(case.context())
        systems = list(case.texts)
        for system in rng.permutation(systems):
            steps.append({"kind": "rate", "texts": [case.texts[system].strip()]})
            key[str(len(steps))] = {"case": row, "system": str(system)}
            steps[-1] |= {"id": str(len(steps)), "case": place}
        for pair in _compared(systems, preferences, row, rng):
            sides[pair] += 1
            first, second = pair if sides[pair] % 2 else pair[::-1]
            texts = [case.texts[first].strip(), case.texts[second].strip()]
            steps.append({"kind": "compare", "texts": texts})
            key[str(len(steps))] = {"case": row, "first": first, "second": second}
            steps[-1] |= {"id": str(len(steps)), "case": place}
    content = {
        "number": number,
        "low": LOW,
        "high": HIGH,
        "questions": QUESTIONS,
        "cases": contexts,
        "steps": steps,
    }
    id_ = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return Form(id_, _page({"sheet": id_, **content}), key)


def _compared(
    systems: Sequence[str], count: int, row: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Pairs of systems to compare for an item: all, or `count` in turn, equally often overall."""
    every = list(itertools.combinations(systems, 2))
    if count < 0 or count >= len(every):
        return [every[i] for i in rng.permutation(len(every))]
    return [every[(row * count + i) % len(every)] for i in range(count)]


def _page(content: Mapping[str, Any]) -> str:
    """Fills the page's template with style, script and content."""
    # Only a "<" can end a script element, or open a comment that swallows its end.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    page = _file("sheet.html")
    for name, text in (
        ("STYLE", _file("sheet.css")),
        ("SCRIPT", _file("sheet.js")),
        ("DATA", data),
    ):
        page = page.replace(f"/*{name}*/", text, 1)
    return page


def _file(name: str) -> str:
    return (importlib.resources.files(rating) / name).read_text(encoding="utf-8")
