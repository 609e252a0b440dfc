"""Pairwise judgements as text: records, files, the judge's prompt, order augmentation.

A judge reads a prompt and two explanations and answers "1" or "2". Every judgement is learned in
both presentation orders, so that a place by itself tells nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.storage import files
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.records.splits import split_by_prompt

ANSWERS = ("1", "2")
ASK = (
    "{prompt}\n\nExplanation 1:\n{first}\n\nExplanation 2:\n{second}\n\n"
    "Which explanation is better for the user, 1 or 2?\n"
)
_FIELDS = ("prompt", "first", "second", "better")
# A history entry begins with its number: "3: Title" or "3. Title".
_ENTRY = re.compile(r"^(\d+)[:.] ", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Which of two explanations is better.

    Attributes:
      prompt: what both answer.
      first: the explanation shown first.
      second: the explanation shown second.
      better: 1 or 2.
      meta: whatever else is known; `pair` names the two systems that are compared.
    """

    prompt: str
    first: str
    second: str
    better: int
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def swapped(self) -> Judgement:
        """The same judgement in the other order."""
        return dataclasses.replace(
            self, first=self.second, second=self.first, better=3 - self.better
        )

    @property
    def group(self) -> str:
        """The prompt, white space levelled: what must not stand on both sides of a split."""
        return " ".join(self.prompt.split())


def both_orders(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Each judgement as given, followed by the same in the other order."""
    return [order for one in judgements for order in (one, one.swapped)]


def judge_prompt(prompt: str, first: str, second: str, *, form: str = ASK) -> str:
    """What the judge reads before its answer.

    Args:
      prompt: what both explanations answer.
      first: shown first.
      second: shown second.
      form: text with the fields {prompt}, {first} and {second}.

    Raises:
      UserError: if the form has other fields.
    """
    try:
        return form.format(prompt=prompt.strip(), first=first.strip(), second=second.strip())
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"a judge's prompt has the fields {{prompt}}, {{first}} and {{second}}: {error}"
        ) from error


def read_judgements(path: epath.PathLike, *, pair: str = "", block: int = 0) -> list[Judgement]:
    """Reads a JSONL file (perhaps gzipped) with prompt, first, second and better (1 or 2).

    Other keys are kept in `meta`. Which systems are compared stands in `meta["pair"]` where it is
    known: for the pair-identity baseline.

    Args:
      path: of the file.
      pair: key whose value names the pair of systems.
      block: where the file says it only by its order: so many rows in turn are of one pair.

    Raises:
      UserError: names the file, the line and what is wrong with it.
    """
    records = list(files.numbered_records(path))
    if not records:
        raise UserError(f"{path}: no record in it")
    if pair and block:
        raise UserError(f"{path}: give the key of the pair ({pair!r}) or a block, not both")
    if block < 0 or (block and len(records) % block):
        raise UserError(f"{path}: {len(records)} judgements are not whole blocks of {block}")
    found = []
    for number, (line, record) in enumerate(records):
        where = f"{path}, line {line}"
        for key in (*_FIELDS, *([pair] if pair else [])):
            if key not in record:
                others = [name for name in record if name not in _FIELDS]
                raise UserError(f"{where}: no key {key!r}{did_you_mean(key, others)}")
        for key in _FIELDS[:3]:
            if not isinstance(record[key], str) or not record[key].strip():
                raise UserError(f"{where}: {key} must be text that is not empty")
        if record["better"] not in (1, 2) or not isinstance(record["better"], int):
            raise UserError(f"{where}: better={record['better']!r} must be 1 or 2")
        meta = {key: value for key, value in record.items() if key not in _FIELDS}
        if pair:
            meta["pair"] = str(record[pair])
        elif block:
            meta["pair"] = str(number // block)
        found.append(
            Judgement(record["prompt"], record["first"], record["second"], record["better"], meta)
        )
    return found


def split_judgements(
    judgements: Sequence[Judgement],
    *,
    held_out: float,
    seed: int = 0,
    stratify: str | None = None,
    cases: Sequence[str] | None = None,
) -> tuple[list[Judgement], list[Judgement]]:
    """Splits into (train, held out) so that no prompt stands on both sides.

    Args:
      judgements: both results keep their order.
      held_out: share of the prompts of each stratum.
      seed: of the draw.
      stratify: a key of `meta`.
      cases: for each judgement a prompt that stands for all that ask the same in other words, which
        are then kept together; default: its own.

    Raises:
      UserError: as `sampling.split_by_prompt`, or if one side is left empty.
    """
    rows = [
        Instruction(case, str(one.better), meta={**one.meta, "row": number})
        for number, (one, case) in enumerate(
            zip(judgements, cases or [one.prompt for one in judgements], strict=True)
        )
    ]
    train, held = (
        [judgements[row.meta["row"]] for row in side]
        for side in split_by_prompt(rows, held_out=held_out, seed=seed, stratify=stratify)
    )
    if not train or not held:
        raise UserError(
            f"{len(judgements)} judgements with held_out={held_out} leave {len(train)} to train on "
            f"and {len(held)} held out; both need one or more, of different prompts"
        )
    return train, held


@dataclasses.dataclass(frozen=True)
class Shortened:
    """A prompt cut to a number of tokens.

    Attributes:
      text: what is left.
      dropped: history entries that were cut, the oldest ones.
      tokens: of the text, as counted.
    """

    text: str
    dropped: int
    tokens: int


def shorten_prompt(
    text: str, *, count_tokens: Callable[[str], int | Sized], limit: int
) -> Shortened:
    """Drops the oldest numbered history entries until a prompt fits; their numbers go with them.

    The first run of lines that begin with 1, 2, 3, ... (and ": " or ". ") is the history. The last
    entry always stays: where it ends cannot be told. So a prompt may stay longer than the limit;
    `tokens` says so.

    Args:
      text: a prompt.
      count_tokens: number of tokens of a text, or its encoding.
      limit: tokens.
    """

    def count(candidate: str) -> int:
        counted = count_tokens(candidate)
        return len(counted) if isinstance(counted, Sized) else int(counted)

    tokens = count(text)
    if tokens <= limit:
        return Shortened(text, 0, tokens)
    starts: list[int] = []
    for match in _ENTRY.finditer(text):
        if int(match.group(1)) == len(starts) + 1:
            starts.append(match.start())
    if len(starts) < 2:
        return Shortened(text, 0, tokens)

    def without(dropped: int) -> str:
        return text[: starts[0]] + text[starts[dropped] :]

    low, high = 0, len(starts) - 1  # `low` dropped do not fit; `high` do, or nothing does
    while high - low > 1:
        middle = (low + high) // 2
        if count(without(middle)) <= limit:
            high = middle
        else:
            low = middle
    return Shortened(without(high), high, count(without(high)))
