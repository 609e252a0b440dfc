"""Judgements of a planted world: the true explanation of a visit against a corrupted one.

Three kinds of corruption alternate: the reasons of another visit ("others"), the right attributes
with wrong values ("values"), and repeated sentences of the true text ("repeated"). All are written
by the same generator, so neither style nor length gives them away.
"""

from __future__ import annotations

import dataclasses
import random
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
    """Builds one judgement a case, with the true explanation at a random position.

    `meta` is that of the case, with the kind of corruption as `pair`. It does not name the better
    text, which would be the answer itself.

    Args:
      cases: visits with their true reasons and the histories to show.
      template: template of the prompts.
      seed: random seed of positions and wordings.
      title: title column.
      count_tokens: as in `render_prompt`.
      max_tokens: token budget of a prompt.
      named: mention places by name in explanations.

    Raises:
      UserError: if all cases have the same reasons, or as `render_prompt`.
    """
    judgements = []
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
        # Explanations cite only entries that the prompt shows after truncation.
        shown = case.history[prompt.dropped :]
        kind = KINDS[number % len(KINDS)]

        # The defaults bind the values of this case; a closure would look them up later.
        def write(
            reasons: Reasons,
            what: str,
            case: Case = case,
            key: list[tuple[str, Any]] = key,
            shown: Sequence[Mapping[str, Any]] = shown,
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

        # The corrupted text comes from the same generator, with the reasons or sentences changed.
        true = write(case.reasons, "true")
        if kind == "repeated":
            worse = repeated(true)
        else:
            other = _another(cases, number, rng)
            reasons = other.reasons
            # Without any reason there is no value to change: reasons of another visit take their
            # place.
            if kind == "values" and _named(case.reasons):
                reasons = _with_wrong_values(case.reasons, cases, rng)
            worse = write(reasons, kind)
        better = rng.choice((1, 2))
        first, second = (true, worse) if better == 1 else (worse, true)
        meta: Mapping[str, Any] = {**case.meta, "pair": kind}
        judgements.append(Judgement(prompt.text, first, second, better, meta))
    return judgements


def repeated(text: str) -> str:
    """Repeats the first half of a text's sentences up to its length: half of the content."""
    sentences = _SENTENCE.split(text.strip())
    half = sentences[: max(1, len(sentences) // 2)]
    # As long as the true text, or a judge could tell it by its length alone.
    result, words, aim = [*half, half[0]], word_count(" ".join([*half, half[0]])), word_count(text)
    while True:
        following = half[len(result) % len(half)]
        # Add a sentence only if that brings the length nearer to the original one.
        if abs(words + word_count(following) - aim) >= abs(words - aim):
            return " ".join(result)
        result.append(following)
        words += word_count(following)


def _named(reasons: Reasons) -> set[tuple[str, str, bool]]:
    sides = ((reasons.for_, True), (reasons.against, False))
    return {
        (reason.attribute, str(reason.value), side)
        for side_reasons, side in sides
        for reason in side_reasons
    }


def _another(cases: Sequence[Case], number: int, rng: random.Random) -> Case:
    """The first case, in random order, with other reasons."""
    own = _named(cases[number].reasons)
    order = list(range(len(cases)))
    rng.shuffle(order)
    for place in order:
        if _named(cases[place].reasons) != own:
            return cases[place]
    raise UserError("judgements of a world need visits with different reasons; enlarge the world")


def _with_wrong_values(
    reasons: Reasons, cases: Sequence[Case], rng: random.Random
) -> _UntrueReasons:
    """Replaces values by those of other visits; without other values a reason changes its sign."""
    values: dict[str, list[str]] = {}
    for case in cases:
        for reason in (*case.reasons.for_, *case.reasons.against):
            values.setdefault(reason.attribute, []).append(str(reason.value))
    sides: dict[bool, list[Reason]] = {True: [], False: []}
    for side, side_reasons in ((True, reasons.for_), (False, reasons.against)):
        for reason in side_reasons:
            attribute, own, weight = reason.attribute, str(reason.value), reason.contribution
            # Sorted: the order of a set differs between runs, and with it the draw.
            others = sorted({value for value in values[attribute] if value != own})
            if others:
                value = rng.choice(others)
                phrase = reason.phrase.replace(own, value)
                sides[side].append(_Untrue(attribute, value, weight, phrase))
            else:
                sides[not side].append(_Untrue(attribute, own, -weight, reason.phrase))
    return _UntrueReasons(tuple(sides[True]), tuple(sides[False]))
