"""Checks of sets that ask for attributes: answers that do not parse, frequent classes, leaks."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.audit.cases import recommended_lines
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, percent
from xrec_jax.evaluation.audit.prompts import short
from xrec_jax.text.words import finder

_LOOSE = re.compile(r'"([^"]+)"\s*:\s*("?)([^",}]*)\2')
_KEYS = re.compile(r'"([^"\n]+)"\s*:')
_MAJORITY = 0.6  # share of a class from which an accuracy needs it beside it
_COMMON = 0.2  # share of prompts that have a line, from which it is part of the question
_QUESTION = ("your mission", "infer", "predict", "tell", "answer", "what", "which")
_LEAK = 0.1  # share of answers that stand in their prompts beyond what others' answers do


@dataclasses.dataclass(frozen=True)
class AttributeRow:
    """A question for attributes with its answer.

    Attributes:
      prompt: the question.
      completion: the answer as it stands.
      answers: attribute to value, as texts; read loosely where the answer is no JSON.
      valid: whether the answer is a JSON object.
    """

    prompt: str
    completion: str
    answers: Mapping[str, str]
    valid: bool


def read_attributes(records: Sequence[Mapping[str, Any]]) -> list[AttributeRow]:
    """Rows from records with `prompt` and `completion`, a JSON object as text or as it is."""
    rows = []
    for record in records:
        completion = record["completion"]
        text = completion if isinstance(completion, str) else json.dumps(completion)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # numbers too long and nesting too deep, too
            value = None
        valid = isinstance(value, dict)
        found = value if valid else {key: text for key, _, text in _LOOSE.findall(text)}
        answers = {str(key): str(one).strip() for key, one in found.items() if one is not None}
        rows.append(AttributeRow(str(record["prompt"]), text, answers, valid))
    return rows


def check_attributes(rows: Sequence[AttributeRow]) -> list[Finding | None]:
    """Runs every check of this module."""
    return [malformed(rows), other_keys(rows), majority_class(rows), leaked(rows)]


def malformed(rows: Sequence[AttributeRow]) -> Finding:
    """Answers that are not a JSON object."""
    wrong = [row for row in rows if not row.valid]
    texts = Counter(row.completion for row in wrong)
    return Finding(
        code="attributes/malformed_answers",
        severity="warning",
        count=len(wrong),
        total=len(rows),
        message="Answers that are not a JSON object: a model tuned on them learns to write what "
        "does not parse, and to drop them from an accuracy flatters it.",
        advice="Mend the answers before tuning; in evaluation count what does not parse as wrong, "
        "with its share beside the accuracy.",
        examples=tuple(f"{short(text)}: {n} times" for text, n in texts.most_common(MAX_EXAMPLES)),
    )


def other_keys(rows: Sequence[AttributeRow]) -> Finding:
    """Answers with other keys than the form that their prompt shows."""
    wrong: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        asked = set(_KEYS.findall(row.prompt))
        if asked and row.answers and asked != set(row.answers):
            wrong[tuple(sorted(asked)), tuple(sorted(row.answers))].append(place)
    return Finding(
        code="attributes/other_keys",
        severity="warning",
        count=sum(map(len, wrong.values())),
        total=len(rows),
        message="Answers whose keys are not those of the form in their prompt.",
        advice="Ask for the keys that the answers have, or a correct answer cannot be read.",
        examples=tuple(
            f"asked for {', '.join(asked)}, answered {', '.join(given)}: {len(places)} times"
            for (asked, given), places in list(wrong.items())[:MAX_EXAMPLES]
        ),
    )


def majority_class(rows: Sequence[AttributeRow]) -> Finding:
    """The most frequent answer of every attribute: what an accuracy has to beat."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name, value in row.answers.items():
            values[name][value] += 1
    shares = {
        name: (*counts.most_common(1)[0], counts.total(), len(counts))
        for name, counts in values.items()
    }
    frequent = [
        name
        for name, (_, most, total, kinds) in shares.items()
        if kinds > 1 and most > _MAJORITY * total
    ]
    return Finding(
        code="attributes/majority_class",
        severity="warning" if frequent else "info",
        count=len(shares),
        total=len(shares),
        message=f"Attributes with the accuracy of always giving the most frequent answer; "
        f"{len(frequent)} of them above {_MAJORITY:.0%}.",
        advice="Put this baseline beside every accuracy, and give macro-F1 as well.",
        examples=tuple(
            f"{name}: {value!r} in {most:,} of {total:,} ({percent(most, total)}; {kinds} values)"
            for name, (value, most, total, kinds) in sorted(
                shares.items(), key=lambda item: -item[1][1] / item[1][2]
            )
        )[:MAX_EXAMPLES],
    )


def leaked(rows: Sequence[AttributeRow]) -> Finding:
    """Answers that stand in their prompt, more often than by chance.

    Looked at are the prompt without the lines that many prompts share, which are the question, and
    the lines on the recommended item. Chance is how often a value stands in prompts with another
    answer.
    """
    lines = Counter(line for row in rows for line in {*row.prompt.split("\n")})
    common = {line for line, n in lines.items() if n > max(1, _COMMON * len(rows))}
    scopes = {
        "prompt": [
            "\n".join(line for line in row.prompt.split("\n") if line not in common).casefold()
            for row in rows
        ],
        "recommended item": [_item_lines(row).casefold() for row in rows],
    }
    names = list(dict.fromkeys(name for row in rows for name in row.answers))
    found = []
    for name in names:
        asked = [place for place, row in enumerate(rows) if row.answers.get(name)]
        best = max(
            ((_leak(rows, name, asked, texts), scope) for scope, texts in scopes.items()),
            key=lambda one: len(one[0][0]) - one[0][1],
        )
        (hits, chance), scope = best
        if len(hits) - chance > max(2, _LEAK * len(asked)):
            found.append((name, scope, hits, len(asked), chance))
    return Finding(
        code="attributes/answer_in_prompt",
        severity="error",
        count=sum(len(hits) for _, _, hits, _, _ in found),
        total=sum(len(row.answers) for row in rows),
        message="Answers that stand in the prompt, of attributes where that is more frequent than "
        "chance: they are read there, not inferred.",
        advice="Take the attribute and what repeats it (tags, profiles) out of the prompts.",
        examples=tuple(
            f"{name}: {len(hits):,} of {total:,} answers stand in the text on the {scope} "
            f"({chance:.0f} by chance); row {hits[0] + 1}: {rows[hits[0]].answers[name]!r}"
            for name, scope, hits, total, chance in found[:MAX_EXAMPLES]
        ),
    )


def _item_lines(row: AttributeRow) -> str:
    """The recommended item: up to the next paragraph's question, which names the attributes."""
    lines = recommended_lines(row.prompt)
    end = next((n for n, line in enumerate(lines) if line.casefold().startswith(_QUESTION)), 3)
    return "\n".join(lines[:end])


def _leak(
    rows: Sequence[AttributeRow], name: str, asked: Sequence[int], texts: Sequence[str]
) -> tuple[list[int], float]:
    """Rows whose answer stands in their text, and how many would by chance."""
    by_value: dict[str, list[int]] = defaultdict(list)
    for place in asked:
        by_value[rows[place].answers[name].casefold()].append(place)
    hits: list[int] = []
    chance = 0.0
    for value, places in by_value.items():
        word = finder([value])
        within = {place for place in asked if value in texts[place] and word.search(texts[place])}
        mine = set(places)
        hits += sorted(within & mine)
        others = len(asked) - len(mine)
        if others:
            chance += len(mine) * len(within - mine) / others
    return sorted(hits), chance
