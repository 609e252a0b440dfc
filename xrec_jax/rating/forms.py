"""Blind rating sheets: which texts a rater sees, in which order, and the key to them."""

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
from xrec_jax.rating.items import RatedCase
from xrec_jax.text.words import has_blanks, spaced

LOW, HIGH = 1, 10
# The answers to a comparison, as they stand in an export.
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
        # A high mark is good for every question, as in LLMXRec's published ratings.
        "id": "redundancy",
        "label": "To the point",
        "text": "Is the text free of repetition and of words that say nothing?",
        "low": "full of them",
        "high": "nothing to cut",
    },
)
GOLD_KINDS = ("other item", "shuffled words")
_ENOUGH = 6  # words that a text needs to look broken when it is broken


@dataclasses.dataclass(frozen=True)
class Shown:
    """A case of the kit.

    Attributes:
      case: what is shown; one of its texts is broken if this is a gold check.
      gold: how that text was broken, "" for an ordinary case.
      broken: the system in whose place it stands.
    """

    case: RatedCase
    gold: str = ""
    broken: str = ""


def choose(cases: Sequence[RatedCase], *, pairs: int, gold: int, seed: int) -> list[Shown]:
    """Draws the cases of a kit: `pairs` ordinary ones, then `gold` checks on further ones.

    A check looks like any other case, but one text is about another item or has its words shuffled.

    Raises:
      UserError: if there are not enough cases.
    """
    rng = np.random.default_rng(seed)
    order = [cases[row] for row in rng.permutation(len(cases))]
    if len(order) < pairs + gold:
        raise UserError(
            f"--pairs={pairs} with --gold={gold} needs {pairs + gold} recommendations, there are "
            f"{len(order)}; lower them, or explain more (config.explain.users)"
        )
    chosen, spare = [Shown(case) for case in order[:pairs]], iter(order[pairs:])
    while len(chosen) < pairs + gold:
        case = next(spare, None)
        if case is None:
            raise UserError(
                f"--gold={gold}: too few recommendations are left whose texts can be broken; "
                "lower --gold or --pairs"
            )
        kind = GOLD_KINDS[(len(chosen) - pairs) % len(GOLD_KINDS)]
        if (check := _broken(case, kind, order, rng)) is not None:
            chosen.append(check)
    return chosen


def _broken(
    case: RatedCase, kind: str, cases: Sequence[RatedCase], rng: np.random.Generator
) -> Shown | None:
    """The case with one text broken; None if none of them can be."""
    names = [name for name, text in case.texts.items() if len(set(_pieces(text))) >= _ENOUGH]
    if not names:
        return None
    # The template's texts are always about their item, so that breaking one shows.
    system = "template" if "template" in names else names[rng.integers(len(names))]
    text = case.texts[system]
    if kind == "shuffled words":
        words = _pieces(text)
        blank = " " if has_blanks(text) else ""
        new = blank.join(words[i] for i in rng.permutation(len(words)))
    else:
        places = rng.permutation(len(cases))
        others = (cases[i].texts[system] for i in places if _another(cases[i], case))
        title = case.title.lower()
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
    return Shown(dataclasses.replace(case, texts={**case.texts, system: new}), kind, system)


def _pieces(text: str) -> list[str]:
    """What stands between blanks, and each character where a script writes none."""
    return spaced(text).split()


def _another(one: RatedCase, other: RatedCase) -> bool:
    """Whether the two are about different items, as far as one can tell."""
    return one.prompt != other.prompt and (not one.title or one.title != other.title)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One rater's sheet.

    Attributes:
      id: of its content; exports carry it.
      html: the page.
      steps: what stands behind every step; a part of the key.
    """

    id: str
    html: str
    steps: dict[str, dict[str, Any]]


def sheet(shown: Sequence[Shown], *, preferences: int, seed: int, number: int) -> Sheet:
    """One rater's page: cases, texts and sides in an order of its own, no name of a system.

    Args:
      shown: cases.
      preferences: comparisons a case; -1 for every two systems.
      seed: of the kit.
      number: of the sheet, from 1.
    """
    rng = np.random.default_rng([seed, number])
    contexts: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}
    order = [int(row) for row in rng.permutation(len(shown))]
    # Every system is as often first as second, up to one.
    sides = {two: int(rng.integers(2)) for two in itertools.combinations(shown[0].case.texts, 2)}
    for place, row in enumerate(order):
        case = shown[row].case
        contexts.append(case.context())
        systems = list(case.texts)
        for system in rng.permutation(systems):
            steps.append({"kind": "rate", "texts": [case.texts[system].strip()]})
            key[str(len(steps))] = {"case": row, "system": str(system)}
            steps[-1] |= {"id": str(len(steps)), "case": place}
        for two in _compared(systems, preferences, row, rng):
            sides[two] += 1
            first, second = two if sides[two] % 2 else two[::-1]
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
    return Sheet(id_, _page({"sheet": id_, **content}), key)


def _compared(
    systems: Sequence[str], count: int, row: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """The comparisons of a case: all, or a share that goes round so that all are equally often."""
    every = list(itertools.combinations(systems, 2))
    if count < 0 or count >= len(every):
        return [every[i] for i in rng.permutation(len(every))]
    return [every[(row * count + i) % len(every)] for i in range(count)]


def _page(content: Mapping[str, Any]) -> str:
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
