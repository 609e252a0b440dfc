"""Checks of attribute questions: malformed answers, frequent classes, leaks."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.evaluation.audit.contents import recommended_lines
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, percent
from xrec_jax.evaluation.audit.prompts import short
from xrec_jax.text.words import finder

_LOOSE = re.compile(r'"([^"]+)"\s*:\s*("?)([^",}]*)\2')
_KEYS = re.compile(r'"([^"\n]+)"\s*:')
_MAJORITY = 0.6  # share of a class from which an accuracy needs the majority baseline beside it
_COMMON = 0.2  # share of prompts with a line from which it is part of the question
_QUESTION = ("your mission", "infer", "predict", "tell", "answer", "what", "which")
_LEAK = 0.1  # share of answers in their own prompts beyond that in others' prompts


@dataclasses.dataclass(frozen=True)
class AttributeRow:
    """A question about attributes with its answer.

    Attributes:
      prompt: the question.
      completion: the answer in its original form.
      answers: value of each attribute as text; parsed loosely if the answer is not JSON.
      valid: whether the answer is a JSON object.
    """

    prompt: str
    completion: str
    answers: Mapping[str, str]
    valid: bool


def read_attributes(records: Sequence[Mapping[str, Any]]) -> list[AttributeRow]:
    """Reads records with `prompt` and `completion`, which is a JSON object or its text."""
    rows = []
    for record in records:
        completion = record["completion"]
        text = completion if isinstance(completion, str) else json.dumps(completion)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # numbers too long and nesting too deep, too
            value = None
        # What is nearly JSON is read loosely, so that the other checks still see its answers.
        valid = isinstance(value, dict)
        fields = value if valid else {key: text for key, _, text in _LOOSE.findall(text)}
        answers = {
            str(key): str(entry).strip() for key, entry in fields.items() if entry is not None
        }
        rows.append(AttributeRow(str(record["prompt"]), text, answers, valid))
    return rows


def check_attributes(rows: Sequence[AttributeRow]) -> list[Finding | None]:
    """Runs all checks of this module."""
    return [malformed(rows), other_keys(rows), majority_class(rows), leaked(rows)]


def malformed(rows: Sequence[AttributeRow]) -> Finding:
    """Finds answers that are not a JSON object."""
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
    """Finds answers with other keys than the form in their prompt."""
    wrong: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        expected = set(_KEYS.findall(row.prompt))
        if expected and row.answers and expected != set(row.answers):
            wrong[tuple(sorted(expected)), tuple(sorted(row.answers))].append(place)
    return Finding(
        code="attributes/other_keys",
        severity="warning",
        count=sum(map(len, wrong.values())),
        total=len(rows),
        message="Answers whose keys are not those of the form in their prompt.",
        advice="Ask for the keys that the answers have, or a correct answer cannot be read.",
        examples=tuple(
            f"asked for {', '.join(expected)}, answered {', '.join(answered)}: {len(places)} times"
            for (expected, answered), places in list(wrong.items())[:MAX_EXAMPLES]
        ),
    )


def majority_class(rows: Sequence[AttributeRow]) -> Finding:
    """Reports the share of the most frequent answer of every attribute."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name, value in row.answers.items():
            values[name][value] += 1
    shares = {
        name: (*counts.most_common(1)[0], counts.total(), len(counts))
        for name, counts in values.items()
    }
    # With one value only there is nothing to predict, which is no matter of a majority.
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
    """Finds attributes whose answers occur in their prompts more often than by chance.

    Searched are the prompt without the lines that many prompts share, which form the question, and
    the lines about the recommended item. Chance is the frequency of a value in prompts with another
    answer.
    """
    lines = Counter(line for row in rows for line in {*row.prompt.split("\n")})
    # A question lists the valid values, so that every answer would count as found.
    common = {line for line, n in lines.items() if n > max(1, _COMMON * len(rows))}
    scopes = {
        "prompt": [
            "\n".join(line for line in row.prompt.split("\n") if line not in common).casefold()
            for row in rows
        ],
        "recommended item": [_item_lines(row).casefold() for row in rows],
    }
    names = list(dict.fromkeys(name for row in rows for name in row.answers))
    leaks = []
    # An attribute is reported for the scope in which it exceeds chance most.
    for name in names:
        answered = [place for place, row in enumerate(rows) if row.answers.get(name)]
        best = max(
            ((_leak(rows, name, answered, texts), scope) for scope, texts in scopes.items()),
            key=lambda candidate: len(candidate[0][0]) - candidate[0][1],
        )
        (hits, chance), scope = best
        if len(hits) - chance > max(2, _LEAK * len(answered)):
            leaks.append((name, scope, hits, len(answered), chance))
    return Finding(
        code="attributes/answer_in_prompt",
        severity="error",
        count=sum(len(hits) for _, _, hits, _, _ in leaks),
        total=sum(len(row.answers) for row in rows),
        message="Answers that stand in the prompt, of attributes where that is more frequent than "
        "chance: they are read there, not inferred.",
        advice="Take the attribute and what repeats it (tags, profiles) out of the prompts.",
        examples=tuple(
            f"{name}: {len(hits):,} of {total:,} answers stand in the text on the {scope} "
            f"({chance:.0f} by chance); row {hits[0] + 1}: {rows[hits[0]].answers[name]!r}"
            for name, scope, hits, total, chance in leaks[:MAX_EXAMPLES]
        ),
    )


def _item_lines(row: AttributeRow) -> str:
    """Lines about the recommended item, up to the question, which names the attributes."""
    lines = recommended_lines(row.prompt)
    end = next((n for n, line in enumerate(lines) if line.casefold().startswith(_QUESTION)), 3)
    return "\n".join(lines[:end])


def _leak(
    rows: Sequence[AttributeRow], name: str, answered: Sequence[int], texts: Sequence[str]
) -> tuple[list[int], float]:
    """Rows whose answer occurs in their text, and their number expected by chance."""
    by_value: dict[str, list[int]] = defaultdict(list)
    for place in answered:
        by_value[rows[place].answers[name].casefold()].append(place)
    hits: list[int] = []
    chance = 0.0
    for value, places in by_value.items():
        word = finder([value])
        # The plain search is fast and rules out most prompts before the one for whole words.
        within = {
            place for place in answered if value in texts[place] and word.search(texts[place])
        }
        own = set(places)
        hits += sorted(within & own)
        others = len(answered) - len(own)
        # Expected hits: the value's rate in prompts with another answer, times its own prompts.
        if others:
            chance += len(own) * len(within - own) / others
    return sorted(hits), chance
