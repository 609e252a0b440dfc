"""Copied rows of marks: counted, told from chance, drawn as one."""

import csv

import numpy as np
import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.evaluation import audit
from xrec_jax.evaluation.ratings import summary as rating_summary
from xrec_jax.evaluation.ratings.copies import clusters, copies, rows_of_answers
from xrec_jax.evaluation.ratings.ratings import Answers, Preference, Rating, read_ratings

SYSTEMS, QUESTIONS = ("a", "b", "c"), ("clear", "true")


def answers(rows, group="g"):
    """Ratings of items, given `[items, systems, questions]`."""
    return Answers(
        tuple(
            Rating("", f"i{n}", system, question, float(row[i][j]), group)
            for n, row in enumerate(rows)
            for i, system in enumerate(SYSTEMS[: len(row)])
            for j, question in enumerate(QUESTIONS[: len(row[i])])
        )
    )


def test_copies_are_counted_and_told_from_chance():
    rng = np.random.default_rng(0)
    own = rng.integers(1, 11, (12, 3, 2))
    picked = np.concatenate([np.arange(12), rng.integers(0, 12, 48), np.zeros(20, int)])
    made = answers(own[picked])
    found = copies(rows_of_answers(made))["g"]
    assert (found.items, found.distinct, found.marks, found.repeated) == (80, 12, 6, 68)
    assert found.copied and set(found.most) == {f"i{n}" for n in np.flatnonzero(picked == 0)}
    assert found.chance < 12
    assert "80 items with 12 distinct rows of 6 marks" in str(found)
    # The order of the answers is no part of a row.
    turned = Answers(tuple(reversed(made.ratings)))
    assert copies(rows_of_answers(turned))["g"].distinct == 12


@pytest.mark.parametrize("shape", [(200, 1, 1), (200, 2, 1), (200, 1, 2), (200, 3, 2)])
@pytest.mark.parametrize("values", [3, 10])
def test_equal_rows_by_chance_are_not_held_against_a_table(shape, values):
    quality = np.random.default_rng(1).integers(0, 2, (200, 1, 1))  # of an item, seen by all
    marks = np.random.default_rng(2).integers(1, values, shape) + quality
    found = copies(rows_of_answers(answers(marks)))["g"]
    assert found.distinct == len(np.unique(marks.reshape(200, -1), axis=0))
    assert not found.copied


def test_comparisons_are_marks_in_either_direction():
    made = Answers(
        (),
        (
            Preference("r", "1", "a", "b", 1.0),
            Preference("r", "2", "b", "a", 0.0),
            Preference("r", "3", "a", "b", 0.5),
        ),
    )
    rows = rows_of_answers(made)
    assert rows["", "1"] == rows["", "2"] != rows["", "3"]


def test_equal_rows_are_drawn_as_one():
    rng = np.random.default_rng(3)
    own = rng.integers(1, 11, (15, 3, 2))
    picked = np.repeat(np.arange(15), rng.integers(1, 12, 15))
    made = answers(own[picked])
    rows = rows_of_answers(made)
    drawn = clusters(rows, copies(rows))
    assert len(set(drawn.values())) == 15
    summary = rating_summary.summary(made, clusters=drawn, resamples=3000)
    mean, apart = summary["a"]["clear/mean"], summary["a vs b"]["clear/difference"]
    values = own[picked, 0, 0]
    assert mean["value"] == pytest.approx(values.mean())
    assert mean["count"] == apart["count"] == summary["a vs b"]["clear/p"]["count"] == 15
    # A loop that draws rows, each with all of its copies.
    means = []
    for _ in range(3000):
        chosen = np.concatenate([values[picked == row] for row in rng.integers(0, 15, 15)])
        means.append(chosen.mean())
    np.testing.assert_allclose(
        [mean["low"], mean["high"]], np.quantile(means, [0.025, 0.975]), atol=0.15
    )
    plain = rating_summary.summary(made, resamples=500)["a"]["clear/mean"]
    assert plain["count"] == len(picked)
    assert mean["high"] - mean["low"] > 1.7 * (plain["high"] - plain["low"])
    honest = answers(rng.integers(1, 11, (40, 3, 2)))
    rows = rows_of_answers(honest)
    assert len(set(clusters(rows, copies(rows)).values())) == 40


def test_copied_rows_do_not_make_a_difference_significant():
    """Ten rows whose means differ by chance, each given to fifty items."""
    rng = np.random.default_rng(4)
    rejected = 0
    for _ in range(40):
        made = answers(np.repeat(rng.integers(1, 11, (10, 2, 1)), 50, axis=0))
        rows = rows_of_answers(made)
        drawn = {item: n // 50 for n, item in enumerate(rows)}
        found = rating_summary.differences(made.ratings, clusters=drawn, resamples=0)
        rejected += found["a vs b"]["clear/p"]["value"] < 0.05
    assert rejected <= 6  # 2 expected of 40; item by item nearly all are


def test_the_audit_tells_of_copied_rows():
    rng = np.random.default_rng(5)

    def table(rows):
        return [
            {"dataset": "d", "item": f"{n}", "model": model, "clear": str(c), "true": str(t)}
            for n, row in enumerate(rows)
            for model, (c, t) in zip(SYSTEMS, row, strict=True)
        ]

    def outcome(rows):
        return {one.code: one for one in audit.check_ratings(table(rows))}["ratings/repeated_rows"]

    own = rng.integers(1, 11, (30, 3, 2))
    assert outcome(own).count == 0 and outcome(own).total == 30
    copied = outcome(np.concatenate([own, own[:9], own[:1]]))
    assert (copied.count, copied.total, copied.severity) == (10, 40, "error")
    assert copied.examples[0].endswith("items 0, 30 and 39")
    assert "30 distinct rows of 6 marks, one of them 3 times" in copied.examples[0]


@needs_shared_data
def test_published_ratings_are_copied():
    path = SHARED / "llmxrec" / "human_ratings.csv"
    rows = rows_of_answers(read_ratings(path))
    found = copies(rows)
    distinct = {group: one.distinct for group, one in found.items()}
    assert distinct == {"steam": 39, "ml-100k": 50, "mind": 67}
    assert all(one.copied and (one.items, one.marks) == (500, 15) for one in found.values())
    assert len(found["ml-100k"].most) == 151
    assert len(set(clusters(rows, found).values())) == 39 + 50 + 67
    with path.open() as file:
        outcomes = audit.check_ratings(list(csv.DictReader(file)))
    one = {finding.code: finding for finding in outcomes}["ratings/repeated_rows"]
    assert (one.count, one.total) == (1500 - 39 - 50 - 67, 1500)
