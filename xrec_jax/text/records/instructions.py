"""Instruction sets: records, JSONL files in prompt-completion or messages form, duplicates."""

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
    """One example to tune on.

    Attributes:
      prompt: the last thing the user says.
      completion: the answer to learn.
      system: what stands above the conversation.
      turns: earlier (role, content) pairs, user and assistant in turn, oldest first.
      meta: whatever else is known: data set, user, item.
      source: file and line that it comes from, for messages; empty where it comes from none.
    """

    prompt: str
    completion: str
    system: str | None = None
    turns: tuple[Message, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = dataclasses.field(default="", compare=False)

    @property
    def name(self) -> str:
        """How messages name it: by its place, or by its beginning."""
        return self.source or f"the example whose prompt begins {self.prompt[:40]!r}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation as (role, content); every assistant turn is trained on."""
        system = () if self.system is None else (("system", self.system),)
        return (*system, *self.turns, ("user", self.prompt), ("assistant", self.completion))

    @property
    def group(self) -> str:
        """What must not stand on both sides of a split: the opening prompt, white space levelled.

        Published sets repeat a prompt with a stray space at its end; that is the same prompt.
        """
        opening = self.turns[0][1] if self.turns else self.prompt
        return " ".join(opening.split())


def from_messages(
    messages: Sequence[Mapping[str, Any]], meta: Mapping[str, Any] | None = None
) -> Instruction:
    """An instruction from a list of {"role", "content"}.

    Raises:
      UserError: for anything but an optional system message, then user and assistant in turn, the
        assistant last, each with text.
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
    """An instruction from a JSON object of either form; its other keys become `meta`.

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
    """The JSON object of an instruction: messages form only where there are earlier turns."""
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
    """Reads a JSONL file, gzipped where its name ends in ".gz"; blank lines are skipped.

    Raises:
      UserError: names the file and the line of what is wrong.
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
    """Writes a JSONL file atomically, gzipped where its name ends in ".gz"."""
    text = files.json_lines(to_record(instruction) for instruction in instructions)
    data = text.encode("utf-8")
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # no time, so equal sets give equal files
    files.write_atomic(path, lambda temporary: epath.Path(temporary).write_bytes(data))


@dataclasses.dataclass(frozen=True)
class DuplicateCount:
    """What `deduplicate` found.

    Attributes:
      examples: number of examples given.
      repeated: examples equal to an earlier one in conversation and answer; they are removed.
      reanswered: examples that stay and whose prompt an earlier one has with another answer.
    """

    examples: int
    repeated: int
    reanswered: int


def deduplicate(instructions: Iterable[Instruction]) -> tuple[list[Instruction], DuplicateCount]:
    """Removes repeated examples, the first of each stays; white space does not tell them apart."""
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


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"empty {what}")
    return value
