"""Baselines of a judge: answers that do not depend on the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError


def majority(labels: Sequence[int] | np.ndarray) -> int:
    """Most frequent label; 1 for a tie.

    Raises:
      UserError: if there is no label.
    """
    counts = Counter(int(label) for label in labels)
    if not counts:
        raise UserError("a majority needs one label or more")
    return 1 if counts[1] >= counts[2] else 2


def constant(labels: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Majority label of training, repeated `count` times."""
    return np.full(count, majority(labels))


def pair_prior(
    pairs: Sequence[Hashable | None],
    labels: Sequence[int] | np.ndarray,
    queries: Sequence[Hashable | None],
) -> np.ndarray:
    """Majority label in training of the same ordered pair of systems.

    Depends on the writers of the two texts, never on the texts.

    Args:
      pairs: `[training]` ordered pairs of compared systems; None if unknown.
      labels: `[training]` labels, 1 or 2.
      queries: `[rows]` pairs to answer; one that is unknown or not in training gets the overall
        majority.

    Returns:
      `[rows]` labels.

    Raises:
      UserError: if lengths differ or there is no training label.
    """
    if len(pairs) != len(labels):
        raise UserError(f"{len(pairs)} pairs for {len(labels)} labels")
    by_pair: dict[Hashable, list[int]] = {}
    for pair, label in zip(pairs, labels, strict=True):
        if pair is not None:
            by_pair.setdefault(pair, []).append(int(label))
    # Rows of unknown systems tell nothing of a pair, but count in the overall majority.
    rest = majority(labels)
    known = {pair: majority(labels_of_pair) for pair, labels_of_pair in by_pair.items()}
    return np.array([known.get(pair, rest) for pair in queries], int)
