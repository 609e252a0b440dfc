"""Pairwise judgements as text: records, files, the judge's prompt, order augmentation.

A judge reads a prompt and two explanations and answers "1" or "2". Every judgement is learned in
both presentation orders, so that the position is uninformative.
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
    """A comparison of two explanations.

    Attributes:
      prompt: prompt that both answer.
      first: explanation shown first.
      second: explanation shown second.
      better: 1 or 2.
      meta: further information; `pair` names the two systems compared.
    """

    prompt: str
    first: str
    second: str
    better: int
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def swapped(self) -> Judgement:
        """The judgement in the other presentation order."""
        return dataclasses.replace(
            self, first=self.second, second=self.first, better=3 - self.better
        )

    @property
    def group(self) -> str:
        """Key for splits without leakage: the prompt with white space normalised."""
        return " ".join(self.prompt.split())


def both_orders(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Each judgement, followed by the same in the other order."""
    return [order for judgement in judgements for order in (judgement, judgement.swapped)]


def judge_prompt(prompt: str, first: str, second: str, *, form: str = ASK) -> str:
    """Builds the judge's prompt.

    Args:
      prompt: prompt that both explanations answer.
      first: explanation shown first.
      second: explanation shown second.
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

    Other keys are kept in `meta`. `meta["pair"]` names the compared systems, if known, for the
    pair-identity baseline.

    Args:
      path: path of the file.
      pair: key whose value names the pair of systems.
      block: number of consecutive rows of one pair, for files that give it only by their order.

    Raises:
      UserError: names the file, line and fault.
    """
    # All records first: blocks are counted over the whole file.
    records = list(files.numbered_records(path))
    if not records:
        raise UserError(f"{path}: no record in it")
    if pair and block:
        raise UserError(f"{path}: give the key of the pair ({pair!r}) or a block, not both")
    if block < 0 or (block and len(records) % block):
        raise UserError(f"{path}: {len(records)} judgements are not whole blocks of {block}")
    judgements = []
    for number, (line, record) in enumerate(records):
        where = f"{path}, line {line}"
        for key in (*_FIELDS, *([pair] if pair else [])):
            if key not in record:
                others = [name for name in record if name not in _FIELDS]
                raise UserError(f"{where}: no key {key!r}{did_you_mean(key, others)}")
        for key in _FIELDS[:3]:
            if not isinstance(record[key], str) or not record[key].strip():
                raise UserError(f"{where}: {key} must be text that is not empty")
        # The type too, as 1.0 equals 1 in Python.
        if record["better"] not in (1, 2) or not isinstance(record["better"], int):
            raise UserError(f"{where}: better={record['better']!r} must be 1 or 2")
        meta = {key: value for key, value in record.items() if key not in _FIELDS}
        if pair:
            meta["pair"] = str(record[pair])
        elif block:
            meta["pair"] = str(number // block)
        judgements.append(
            Judgement(record["prompt"], record["first"], record["second"], record["better"], meta)
        )
    return judgements


def split_judgements(
    judgements: Sequence[Judgement],
    *,
    held_out: float,
    seed: int = 0,
    stratify: str | None = None,
    cases: Sequence[str] | None = None,
) -> tuple[list[Judgement], list[Judgement]]:
    """Splits into (train, held out) so that no prompt is on both sides.

    Args:
      judgements: the judgements; both results keep their order.
      held_out: share of the prompts of each stratum.
      seed: random seed.
      stratify: a key of `meta`.
      cases: for each judgement a canonical prompt; paraphrases with the same one are kept together.
        Default: its own prompt.

    Raises:
      UserError: as `splits.split_by_prompt`, or if one side is empty.
    """
    # Split as instructions, whose `group` is the prompt; `row` leads back to the judgement.
    rows = [
        Instruction(case, str(judgement.better), meta={**judgement.meta, "row": number})
        for number, (judgement, case) in enumerate(
            zip(judgements, cases or [judgement.prompt for judgement in judgements], strict=True)
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
    """A prompt shortened to a number of tokens.

    Attributes:
      text: the shortened prompt.
      dropped: number of (oldest) history entries removed.
      tokens: number of tokens of the text.
    """

    text: str
    dropped: int
    tokens: int


def shorten_prompt(
    text: str, *, count_tokens: Callable[[str], int | Sized], limit: int
) -> Shortened:
    """Drops the oldest numbered history entries, with their numbers, until a prompt fits.

    The first run of lines that begin with 1, 2, 3, ... (and ": " or ". ") is the history. The last
    entry is always kept, since its end is unknown. So a prompt may remain longer than the limit, as
    shown by `tokens`.

    Args:
      text: a prompt.
      count_tokens: returns the number of tokens of a text, or its encoding.
      limit: most tokens.
    """

    def count(candidate: str) -> int:
        counted = count_tokens(candidate)
        return len(counted) if isinstance(counted, Sized) else int(counted)

    tokens = count(text)
    if tokens <= limit:
        return Shortened(text, 0, tokens)
    starts: list[int] = []
    for match in _ENTRY.finditer(text):
        # Any other number at the start of a line is part of a text.
        if int(match.group(1)) == len(starts) + 1:
            starts.append(match.start())
    if len(starts) < 2:
        return Shortened(text, 0, tokens)

    def without(dropped: int) -> str:
        return text[: starts[0]] + text[starts[dropped] :]

    low, high = (
        0,
        len(starts) - 1,
    )  # invariant: dropping `low` does not fit; `high` does, or nothing does
    while high - low > 1:
        middle = (low + high) // 2
        if count(without(middle)) <= limit:
            high = middle
        else:
            low = middle
    return Shortened(without(high), high, count(without(high)))
