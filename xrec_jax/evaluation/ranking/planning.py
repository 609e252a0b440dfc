"""Which rows are ranked together: batches of few shapes, since each is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xrec_jax.evaluation.ranking.protocol import RankedRows

CELLS = 1 << 24  # scores and seen lists of one batch have at most this many cells
CPU_CELLS = 1 << 22  # on a CPU so many, whose scores are still in its caches when they are counted
CPU_ROWS = 32  # below which a CPU's products with the item table lose more than that gains
HISTORY_CELLS = 1 << 18  # with fewer positions, all histories have the same width


class RankedBatch(NamedTuple):
    """Rows that are ranked together.

    Attributes:
      rows: `[batch]` numbers of rows.
      seen_width: size of their lists of seen items.
      target_width: size of their lists of held-out items.
      history_width: size of their histories; 0 if the recommender reads none.
    """

    rows: np.ndarray
    seen_width: int
    target_width: int
    history_width: int


def plan(
    ranked: RankedRows,
    *,
    num_items: int,
    history_length: int,
    narrow: bool,
    mask_seen: bool,
    limit: int,
    cpu: bool,
) -> Iterator[RankedBatch]:
    """Yields batches that hold every row once, grouped by shape.

    Args:
      ranked: what is ranked.
      num_items: items in the catalogue.
      history_length: number of history items that the recommender reads.
      narrow: whether histories may be narrower than that, where all of a batch are short.
      mask_seen: whether there are lists of seen items.
      limit: largest number of rows of a batch (less for a large catalogue).
      cpu: whether the devices are CPUs.
    """
    known = ranked.end - ranked.history.start[ranked.user]
    seen = known * mask_seen
    if len(seen) * seen.max() <= CELLS // 4:
        # One shape for all, rounded so that validation and test share it.
        seen_width = np.full(len(seen), -(-int(seen.max() + 1) // 64) * 64)
    else:
        seen_width = np.array([bucket(size, 64) for size in seen])
    target_width = np.array([bucket(size, 1) for size in ranked.targets.lengths])
    narrow = narrow and len(known) * history_length >= HISTORY_CELLS
    history_width = _history_widths(known, history_length) if narrow else history_length
    for width in np.unique(seen_width).tolist():
        for targets in np.unique(target_width[seen_width == width]).tolist():
            rows = np.flatnonzero((seen_width == width) & (target_width == targets))
            # The largest array compares every target with all scores, or with the seen list.
            cells = max(num_items, width) * targets
            size = CELLS // cells
            if cpu:
                size = min(size, max(CPU_ROWS, CPU_CELLS // cells))
            size = max(1, min(limit, size))
            needed = np.broadcast_to(history_width, len(known))[rows]
            for batch, history in _by_width(rows, needed, size):
                yield RankedBatch(batch, width, targets, history)


def _by_width(rows: np.ndarray, needed: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of `size` rows, and the width of their histories.

    Rows that do not fill a batch of their width go to the next wider one, so that only the last
    batch has another size.

    Args:
      rows: `[n]` numbers of rows.
      needed: `[n]` width that each needs.
      size: rows of a batch.
    """
    left = rows[:0]
    widths = np.unique(needed).tolist()
    for width in widths:
        left = np.concatenate([left, rows[needed == width]])
        full = len(left) if width == widths[-1] else len(left) // size * size
        for first in range(0, full, size):
            yield left[first : first + size], width
        left = left[full:]


def bucket(size: int, base: int) -> int:
    """Rounds `size` up to `base` times a power of four, to compile few shapes."""
    width = base
    while width < size:
        width *= 4
    return width


def _history_widths(known: np.ndarray, length: int) -> np.ndarray:
    """Width that each row's history needs: a quarter, half, three quarters or all of `length`."""
    quarter = -(-length // 4)
    read = np.clip(known, 1, length)
    return np.minimum(-(-read // quarter) * quarter, length)
