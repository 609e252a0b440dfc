"""Ranking metrics of users from the ranks of their held-out items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def main_cutoff(ks: Iterable[int]) -> int:
    """Cut-off of the main metric: 10 if a run has it, otherwise the middle one."""
    ks = sorted(ks)
    return 10 if 10 in ks or not ks else ks[len(ks) // 2]


def ranking_metrics(
    ranks: np.ndarray, start: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Recall, Hit, NDCG and MRR at each k, with one value per user.

    With R the ranks of a user's held-out items:

    * recall@k = |{r in R: r <= k}| / |R|
    * hit@k = 1 if any r <= k
    * ndcg@k = sum_{r in R, r <= k} 1 / log2(1 + r), over the same sum for ranks 1 .. min(k, |R|)
    * mrr@k = 1 / min(R) if min(R) <= k, else 0

    Args:
      ranks: `[targets]`, user after user, from 1.
      start: `[users + 1]` int, user u's ranks are `ranks[start[u]:start[u + 1]]`; none is empty.
      ks: cut-offs.

    Returns:
      `{"ndcg@10": [users] float64, ...}`.
    """
    ranks = np.asarray(ranks, np.float64)
    count = np.diff(start)
    first = start[:-1]
    gain = 1.0 / np.log2(1.0 + ranks)
    # A segment of `reduceat` is one user's ranks; an empty one would take its neighbour's.
    best = np.minimum.reduceat(ranks, first)
    # `ideal[n]` is the gain of n targets on ranks 1 to n.
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(2.0 + np.arange(count.max())))])
    metrics = {}
    for k in ks:
        within = ranks <= k
        hits = np.add.reduceat(within.astype(np.float64), first)
        metrics[f"recall@{k}"] = hits / count
        metrics[f"hit@{k}"] = (hits > 0).astype(np.float64)
        metrics[f"ndcg@{k}"] = np.add.reduceat(within * gain, first) / ideal[np.minimum(count, k)]
        metrics[f"mrr@{k}"] = np.where(best <= k, 1.0 / best, 0.0)
    return metrics
