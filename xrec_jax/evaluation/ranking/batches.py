"""Which rows are ranked together: batches of one shape, of which there are few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from xrec_jax.evaluation.ranking.protocol import RankedRows

CELLS = 1 << 24  # scores and seen lists of one batch have at most this many cells
CPU_CELLS = 1 << 22  # on a CPU so many: its caches hold them, which halves the time
HISTORY_CELLS = 1 << 18  # with fewer positions, all histories have the same width


class RankedBatch(NamedTuple):
    """Rows that are ranked together.

    Attributes:
      rows: `[batch]` numbers of rows.
      seen: width of their lists of seen items.
      targets: width of their lists of held-out items.
      history: width of their histories; 0 if the recommender reads none.
    """

    rows: np.ndarray
    seen: int
    targets: int
    history: int


def plan(
    ranked: RankedRows, *, num_items: int, history_length: int, mask_seen: bool, limit: int
) -> Iterator[RankedBatch]:
    """Yields batches that hold every row once, grouped by shape.

    Args:
      ranked: what is ranked.
      num_items: items in the catalogue.
      history_length: number of history items that the recommender reads.
      mask_seen: whether there are lists of seen items.
      limit: largest number of rows of a batch (less for a large catalogue).
    """
    known = ranked.end - ranked.history.start[ranked.user]
    seen = known * mask_seen
    if len(seen) * seen.max() <= CELLS // 4:
        # One shape for all, rounded so that validation and test share it.
        seen_width = np.full(len(seen), -(-int(seen.max() + 1) // 64) * 64)
    else:
        seen_width = np.array([bucket(size, 64) for size in seen])
    target_width = np.array([bucket(size, 1) for size in ranked.targets.lengths])
    history_width = _history_widths(known, history_length)
    widths = np.stack([seen_width, target_width, history_width], axis=1)
    most = min(CELLS, CPU_CELLS) if jax.default_backend() == "cpu" else CELLS
    shapes, shape = np.unique(widths, axis=0, return_inverse=True)
    for number, (seen_items, targets, history) in enumerate(shapes.tolist()):
        rows = np.flatnonzero(shape.reshape(-1) == number)
        # The largest array compares every target with all scores, or with the seen list.
        cells = max(num_items, seen_items) * targets
        size = max(1, min(limit, most // cells))
        for first in range(0, len(rows), size):
            yield RankedBatch(rows[first : first + size], seen_items, targets, history)


def bucket(size: int, base: int) -> int:
    """Rounds `size` up to `base` times a power of four, to compile few shapes."""
    width = base
    while width < size:
        width *= 4
    return width


def _history_widths(known: np.ndarray, length: int) -> np.ndarray:
    """Positions that each row's history takes: a quarter, half, three quarters or all of `length`.

    All take `length` if that is little work: a shape of its own takes a compilation.
    """
    if len(known) * length < HISTORY_CELLS:
        return np.full(len(known), length)
    quarter = -(-length // 4)
    read = np.clip(known, 1, length)
    return np.minimum(-(-read // quarter) * quarter, length)
