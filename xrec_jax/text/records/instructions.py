"""Instruction sets: records, JSONL files in prompt-completion or messages form, deduplication."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.storage import files

ROLES = ("system", "user", "assistant")
Message = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction-tuning example.

    Attributes:
      prompt: last message of the user.
      completion: answer to learn.
      system: system message, or None.
      turns: earlier (role, content) pairs, user and assistant alternating, oldest first.
      meta: further information: data set, user, item.
      source: source file and line, for messages; empty if there is none.
    """

    prompt: str
    completion: str
    system: str | None = None
    turns: tuple[Message, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = dataclasses.field(default="", compare=False)

    @property
    def name(self) -> str:
        """Name for messages: its source, or the beginning of its prompt."""
        return self.source or f"the example whose prompt begins {self.prompt[:40]!r}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as (role, content) pairs; all assistant messages are trained on."""
        system = () if self.system is None else (("system", self.system),)
        return (*system, *self.turns, ("user", self.prompt), ("assistant", self.completion))

    @property
    def group(self) -> str:
        """Key for splits without leakage: the first prompt, with white space normalised.

        Published sets repeat a prompt with a stray space at its end, which is the same prompt.
        """
        opening = self.turns[0][1] if self.turns else self.prompt
        return " ".join(opening.split())


def from_messages(
    messages: Sequence[Mapping[str, Any]], meta: Mapping[str, Any] | None = None
) -> Instruction:
    """Builds an instruction from a list of {"role", "content"}.

    Raises:
      UserError: for anything but an optional system message, then user and assistant alternating,
        the assistant last, each with text.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise UserError("messages must be a list that is not empty")
    pairs: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} must be an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                raise UserError(f"message {number} has no {key!r}{did_you_mean(key, message)}")
        role = message["role"]
        if role not in ROLES:
            hint = did_you_mean(role, ROLES)
            raise UserError(f"message {number} has the unknown role {role!r}{hint}")
        pairs.append((role, _text(message["content"], f"content of message {number}")))
    # The order of roles: every answer must follow a message of the user.
    system = pairs.pop(0)[1] if pairs[0][0] == "system" else None
    if not pairs or pairs[-1][0] != "assistant":
        raise UserError("the last message must be by the assistant: it is what is learned")
    for place, (role, _) in enumerate(pairs):
        wanted = ROLES[1 + place % 2]
        if role != wanted:
            number = place + 1 + (system is not None)
            raise UserError(f"message {number} must be by the {wanted}, but is by the {role}")
    return Instruction(
        prompt=pairs[-2][1],
        completion=pairs[-1][1],
        system=system,
        turns=tuple(pairs[:-2]),
        meta=dict(meta or {}),
    )


def from_record(record: Mapping[str, Any]) -> Instruction:
    """Builds an instruction from a JSON object of either form; other keys become `meta`.

    Raises:
      UserError: for a missing key, an empty text or a value of the wrong type.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"expected a JSON object, found {type(record).__name__}")
    if "messages" in record:
        for key in ("prompt", "completion"):
            if key in record:
                raise UserError(f"give messages or prompt and completion, not both ({key!r})")
        return from_messages(
            record["messages"], {k: v for k, v in record.items() if k != "messages"}
        )
    for key in ("prompt", "completion"):
        if key not in record:
            hint = did_you_mean(key, [k for k in record if k not in ("prompt", "completion")])
            raise UserError(f"no key {key!r} (nor 'messages'){hint}")
    system = record.get("system")
    return Instruction(
        prompt=_text(record["prompt"], "prompt"),
        completion=_text(record["completion"], "completion"),
        system=None if system is None else _text(system, "system"),
        meta={k: v for k, v in record.items() if k not in ("prompt", "completion", "system")},
    )


def to_record(instruction: Instruction) -> dict[str, Any]:
    """Converts an instruction to a JSON object; messages form only for earlier turns."""
    if instruction.turns:
        messages = [{"role": role, "content": content} for role, content in instruction.messages]
        return {**instruction.meta, "messages": messages}
    system = {} if instruction.system is None else {"system": instruction.system}
    return {
        **instruction.meta,
        **system,
        "prompt": instruction.prompt,
        "completion": instruction.completion,
    }


def read_instructions(path: epath.PathLike) -> list[Instruction]:
    """Reads a JSONL file, gzipped if its name ends in ".gz"; blank lines are skipped.

    Raises:
      UserError: names the file and line of the first fault.
    """
    instructions = []
    for number, record in files.numbered_records(path):
        source = f"{path}, line {number}"
        try:
            instructions.append(dataclasses.replace(from_record(record), source=source))
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    if not instructions:
        raise UserError(f"{path}: no instruction in it")
    return instructions


def write_instructions(path: epath.PathLike, instructions: Iterable[Instruction]) -> None:
    """Writes a JSONL file atomically, gzipped if its name ends in ".gz"."""
    text = files.json_lines(to_record(instruction) for instruction in instructions)
    data = text.encode("utf-8")
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # without time stamp: equal sets give equal files
    files.write_atomic(path, lambda temporary: epath.Path(temporary).write_bytes(data))


@dataclasses.dataclass(frozen=True)
class DuplicateCount:
    """Counts of `deduplicate`.

    Attributes:
      examples: number of input examples.
      repeated: number of removed examples, equal to an earlier one in conversation and answer.
      reanswered: number of kept examples whose prompt occurs earlier with another answer.
    """

    examples: int
    repeated: int
    reanswered: int


def deduplicate(instructions: Iterable[Instruction]) -> tuple[list[Instruction], DuplicateCount]:
    """Removes repeated examples, keeping the first of each; white space is ignored."""
    kept: list[Instruction] = []
    seen, groups = set(), set()
    total = reanswered = 0
    for instruction in instructions:
        total += 1
        key = tuple((role, " ".join(content.split())) for role, content in instruction.messages)
        if key in seen:
            continue
        seen.add(key)
        reanswered += instruction.group in groups
        groups.add(instruction.group)
        kept.append(instruction)
    return kept, DuplicateCount(total, total - len(kept), reanswered)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"empty {what}")
    return value
