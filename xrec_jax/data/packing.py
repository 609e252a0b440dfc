"""Packs token sequences into rows of equal length; their examples do not attend to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.pipeline import Batch


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenised example.

    Attributes:
      ids: `[tokens]` int32.
      trained: `[tokens]` bool, tokens that contribute to the loss. The first never does, since no
        token precedes it.
      name: name for messages; empty for its number.
    """

    ids: np.ndarray
    trained: np.ndarray
    name: str = ""


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Packs sequences by best-fit decreasing: longest first, each into the fullest bin with room.

    Args:
      lengths: number of tokens of each sequence, at most `room`.
      room: capacity of a bin in tokens.

    Returns:
      Bins of indices; together they hold every sequence once.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # bins by remaining space
    spaces = 0  # bit s is set where there is a bin with space s
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        if fitting := spaces >> need:
            space = need + (fitting & -fitting).bit_length() - 1
            chosen = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
            bins[chosen].append(index)
        else:
            space, chosen = room, len(bins)
            bins.append([index])
        by_space.setdefault(space - need, []).append(chosen)
        spaces |= 1 << (space - need)
    return bins


def windows(ids: Sequence[np.ndarray], length: int) -> list[Example]:
    """Cuts running text, the concatenation of `ids`, into examples of `length` tokens, all trained.

    The last token of a window is the first of the next, so every token is predicted once.
    """
    text = np.concatenate(list(ids)).astype(np.int32) if len(ids) else np.zeros(0, np.int32)
    # The shared token is a context only in the next window, where it comes first.
    step = max(1, length - 1)
    starts = range(0, max(len(text) - 1, 0), step)
    cuts = [text[start : start + length] for start in starts]
    return [Example(cut, np.ones(len(cut), bool)) for cut in cuts]


class PackedRows:
    """Rows for `data.pipeline.BatchSource`.

    A batch holds, all `[rows, length]`: `ids`, `targets` (the next token of the same example),
    `weights` (1 where that token is trained), `segments` (1, 2, ... for the examples of a row, 0
    for padding).

    Args:
      examples: none longer than `length`.
      length: tokens of a row.
      together: False puts every example into its own row.

    Raises:
      UserError: if an example does not fit, or no token is trained.
    """

    def __init__(self, examples: Sequence[Example], *, length: int, together: bool = True):
        for number, example in enumerate(examples):
            if len(example.ids) > length:
                name = example.name or f"example {number}"
                raise UserError(
                    f"{name} has {len(example.ids)} tokens, more than the {length} of a row; "
                    "shorten the history or raise the length"
                )
        if not any(example.trained[1:].any() for example in examples):
            raise UserError("no example has a token to train on")
        self.examples, self.length = examples, length
        lengths = [len(example.ids) for example in examples]
        self.bins = pack(lengths, length) if together else [[i] for i in range(len(examples))]

    @property
    def num_rows(self) -> int:
        return len(self.bins)

    @property
    def fill(self) -> float:
        """Share of the positions of all rows that hold a token."""
        return sum(len(e.ids) for e in self.examples) / (self.num_rows * self.length)

    def rows(self, epoch: int, rows: np.ndarray) -> Batch:
        """Batch of the rows with numbers `rows`; the same in every epoch."""
        del epoch
        shape = (len(rows), self.length)
        ids, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        for row, number in enumerate(rows):
            start = 0
            for segment, index in enumerate(self.bins[number], start=1):
                example = self.examples[index]
                stop = start + len(example.ids)
                ids[row, start:stop] = example.ids
                # Targets are the ids shifted by one; an example's last token has no target of its
                # own example.
                targets[row, start : stop - 1] = example.ids[1:]
                weights[row, start : stop - 1] = example.trained[1:]
                segments[row, start:stop] = segment
                start = stop
        return {"ids": ids, "targets": targets, "weights": weights, "segments": segments}
