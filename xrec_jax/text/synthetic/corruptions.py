"""Judgements of a planted world: the true explanation of a visit against one that is worse.

Three kinds of worse ones, in turn: the reasons of another visit said of this one ("others"), the
right attributes with wrong values ("values"), and the true text said over and over ("repeated").
They are written by the same writer, so neither style nor length gives them away.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_random
from xrec_jax.text.prompts.render import CountTokens, render_prompt
from xrec_jax.text.prompts.templates import Template
from xrec_jax.text.records.judgements import Judgement
from xrec_jax.text.synthetic.explanations import Reason, Reasons, explain
from xrec_jax.text.synthetic.instructions import Case
from xrec_jax.text.words import word_count

KINDS = ("others", "values", "repeated")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class _Untrue:
    attribute: str
    value: str
    contribution: float
    phrase: str


@dataclasses.dataclass(frozen=True)
class _UntrueReasons:
    for_: tuple[Reason, ...]
    against: tuple[Reason, ...]


def world_judgements(
    cases: Sequence[Case],
    template: Template,
    *,
    seed: int = 0,
    title: str = "name",
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    named: bool = True,
) -> list[Judgement]:
    """One judgement a case; the true explanation's place is drawn.

    `meta` holds the case's own, and as `pair` the kind of the worse one. That names no author: who
    wrote which would be the answer itself.

    Args:
      cases: visits with their true reasons; histories as they are to be shown.
      template: of the prompts.
      seed: of places and wordings.
      title: the column of an item's name.
      count_tokens: as in `render_prompt`.
      max_tokens: budget of a prompt.
      named: whether explanations name places.

    Raises:
      UserError: if all cases have the same reasons, or as `render_prompt`.
    """
    judged = []
    for number, case in enumerate(cases):
        key = sorted(case.meta.items())
        rng = keyed_random("judgement", seed, number, key, case.item[title])
        prompt = render_prompt(
            template,
            item=case.item,
            history=case.history,
            user=case.user,
            count_tokens=count_tokens,
            max_tokens=max_tokens,
        )
        shown = case.history[prompt.dropped :]
        kind = KINDS[number % len(KINDS)]

        def write(
            reasons: Reasons, what: str, case: Case = case, key: Any = key, shown: Any = shown
        ) -> str:
            return explain(
                reasons,
                item=case.item,
                history=shown,
                user=case.user,
                key=(what, key),
                seed=seed,
                title=title,
                named=named,
            )

        true = write(case.reasons, "true")
        if kind == "repeated":
            worse = repeated(true)
        else:
            other = _another(cases, number, rng)
            reasons = other.reasons
            if kind == "values" and _named(case.reasons):
                reasons = _with_wrong_values(case.reasons, cases, rng)
            worse = write(reasons, kind)
        better = rng.choice((1, 2))
        first, second = (true, worse) if better == 1 else (worse, true)
        meta: Mapping[str, Any] = {**case.meta, "pair": kind}
        judged.append(Judgement(prompt.text, first, second, better, meta))
    return judged


def repeated(text: str) -> str:
    """The first half of a text's sentences over and over: about as long, with half the content."""
    sentences = _SENTENCE.split(text.strip())
    half = sentences[: max(1, len(sentences) // 2)]
    said, words, aim = [*half, half[0]], word_count(" ".join([*half, half[0]])), word_count(text)
    while True:
        following = half[len(said) % len(half)]
        # One more only where that comes nearer to the aim.
        if abs(words + word_count(following) - aim) >= abs(words - aim):
            return " ".join(said)
        said.append(following)
        words += word_count(following)


def _named(reasons: Reasons) -> set[tuple[str, str, bool]]:
    sides = ((reasons.for_, True), (reasons.against, False))
    return {(one.attribute, str(one.value), side) for found, side in sides for one in found}


def _another(cases: Sequence[Case], number: int, rng: Any) -> Case:
    """A case, in drawn order, whose reasons differ."""
    own = _named(cases[number].reasons)
    order = list(range(len(cases)))
    rng.shuffle(order)
    for place in order:
        if _named(cases[place].reasons) != own:
            return cases[place]
    raise UserError("judgements of a world need visits with different reasons; enlarge the world")


def _with_wrong_values(reasons: Reasons, cases: Sequence[Case], rng: Any) -> _UntrueReasons:
    """The same attributes with values of other visits; a reason without such turns its sign."""
    values: dict[str, list[str]] = {}
    for case in cases:
        for one in (*case.reasons.for_, *case.reasons.against):
            values.setdefault(one.attribute, []).append(str(one.value))
    sides: dict[bool, list[Reason]] = {True: [], False: []}
    for side, found in ((True, reasons.for_), (False, reasons.against)):
        for one in found:
            own = str(one.value)
            others = sorted({value for value in values[one.attribute] if value != own})
            if others:
                value = rng.choice(others)
                phrase = one.phrase.replace(own, value)
                sides[side].append(_Untrue(one.attribute, value, one.contribution, phrase))
            else:
                sides[not side].append(_Untrue(one.attribute, own, -one.contribution, one.phrase))
    return _UntrueReasons(tuple(sides[True]), tuple(sides[False]))
