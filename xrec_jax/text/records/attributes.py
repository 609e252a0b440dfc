"""Attributes that are asked for: their values, answers as JSON, questions, splits by user."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_hash
from xrec_jax.text.records.instructions import Instruction

Value = str | float
_FEW = 12  # different numbers up to which a number counts as a choice among them
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")


@dataclasses.dataclass(frozen=True)
class Attribute:
    """What is asked for under one key of the answer.

    Attributes:
      key: in the JSON object.
      values: allowed ones as text; empty for any number from `low` to `high`.
      numeric: whether the values are numbers, so that errors have a size.
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
        """The key as a part of a metric's name."""
        return re.sub(r"[\s/]+", "_", self.key.strip())

    def read(self, value: Any) -> Value | None:
        """A member of a JSON object as a value of this attribute; None where it is not allowed.

        Case and outer white space do not matter, nor whether a number stands in quotes (published
        prompts show it so); everything else does.
        """
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return None
        text = value.strip() if isinstance(value, str) else number_text(value)
        if not self.numeric:
            return next((one for one in self.values if one.casefold() == text.casefold()), None)
        if not _NUMBER.fullmatch(text):
            return None
        number = float(text)
        if self.values:
            return number if number in map(float, self.values) else None
        return number if self.low <= number <= self.high else None

    def describe(self) -> str:
        """The line of a prompt that says what may be answered."""
        if self.values:
            quoted = self.values if self.numeric else [f'"{value}"' for value in self.values]
            return f'"{self.key}": one of {", ".join(quoted)}'
        return f'"{self.key}": a number'


def number_text(value: float) -> str:
    """A number as JSON has it, whole ones without a point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def infer(key: str, found: Iterable[Value]) -> Attribute:
    """The attribute whose values these are.

    Texts are a choice among those that occur; so are numbers where few different ones occur; others
    are any number in the range that occurs.

    Raises:
      UserError: where texts and numbers are mixed, or nothing is there.
    """
    values = sorted(set(found), key=str)
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
    """The JSON object of an answer, on one line."""
    members = (
        f"{json.dumps(key)}: "
        + (json.dumps(value, ensure_ascii=False) if isinstance(value, str) else number_text(value))
        for key, value in truth.items()
    )
    return "{" + ", ".join(members) + "}"


def strict_object(text: str) -> dict[str, Any] | None:
    """A text that is one JSON object and nothing else; None for anything else.

    Keys that come twice, NaN and infinities are refused too: what they mean is not defined.
    """

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in members}) < len(members):
            raise ValueError("a key comes twice")
        return dict(members)

    def constant(name: str) -> Any:
        raise ValueError(name)

    try:
        found = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with its true answer.

    Attributes:
      prompt: it does not hold what is asked.
      attributes: what is asked, in the order of the answer's keys.
      truth: by key.
      user: whose it is; no user may stand on both sides of a split.
    """

    prompt: str
    attributes: tuple[Attribute, ...]
    truth: Mapping[str, Value]
    user: str

    @property
    def instruction(self) -> Instruction:
        """The example to tune on."""
        return Instruction(self.prompt, answer_text(self.truth), meta={"user": self.user})


def split_by_user(
    questions: Sequence[Question], *, share: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Splits into (others, chosen) so that no user and no prompt stands on both sides.

    Who is chosen depends on the names of the users and the seed. A prompt that two users share
    stays on the chosen side only.

    Args:
      questions: the set; both results keep its order.
      share: of the users; at least one is chosen, and one is left.
      seed: of the draw.

    Raises:
      UserError: if the share is not within (0, 1), or there is one user only.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"the share of users to hold out must be above 0 and below 1, got {share}")
    users = sorted({one.user for one in questions})
    if len(users) < 2:
        raise UserError(f"a split by user needs two users or more, found {len(users)}")
    users.sort(key=lambda user: keyed_hash("attributes", seed, user))
    chosen = set(users[: min(max(1, round(share * len(users))), len(users) - 1)])
    held = [one for one in questions if one.user in chosen]
    prompts = {one.instruction.group for one in held}
    kept = [
        one for one in questions if one.user not in chosen and one.instruction.group not in prompts
    ]
    return kept, held
