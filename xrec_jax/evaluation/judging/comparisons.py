"""Pairwise comparisons of systems by a judge, in both presentation orders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.text.words import word_count


class Judge(Protocol):
    """Interface of a judge, called with equally long sequences of texts.

    Returns the probability of each that the explanation shown first is better; NaN if it could not
    read them.
    """

    def __call__(
        self, prompt: Sequence[str], first: Sequence[str], second: Sequence[str], /
    ) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """Table of comparisons, with a row for each prompt and pair of systems that answered it.

    Attributes:
      systems: names of the systems.
      prompts: `[rows]` int, number of the prompt; rows of one prompt form a cluster.
      one: `[rows]` int, index of a system.
      other: `[rows]` int, index of the system that it is compared with.
      forward: `[rows]` probability that `one`, shown first, is better.
      backward: `[rows]` probability that `other`, shown first, is better.
      words: `[rows, 2]` numbers of words of both texts.

    Raises:
      UserError: if shapes differ, a probability is out of range, or a system is compared with
        itself.
    """

    systems: tuple[str, ...]
    prompts: np.ndarray
    one: np.ndarray
    other: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    words: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self.prompts)
        for name in ("one", "other", "forward", "backward"):
            if np.shape(getattr(self, name)) != (rows,):
                raise UserError(f"comparisons: {name} must have shape [{rows}]")
        if np.shape(self.words) != (rows, 2):
            raise UserError(f"comparisons: words must have shape [{rows}, 2]")
        for name in ("forward", "backward"):
            values = getattr(self, name)
            # NaN fails as well: pairs that a judge refused must have been dropped.
            if not np.all((values >= 0) & (values <= 1)):
                raise UserError(f"comparisons: {name} must hold probabilities from 0 to 1")
        if np.any(self.one == self.other):
            raise UserError("comparisons: a system cannot be compared with itself")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def probability(self) -> np.ndarray:
        """Probability `[rows]` that `one` is better, averaged over both orders."""
        return (self.forward + 1.0 - self.backward) / 2.0

    def select(self, rows: np.ndarray) -> Comparisons:
        """Selects rows by a mask or by indices."""
        fields = {
            name: getattr(self, name)[rows]
            for name in ("prompts", "one", "other", "forward", "backward", "words")
        }
        return dataclasses.replace(self, **fields)

    def pair(self, one: str, other: str) -> Comparisons:
        """Selects the rows of two systems, oriented so that `one` is the first argument."""
        a, b = self.systems.index(one), self.systems.index(other)
        straight = (self.one == a) & (self.other == b)
        turned = (self.one == b) & (self.other == a)
        rows = straight | turned
        # In a turned row, `backward` is the order that shows the argument `one` first.
        flip = turned[rows]
        selected = self.select(rows)
        return dataclasses.replace(
            selected,
            one=np.full(len(selected), a),
            other=np.full(len(selected), b),
            forward=np.where(flip, selected.backward, selected.forward),
            backward=np.where(flip, selected.forward, selected.backward),
            words=np.where(flip[:, None], selected.words[:, ::-1], selected.words),
        )


@dataclasses.dataclass(frozen=True)
class Compared:
    """Result of `compare`.

    Attributes:
      table: the comparisons.
      refused: number of pairs that the judge could not read in at least one order; they are not in
        the table.
      missing: number of pairs without a text of one of the systems.
    """

    table: Comparisons
    refused: int
    missing: int


def compare(
    judge: Judge,
    prompts: Sequence[str],
    texts: Mapping[str, Sequence[str | None]],
    *,
    numbers: Sequence[int] | None = None,
) -> Compared:
    """Asks a judge about every pair of systems on every prompt, in both orders.

    Args:
      judge: the judge, see `Judge`.
      prompts: prompts that the systems answered.
      texts: texts of each system for all prompts; None or empty for a missing one.
      numbers: number of each prompt, equal for equivalent ones, for intervals; by default prompts
        of equal text are equivalent.

    Raises:
      UserError: if there are fewer than two systems, lengths differ, the judge returns something
        other than a probability for each pair, or no pair can be compared.
    """
    systems = tuple(texts)
    if len(systems) < 2:
        raise UserError(f"a comparison needs two systems or more, got {len(systems)}")
    for system, own_texts in texts.items():
        if len(own_texts) != len(prompts):
            raise UserError(f"{system}: {len(own_texts)} texts for {len(prompts)} prompts")
    if numbers is None:
        known: dict[str, int] = {}
        numbers = [known.setdefault(prompt, len(known)) for prompt in prompts]
    # A row for each prompt and pair of systems with both texts.
    rows, missing = [], 0
    for place in range(len(prompts)):
        for a, b in itertools.combinations(range(len(systems)), 2):
            one, other = texts[systems[a]][place], texts[systems[b]][place]
            if one and one.strip() and other and other.strip():
                rows.append((place, a, b, one, other))
            else:
                missing += 1
    if not rows:
        raise UserError("nothing to compare: no prompt has texts of two systems")
    questions = [prompts[row[0]] for row in rows]
    ones, others = [row[3] for row in rows], [row[4] for row in rows]
    # One call, so that a judge may read the shared beginning of a prompt's pairs only once.
    probabilities = np.asarray(
        judge(questions + questions, ones + others, others + ones), np.float64
    )
    if probabilities.shape != (2 * len(rows),):
        raise UserError(
            f"the judge gave an array of shape {list(probabilities.shape)} for {2 * len(rows)} "
            "pairs"
        )
    if not np.all(np.isnan(probabilities) | ((probabilities >= 0) & (probabilities <= 1))):
        raise UserError("the judge must give probabilities from 0 to 1, or NaN for a refusal")
    # A pair read in one order only says nothing fair, so both orders are needed.
    forward, backward = probabilities[: len(rows)], probabilities[len(rows) :]
    readable = ~(np.isnan(forward) | np.isnan(backward))
    if not readable.any():
        raise UserError(f"the judge could read none of the {len(rows)} pairs")
    words = np.array([[word_count(one), word_count(other)] for *_, one, other in rows])
    table = Comparisons(
        systems,
        np.array([numbers[row[0]] for row in rows])[readable],
        np.array([row[1] for row in rows])[readable],
        np.array([row[2] for row in rows])[readable],
        forward[readable],
        backward[readable],
        words[readable],
    )
    return Compared(table, int((~readable).sum()), missing)
