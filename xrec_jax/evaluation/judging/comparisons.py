"""What a judge says about pairs of systems, in both presentation orders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.text.words import word_count


class Judge(Protocol):
    """Anything that compares explanations, called with equally long sequences of texts.

    Returns, for each, the probability that the explanation shown first is the better one; NaN where
    it cannot tell because it could not read them.
    """

    def __call__(
        self, prompt: Sequence[str], first: Sequence[str], second: Sequence[str], /
    ) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """One row for each prompt and each pair of systems that both answered it.

    Attributes:
      systems: names.
      prompts: `[rows]` int, number of the prompt; rows of one prompt are one cluster.
      one: `[rows]` int, a system.
      other: `[rows]` int, the system it is compared with.
      forward: `[rows]` probability that `one` is better, shown first.
      backward: `[rows]` probability that `other` is better, shown first.
      words: `[rows, 2]` number of words of both.

    Raises:
      UserError: if shapes differ, a probability is not one, or a system meets itself.
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
            if not np.all((values >= 0) & (values <= 1)):
                raise UserError(f"comparisons: {name} must hold probabilities from 0 to 1")
        if np.any(self.one == self.other):
            raise UserError("comparisons: a system cannot be compared with itself")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def probability(self) -> np.ndarray:
        """`[rows]` probability that `one` is better, the mean of both orders."""
        return (self.forward + 1.0 - self.backward) / 2.0

    def select(self, rows: np.ndarray) -> Comparisons:
        """Some of the rows, by a mask or by numbers."""
        found = {
            name: getattr(self, name)[rows]
            for name in ("prompts", "one", "other", "forward", "backward", "words")
        }
        return dataclasses.replace(self, **found)

    def pair(self, one: str, other: str) -> Comparisons:
        """The rows of two systems, turned so that `one` is the first of them."""
        a, b = self.systems.index(one), self.systems.index(other)
        straight = (self.one == a) & (self.other == b)
        turned = (self.one == b) & (self.other == a)
        rows = straight | turned
        flip = turned[rows]
        found = self.select(rows)
        return dataclasses.replace(
            found,
            one=np.full(len(found), a),
            other=np.full(len(found), b),
            forward=np.where(flip, found.backward, found.forward),
            backward=np.where(flip, found.forward, found.backward),
            words=np.where(flip[:, None], found.words[:, ::-1], found.words),
        )


@dataclasses.dataclass(frozen=True)
class Compared:
    """What `compare` found.

    Attributes:
      table: the comparisons.
      refused: pairs that the judge could not read in one order or both; they are not in the table.
      missing: pairs that were never asked about because a system has no text for the prompt.
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
      judge: see `Judge`.
      prompts: what the systems were asked.
      texts: by system, a text for each prompt; None or an empty one where there is none.
      numbers: which prompts are the same one, for intervals; default: those of equal text.

    Raises:
      UserError: if there are fewer than two systems, lengths differ, the judge gives anything but
        a probability for each, or nothing could be compared.
    """
    systems = tuple(texts)
    if len(systems) < 2:
        raise UserError(f"a comparison needs two systems or more, got {len(systems)}")
    for system, given in texts.items():
        if len(given) != len(prompts):
            raise UserError(f"{system}: {len(given)} texts for {len(prompts)} prompts")
    if numbers is None:
        known: dict[str, int] = {}
        numbers = [known.setdefault(prompt, len(known)) for prompt in prompts]
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
    asked = [prompts[row[0]] for row in rows]
    ones, others = [row[3] for row in rows], [row[4] for row in rows]
    # One call, so that a judge may read what all pairs of a prompt share once.
    found = np.asarray(judge(asked + asked, ones + others, others + ones), np.float64)
    if found.shape != (2 * len(rows),):
        raise UserError(
            f"the judge gave an array of shape {list(found.shape)} for {2 * len(rows)} pairs"
        )
    if not np.all(np.isnan(found) | ((found >= 0) & (found <= 1))):
        raise UserError("the judge must give probabilities from 0 to 1, or NaN for a refusal")
    forward, backward = found[: len(rows)], found[len(rows) :]
    read = ~(np.isnan(forward) | np.isnan(backward))
    if not read.any():
        raise UserError(f"the judge could read none of the {len(rows)} pairs")
    words = np.array([[word_count(one), word_count(other)] for *_, one, other in rows])
    table = Comparisons(
        systems,
        np.array([numbers[row[0]] for row in rows])[read],
        np.array([row[1] for row in rows])[read],
        np.array([row[2] for row in rows])[read],
        forward[read],
        backward[read],
        words[read],
    )
    return Compared(table, int((~read).sum()), missing)
