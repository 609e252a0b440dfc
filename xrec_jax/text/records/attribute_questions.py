"""Questions from files of prompts and JSON completions, and which of them are on one user."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import keyed_hash
from xrec_jax.text.records.attribute_prompts import holds
from xrec_jax.text.records.attributes import Question, Value, infer, strict_object
from xrec_jax.text.records.instructions import Instruction, read_instructions


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """The questions of a file.

    Attributes:
      questions: those whose completion is well-formed.
      malformed: completions that are no JSON object of texts and numbers: nothing to learn from,
        nothing to compare with.
      example: one of them.
      stated: by key, prompts that hold the true value in a line that is not part of every prompt
        (texts only; numbers stand in most prompts by chance).
    """

    questions: tuple[Question, ...]
    malformed: int
    example: str
    stated: Mapping[str, int]


def read_questions(
    path: epath.PathLike, *, keys: Sequence[str] = (), entry: str = ""
) -> QuestionFile:
    """Reads a JSONL file of prompts and JSON completions.

    Keys and allowed values come from the well-formed completions.

    Args:
      path: of the file.
      keys: only questions for nothing but these; empty for all.
      entry: regular expression of a history entry, matched line by line. Prompts with the same
        entries in any order belong to one user; without a match a prompt is a user of its own. A
        record's own key "user" counts before it.

    Raises:
      UserError: if the file cannot be read, nothing is well-formed, or a key does not occur.
    """
    records, malformed, example = [], 0, ""
    for one in read_instructions(path):
        found = strict_object(one.completion)
        if not found or not all(_scalar(value) for value in found.values()):
            malformed, example = malformed + 1, example or one.completion
            continue
        records.append((one, found))
    present = sorted({key for _, found in records for key in found})
    for key in keys:
        if key not in present:
            raise UserError(
                f"{path}: no completion has the key {key!r}{did_you_mean(key, present)}"
            )
    if keys:
        records = [(one, found) for one, found in records if set(found) <= set(keys)]
    if not records:
        raise UserError(f"{path}: no completion is a JSON object of texts and numbers")
    values: dict[str, list[Value]] = defaultdict(list)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one, found in records:
        groups[tuple(found)].append(one.prompt)
        for key, value in found.items():
            values[key].append(value)
    attributes = {key: infer(key, found) for key, found in values.items()}
    common = {
        asked: set.intersection(*(set(prompt.split("\n")) for prompt in prompts))
        for asked, prompts in groups.items()
    }
    questions, stated = [], Counter(dict.fromkeys(attributes, 0))
    for one, found in records:
        asked = tuple(attributes[key] for key in found)
        truth = {attribute.key: attribute.read(found[attribute.key]) for attribute in asked}
        user = str(one.meta["user"]) if "user" in one.meta else user_of(one, entry)
        own = "\n".join(x for x in one.prompt.split("\n") if x not in common[tuple(found)])
        for key, value in truth.items():
            stated[key] += isinstance(value, str) and holds(own, value)
        questions.append(Question(one.prompt, asked, _known(truth), user))
    return QuestionFile(tuple(questions), malformed, example, dict(stated))


def _scalar(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _known(truth: Mapping[str, Value | None]) -> dict[str, Value]:
    return {key: value for key, value in truth.items() if value is not None}


def entries_of(text: str, entry: str) -> frozenset[str]:
    """The history entries of a prompt: what a regular expression matches, or its last group.

    Raises:
      UserError: if `entry` is not a regular expression.
    """
    if not entry:
        return frozenset()
    try:
        found = re.finditer(entry, text, re.MULTILINE)
    except re.error as error:
        raise UserError(f"attributes.entry={entry!r} is no regular expression: {error}") from error
    return frozenset(match.group(match.lastindex or 0).strip() for match in found)


def user_of(instruction: Instruction, entry: str) -> str:
    """A name for the user of a prompt: its history entries, in any order."""
    found = sorted(entries_of(instruction.prompt, entry)) or [instruction.group]
    return f"{keyed_hash(*found):016x}"


def without_users(
    texts: Sequence[str], prompts: Iterable[str], entry: str, *, share: float = 0.7
) -> tuple[list[str], int]:
    """Leaves out texts on the users of some prompts, such as before a model learns from them.

    Published sets show one user's history in several orders and windows, beside the very profile
    that is asked for elsewhere.

    Args:
      texts: to choose from.
      prompts: of the users.
      entry: see `entries_of`.
      share: a text that holds this share of a prompt's entries is on the same user.

    Returns:
      The others, and how many were left out.
    """
    users = list({found for prompt in prompts if (found := entries_of(prompt, entry))})
    having: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(users):
        for one in found:
            having[one].append(number)
    kept = []
    for text in texts:
        shared = Counter(n for one in entries_of(text, entry) for n in having.get(one, ()))
        if not any(count >= share * len(users[n]) for n, count in shared.items()):
            kept.append(text)
    return kept, len(texts) - len(kept)
