"""What a judge must beat: answers that never look at the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError


def majority(labels: Sequence[int] | np.ndarray) -> int:
    """The commoner label, 1 where both are as common.

    Raises:
      UserError: if there is none.
    """
    counts = Counter(int(label) for label in labels)
    if not counts:
        raise UserError("a majority needs one label or more")
    return 1 if counts[1] >= counts[2] else 2


def constant(labels: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """`[count]` times the majority label of training."""
    return np.full(count, majority(labels))


def pair_prior(
    pairs: Sequence[Hashable | None],
    labels: Sequence[int] | np.ndarray,
    asked: Sequence[Hashable | None],
) -> np.ndarray:
    """The majority label in training of the same pair of systems in the shown order.

    Knows who wrote the two texts, and never reads them.

    Args:
      pairs: `[training]` which two systems were compared, in which order; None: not known.
      labels: `[training]` 1 or 2.
      asked: `[rows]` pairs to answer for; one that is not known, or not in training, gets the
        majority of all.

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
    rest = majority(labels)
    known = {pair: majority(found) for pair, found in by_pair.items()}
    return np.array([known.get(pair, rest) for pair in asked], int)
