"""Attributes to predict: values, answers as JSON, questions, and splits by user."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_hash
from xrec_jax.text.records.instructions import Instruction

Value = str | float
_FEW = 12  # most distinct numbers that are treated as a choice
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")


@dataclasses.dataclass(frozen=True)
class Attribute:
    """An attribute to predict: one key of the answer.

    Attributes:
      key: key in the JSON object.
      values: allowed values as text; empty for any number from `low` to `high`.
      numeric: true if the values are numbers, so that errors have a size.
      low: least allowed number.
      high: largest allowed number.
    """

    key: str
    values: tuple[str, ...] = ()
    numeric: bool = False
    low: float = -math.inf
    high: float = math.inf

    @property
    def name(self) -> str:
        """The key as part of a metric name."""
        return re.sub(r"[\s/]+", "_", self.key.strip())

    def read(self, value: Any) -> Value | None:
        """Converts a JSON value to a value of this attribute; None if it is not allowed.

        Case, outer white space and quotes around a number (as in published prompts) are ignored.
        """
        # In Python `True` is a number, in JSON it is not.
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return None
        text = value.strip() if isinstance(value, str) else number_text(value)
        if not self.numeric:
            return next((name for name in self.values if name.casefold() == text.casefold()), None)
        # Stricter than `float`, which also reads "nan", "inf" and "1_000".
        if not _NUMBER.fullmatch(text):
            return None
        number = float(text)
        if self.values:
            return number if number in map(float, self.values) else None
        return number if self.low <= number <= self.high else None

    def describe(self) -> str:
        """Line of a prompt that states the allowed answers."""
        if self.values:
            quoted = self.values if self.numeric else [f'"{value}"' for value in self.values]
            return f'"{self.key}": one of {", ".join(quoted)}'
        return f'"{self.key}": a number'


def number_text(value: float) -> str:
    """Number as in JSON, integers without a decimal point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def infer(key: str, occurring: Iterable[Value]) -> Attribute:
    """Infers an attribute from its values.

    Texts are a choice among those that occur; so are numbers if few distinct ones occur; otherwise
    any number in the occurring range is allowed.

    Raises:
      UserError: if texts and numbers are mixed, or there is no value.
    """
    values = sorted(set(occurring), key=str)
    if not values:
        raise UserError(f"attribute {key!r} has no value to learn from")
    numbers = [value for value in values if not isinstance(value, str)]
    if numbers and len(numbers) < len(values):
        raise UserError(f"attribute {key!r} has numbers and texts: {numbers[0]}, {values[-1]!r}")
    if not numbers:
        return Attribute(key, tuple(map(str, values)))
    numbers.sort()
    few = tuple(map(number_text, numbers)) if len(numbers) <= _FEW else ()
    return Attribute(key, few, numeric=True, low=numbers[0], high=numbers[-1])


def answer_text(truth: Mapping[str, Value]) -> str:
    """JSON object of an answer, on one line."""
    members = (
        f"{json.dumps(key)}: "
        + (json.dumps(value, ensure_ascii=False) if isinstance(value, str) else number_text(value))
        for key, value in truth.items()
    )
    return "{" + ", ".join(members) + "}"


def strict_object(text: str) -> dict[str, Any] | None:
    """Parses a text that is exactly one JSON object; None for anything else.

    Repeated keys, NaN and infinities are refused too, since their meaning is undefined.
    """

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in members}) < len(members):
            raise ValueError("a key comes twice")
        return dict(members)

    def constant(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        content = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with its true answer.

    Attributes:
      prompt: text of the prompt, which does not contain the answer.
      attributes: attributes to predict, in the order of the answer's keys.
      truth: true values by key.
      user: user of the prompt; a user is never on both sides of a split.
    """

    prompt: str
    attributes: tuple[Attribute, ...]
    truth: Mapping[str, Value]
    user: str

    @property
    def instruction(self) -> Instruction:
        """Training example of the question."""
        return Instruction(self.prompt, answer_text(self.truth), meta={"user": self.user})


def split_by_user(
    questions: Sequence[Question], *, share: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Splits into (others, chosen) so that no user and no prompt is on both sides.

    The choice depends on the names of the users and the seed. A prompt shared by two users stays on
    the chosen side only.

    Args:
      questions: the questions; both results keep their order.
      share: share of the users to choose; at least one is chosen and one is left.
      seed: random seed.

    Raises:
      UserError: if the share is not within (0, 1), or there is only one user.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"the share of users to hold out must be above 0 and below 1, got {share}")
    users = sorted({question.user for question in questions})
    if len(users) < 2:
        raise UserError(f"a split by user needs two users or more, found {len(users)}")
    # In the order of a hash: further users change little for the others.
    users.sort(key=lambda user: keyed_hash("attributes", seed, user))
    chosen = set(users[: min(max(1, round(share * len(users))), len(users) - 1)])
    held = [question for question in questions if question.user in chosen]
    prompts = {question.instruction.group for question in held}
    kept = [
        question
        for question in questions
        if question.user not in chosen and question.instruction.group not in prompts
    ]
    return kept, held
