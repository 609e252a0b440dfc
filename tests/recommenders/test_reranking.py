"""Ranks and reranked lists against plain sorts."""

import jax
import numpy as np

from xrec_jax.recommenders.explained.reranking import rank_of, rerank


def naive_rank(scores, target, seen):
    ahead = 0
    for item, score in enumerate(scores):
        if item != target and item not in seen and not score < scores[target]:
            ahead += 1
    return 1 + ahead if target >= 0 else 0


def rank_case(rows=40, items=17):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (rows, items)) / 4.0  # many ties
    scores[::7, 3] = np.nan
    target = rng.integers(-1, items, rows)
    seen = rng.integers(-1, items, (rows, 8))  # repeated, and sometimes the target itself
    return scores.astype(np.float32), target.astype(np.int32), seen.astype(np.int32)


def test_rank_of():
    scores, target, seen = rank_case()
    expected = [
        naive_rank(s, y, set(m.tolist())) for s, y, m in zip(scores, target, seen, strict=True)
    ]
    np.testing.assert_array_equal(jax.jit(rank_of)(scores, target, seen), expected)


def test_rerank_is_a_sort():
    scores, target, seen = rank_case()
    scores = np.nan_to_num(scores, nan=1.25)
    rng = np.random.default_rng(1)
    candidates = rng.permuted(np.tile(np.arange(17), (40, 1)), axis=1)[:, :6].astype(np.int32)
    candidates[rng.random((40, 6)) < 0.2] = -1
    new = (rng.integers(0, 4, (40, 6)) / 2.0).astype(np.float32)
    new[candidates < 0] = 9.0
    found = jax.jit(rerank)(scores, candidates, new, target, seen)
    inside = 0
    for row in range(40):
        y, masked = int(target[row]), set(seen[row].tolist()) - {int(target[row])}
        # Sorted by head or tail, then score; the target stands behind all that tie with it.
        order = []
        for item in set(range(17)) - masked:
            place = np.flatnonzero(candidates[row] == item)
            score = new[row, place[0]] if len(place) else scores[row, item]
            order.append((not len(place), -score, item == y, item))
        order = [item for *_, item in sorted(order)]
        inside += y in candidates[row].tolist()
        assert found[row] == (order.index(y) + 1 if y >= 0 else 0)
    assert 3 < inside < 37
