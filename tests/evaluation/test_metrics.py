"""Ranking metrics: hand-worked cases and a loop over users."""

import math

import numpy as np
import pytest

from xrec_jax.evaluation.ranking.metrics import ranking_metrics


def test_hand_worked():
    # Users with held-out items at ranks {1}, {3}, {2, 7, 4}, {11, 1} and {6}.
    ranks, start = np.array([1, 3, 2, 7, 4, 11, 1, 6]), np.array([0, 1, 2, 5, 7, 8])
    found = ranking_metrics(ranks, start, (1, 5))
    log2 = math.log2
    ideal = [1, 1 + 1 / log2(3), 1 + 1 / log2(3) + 1 / 2]  # for 1, 2 and 3 held-out items
    expected = {
        "recall@1": [1, 0, 0, 1 / 2, 0],
        "hit@1": [1, 0, 0, 1, 0],
        "ndcg@1": [1, 0, 0, 1, 0],
        "mrr@1": [1, 0, 0, 1, 0],
        "recall@5": [1, 1, 2 / 3, 1 / 2, 0],
        "hit@5": [1, 1, 1, 1, 0],
        "ndcg@5": [1, 1 / 2, (1 / log2(3) + 1 / log2(5)) / ideal[2], 1 / ideal[1], 0],
        "mrr@5": [1, 1 / 3, 1 / 2, 1, 0],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def naive(ranks, k):
    """recall, hit, ndcg and mrr of one user."""
    near = [r for r in ranks if r <= k]
    gain = sum(1 / math.log2(1 + r) for r in near)
    ideal = sum(1 / math.log2(1 + r) for r in range(1, min(k, len(ranks)) + 1))
    return (
        len(near) / len(ranks),
        float(bool(near)),
        gain / ideal,
        max((1 / r for r in near), default=0.0),
    )


@pytest.mark.parametrize("ks", [(1,), (5, 10, 20), (3, 50)])
def test_against_a_loop(ks):
    rng = np.random.default_rng(len(ks))
    users = [rng.choice(40, rng.integers(1, 13), replace=False) + 1 for _ in range(60)]
    start = np.concatenate([[0], np.cumsum([len(u) for u in users])])
    found = ranking_metrics(np.concatenate(users), start, ks)
    for k in ks:
        for column, name in enumerate(("recall", "hit", "ndcg", "mrr")):
            expected = [naive(ranks.tolist(), k)[column] for ranks in users]
            np.testing.assert_allclose(found[f"{name}@{k}"], expected, rtol=1e-12, atol=1e-15)
            assert found[f"{name}@{k}"].dtype == np.float64


def test_the_best_ranking_scores_one():
    for count in (1, 3, 9):
        found = ranking_metrics(np.arange(1, count + 1), np.array([0, count]), (2, 20))
        assert found["ndcg@2"] == found["ndcg@20"] == found["mrr@2"] == found["recall@20"] == 1
        np.testing.assert_allclose(found["recall@2"], min(2, count) / count)
