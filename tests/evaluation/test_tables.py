"""Text tables of figures: at whatever cut-offs a run was tested."""

import math

import pytest

from xrec_jax.evaluation.ranking.metrics import main_cutoff
from xrec_jax.evaluation.tables import cell, ranking_table


def figures(*ks):
    names = [
        f"{part}/{kind}@{k}"
        for part in ("valid", "test", "test_unmasked")
        for kind in ("ndcg", "hit", "recall", "mrr")
        for k in ks
    ]
    return {name: {"value": 0.5, "low": None, "high": None, "count": 3} for name in names}


@pytest.mark.parametrize(
    ("ks", "k", "last"),
    [
        ((5, 10, 20), 10, 20),
        ((1, 5), 5, 5),
        ((3,), 3, 3),
        ((1, 5, 50), 5, 50),
        ((20, 100), 100, 20),
    ],
)
def test_a_table_has_figures_at_any_cutoffs(ks, k, last):
    assert main_cutoff(ks) == k
    header, _, row = ranking_table({"bpr": figures(*ks)}).splitlines()
    assert header.split() == [
        "system",
        f"test/ndcg@{k}",
        f"test/hit@{k}",
        f"test/recall@{last}",
        f"test/mrr@{k}",
        f"test_unmasked/ndcg@{k}",
    ]
    assert row.split() == ["bpr", *[".5000"] * 5]


def test_a_table_of_nothing():
    assert "ndcg@10" in ranking_table({}) and "bpr" in ranking_table({"bpr": {}})
    for value in (None, math.nan):
        assert cell({"value": value, "low": None, "high": None}) == "-"
