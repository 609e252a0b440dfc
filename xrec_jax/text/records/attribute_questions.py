"""Reader of attribute questions from files of prompts and JSON completions, grouped by user."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import keyed_hash
from xrec_jax.text.records.attribute_prompts import holds
from xrec_jax.text.records.attributes import Question, Value, infer, strict_object
from xrec_jax.text.records.instructions import Instruction, read_instructions


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """Questions of a file.

    Attributes:
      questions: questions with a well-formed completion.
      malformed: number of completions that are not a JSON object of texts and numbers, which can
        neither be learned nor compared.
      example: a malformed completion.
      stated: by key, number of prompts that contain the true value in a line that is not common to
        all prompts (texts only; numbers occur in most prompts by chance).
    """

    questions: tuple[Question, ...]
    malformed: int
    example: str
    stated: Mapping[str, int]


def read_questions(
    path: epath.PathLike, *, keys: Sequence[str] = (), entry: str = ""
) -> QuestionFile:
    """Reads a JSONL file of prompts and JSON completions.

    Keys and allowed values are inferred from the well-formed completions.

    Args:
      path: path of the file.
      keys: keep only questions for no other keys than these; empty for all.
      entry: regular expression of a history entry, matched line by line. Prompts with the same
        entries in any order belong to one user; without a match each prompt is a user. A record's
        key "user" takes precedence.

    Raises:
      UserError: if the file cannot be read, no completion is well-formed, or a key does not occur.
    """
    records, malformed, example = [], 0, ""
    for instruction in read_instructions(path):
        answer = strict_object(instruction.completion)
        if not answer or not all(_scalar(value) for value in answer.values()):
            malformed, example = malformed + 1, example or instruction.completion
            continue
        records.append((instruction, answer))
    # A mistyped key would leave no question, without a word on why.
    present = sorted({key for _, answer in records for key in answer})
    for key in keys:
        if key not in present:
            raise UserError(
                f"{path}: no completion has the key {key!r}{did_you_mean(key, present)}"
            )
    if keys:
        records = [(x, answer) for x, answer in records if set(answer) <= set(keys)]
    if not records:
        raise UserError(f"{path}: no completion is a JSON object of texts and numbers")
    values: dict[str, list[Value]] = defaultdict(list)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for instruction, answer in records:
        groups[tuple(answer)].append(instruction.prompt)
        for key, value in answer.items():
            values[key].append(value)
    attributes = {key: infer(key, occurring) for key, occurring in values.items()}
    # Lines of all prompts with the same keys belong to the question, such as its allowed values.
    common = {
        group: set.intersection(*(set(prompt.split("\n")) for prompt in prompts))
        for group, prompts in groups.items()
    }
    questions, stated = [], Counter(dict.fromkeys(attributes, 0))
    for instruction, answer in records:
        targets = tuple(attributes[key] for key in answer)
        truth = {attribute.key: attribute.read(answer[attribute.key]) for attribute in targets}
        meta, prompt = instruction.meta, instruction.prompt
        user = str(meta["user"]) if "user" in meta else user_of(instruction, entry)
        # Without the common lines, which list the true value among the allowed ones.
        own = "\n".join(x for x in prompt.split("\n") if x not in common[tuple(answer)])
        for key, value in truth.items():
            stated[key] += isinstance(value, str) and holds(own, value)
        questions.append(Question(prompt, targets, _known(truth), user))
    return QuestionFile(tuple(questions), malformed, example, dict(stated))


def _scalar(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _known(truth: Mapping[str, Value | None]) -> dict[str, Value]:
    return {key: value for key, value in truth.items() if value is not None}


def entries_of(text: str, entry: str) -> frozenset[str]:
    """History entries of a prompt: matches of a regular expression, or of its last group.

    Raises:
      UserError: if `entry` is not a regular expression.
    """
    if not entry:
        return frozenset()
    try:
        matches = re.finditer(entry, text, re.MULTILINE)
    except re.error as error:
        raise UserError(f"attributes.entry={entry!r} is no regular expression: {error}") from error
    return frozenset(match.group(match.lastindex or 0).strip() for match in matches)


def user_of(instruction: Instruction, entry: str) -> str:
    """Name of a prompt's user: a hash of its history entries, independent of their order."""
    entries = sorted(entries_of(instruction.prompt, entry)) or [instruction.group]
    return f"{keyed_hash(*entries):016x}"


def without_users(
    texts: Sequence[str], prompts: Iterable[str], entry: str, *, share: float = 0.7
) -> tuple[list[str], int]:
    """Removes texts about the users of some prompts, so that a model does not learn from them.

    Published sets show the history of a user in several orders and windows, together with the
    profile that other prompts ask for.

    Args:
      texts: texts to filter.
      prompts: prompts of the users.
      entry: see `entries_of`.
      share: a text with this share of a prompt's entries is about the same user.

    Returns:
      The other texts, and the number of removed ones.
    """
    users = list({entries for prompt in prompts if (entries := entries_of(prompt, entry))})
    # An index from entry to users, so that each text is compared only with users it shares one
    # with.
    having: dict[str, list[int]] = defaultdict(list)
    for number, entries in enumerate(users):
        for own in entries:
            having[own].append(number)
    kept = []
    for text in texts:
        shared = Counter(n for own in entries_of(text, entry) for n in having.get(own, ()))
        if not any(count >= share * len(users[n]) for n, count in shared.items()):
            kept.append(text)
    return kept, len(texts) - len(kept)
