"""Figures of told attributes against naive loops and cases worked by hand."""

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation import attributes as scoring
from xrec_jax.evaluation.statistics.significance import mcnemar, sign_flip
from xrec_jax.text.records.attributes import Attribute

GENDER = Attribute("user gender", ("female", "male"))
KIND = Attribute("kind", ("bar", "cafe", "park"))
PRICE = Attribute("price", ("1", "2", "3", "4"), numeric=True, low=1, high=4)
AGE = Attribute("age", numeric=True, low=11, high=68.5)


def users(names, resamples=0):
    return scoring.Users(names, resamples=resamples)


def values(table):
    return {name: entry["value"] for name, entry in table.items()}


# Reading answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"user gender": "male", "age": 47}', ("male", 47.0)),
        ('  {"age": "47.5", "user gender": " Female "}\n', ("female", 47.5)),
        ('{"user gender": "male", "age": 47, "more": [1]}', ("male", 47.0)),
        ('{"user gender": "unknown", "age": 47}', (None, 47.0)),
        ('{"user gender": "male"}', ("male", None)),
        ('{"user gender": "male", "age": 10.9}', ("male", None)),  # out of range
        ('{"user gender": "male", "age": "about 47"}', ("male", None)),
        ('{"user gender": "male", "age": "4_7"}', ("male", None)),
        ('{"user gender": true, "age": true}', (None, None)),
        ('{"user gender": ["male"], "age": null}', (None, None)),
        ('{"user gender": "male", "age": 47} ok', (None, None)),
        ('```json\n{"user gender": "male", "age": 47}\n```', (None, None)),
        ('{"user gender": "male", "age": 47', (None, None)),
        ('{"user gender": "male", "age": 47, "age": 48}', (None, None)),
        ('{"user gender": "male", "age": NaN}', (None, None)),
        ('{"user gender": male, "age": 47}', (None, None)),
        ('["male", 47]', (None, None)),
        ("[" * 100_000, (None, None)),
        ('{"age": ' + "9" * 5000 + "}", (None, None)),
        ("", (None, None)),
    ],
)
def test_an_answer_is_read_strictly(text, expected):
    found = scoring.parse_answer(text, [GENDER, AGE])
    assert found == dict(zip(("user gender", "age"), expected, strict=True))


def test_a_choice_among_numbers():
    told = [scoring.parse_answer(f'{{"price": {x}}}', [PRICE])["price"] for x in (3, '"2"', 4.0)]
    assert told == [3.0, 2.0, 4.0]
    assert scoring.parse_answer('{"price": 2.5}', [PRICE]) == {"price": None}
    assert scoring.parse_answer('{"price": 5}', [PRICE]) == {"price": None}


# Figures


def test_macro_f1_by_hand():
    truth = ["bar", "bar", "bar", "cafe", "cafe"]
    told = ["bar", "cafe", None, "cafe", "park"]
    # bar: 1 true positive, 0 false, 2 missed: 1/2. cafe: 1, 1, 1: 1/2. park is true of no case.
    found = users("abcde").macro_f1(truth, told)
    assert found == {"value": 0.5, "low": None, "high": None, "count": 5}
    told = ["bar", "bar", "cafe", "cafe", "bar"]
    # bar: 2, 1, 1: 4/6. cafe: 1, 1, 1: 2/4.
    assert users("abcde").macro_f1(truth, told)["value"] == pytest.approx((4 / 6 + 0.5) / 2)


def naive_f1(truth, told):
    scores = []
    for one in set(truth):
        tp = sum(t == one and g == one for t, g in zip(truth, told, strict=True))
        said, real = sum(g == one for g in told), sum(t == one for t in truth)
        precision = tp / said if said else 0.0
        recall = tp / real
        scores.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    return sum(scores) / len(scores)


def test_figures_against_loops():
    rng = np.random.default_rng(4)
    names = [f"u{n}" for n in rng.integers(0, 13, 37)]
    truth = [KIND.values[n] for n in rng.integers(0, 3, 37)]
    told = [(*KIND.values, None)[n] for n in rng.integers(0, 4, 37)]
    found = values(
        scoring.figures(KIND, truth, told, users(names), known=truth, within=5)
        | scoring.parse_failures(KIND, told, users(names))
    )
    assert found == {
        "kind/accuracy": pytest.approx(sum(a == b for a, b in zip(truth, told, strict=True)) / 37),
        "kind/macro_f1": pytest.approx(naive_f1(truth, told)),
        "kind/parse_failures": pytest.approx(told.count(None) / 37),
    }


def test_errors_of_numbers_by_hand():
    known = [20.0, 31.5, 60.0]
    truth, told = [25.0, 55.5, 30.0, 40.0], [29.5, None, 36.0, None]
    # A failed answer counts as the far end of what is known: 55.5 - 20, and 60 - 40 or 40 - 20.
    away = [4.5, 35.5, 6.0, 20.0]
    assert scoring.errors(AGE, truth, told, known).tolist() == away
    found = values(scoring.figures(AGE, truth, told, users("abcd"), known=known, within=5))
    assert found == {"age/accuracy": 0.0, "age/mae": np.mean(away), "age/within_5": 0.25}
    # A failed answer is never near, even where no value is far.
    found = scoring.figures(AGE, [20.0], [None], users("a"), known=[20.0, 21.0], within=5)
    assert values(found)["age/within_5"] == 0.0


def test_a_choice_among_numbers_has_f1_and_error():
    found = scoring.figures(
        PRICE, [1.0, 2.0, 2.0], [1.0, 4.0, None], users("abc"), known=[1.0, 3.0], within=5
    )
    f1 = (1.0 + 0.0) / 2
    assert values(found) == {
        "price/accuracy": pytest.approx(1 / 3),
        "price/macro_f1": f1,
        "price/mae": pytest.approx((0 + 2 + 1) / 3),
    }


def test_names_of_metrics_have_no_blanks():
    found = scoring.figures(GENDER, ["male"], ["male"], users("a"), known=["male"], within=5)
    assert found.keys() == {"user_gender/accuracy", "user_gender/macro_f1"}


# Constants


def test_the_best_constant_of_each_metric():
    known = [20.0, 21.0, 23.0, 40.0, 40.0, 61.0]
    found = scoring.best_constants(AGE, known, within=3)
    assert found == {"accuracy": 40.0, "mae": 23.0, "within": 20.0}
    assert scoring.best_constants(KIND, ["park", "bar"], within=3) == {"accuracy": "bar"}
    with pytest.raises(UserError, match="'kind' does not occur in the training part"):
        scoring.best_constants(KIND, [], within=3)


def test_figures_of_the_constants():
    known = [20.0, 21.0, 23.0, 40.0, 40.0, 61.0]
    truth = [40.0, 22.5, 24.0]
    found = values(scoring.constant_figures(AGE, truth, users("abc"), known=known, within=3))
    assert found == {
        "age/accuracy": pytest.approx(1 / 3),  # 40
        "age/mae": pytest.approx((17 + 0.5 + 1) / 3),  # 23
        "age/within_3": pytest.approx(1 / 3),  # 20
    }
    found = values(
        scoring.constant_figures(
            KIND, ["bar", "park"], users("ab"), known=["park", "bar", "park"], within=3
        )
    )
    assert found == {"kind/accuracy": 0.5, "kind/macro_f1": pytest.approx((2 / 3) / 2)}


# Intervals and tests


def test_intervals_draw_whole_users():
    """A user with many equal cases weighs as one draw: wider than if cases were drawn."""
    names = [name for name in "abcdefgh" for _ in range(20)]
    truth = ["bar"] * 160
    told = ["bar" if name in "abcd" else "cafe" for name in names]
    by_user = users(names, resamples=500).mean(scoring.right(truth, told))
    by_case = users(list(map(str, range(160))), resamples=500).mean(scoring.right(truth, told))
    assert by_user["value"] == by_case["value"] == 0.5
    assert by_user["count"] == 8 and by_case["count"] == 160
    width = [one["high"] - one["low"] for one in (by_user, by_case)]
    # Standard errors are in the ratio of the roots of the numbers drawn: sqrt(160 / 8).
    assert width[0] / width[1] == pytest.approx(np.sqrt(20), rel=0.15)


def test_an_interval_against_a_loop():
    rng = np.random.default_rng(0)
    names = [f"u{n}" for n in rng.integers(0, 7, 23)]
    # One class is true of one user only, so that resamples without it are frequent.
    truth = ["park" if name == "u0" else KIND.values[rng.integers(2)] for name in names]
    told = [(*KIND.values, None)[n] for n in rng.integers(0, 4, 23)]
    found = users(names, resamples=300)
    draws = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=300)
    order = sorted(set(names))
    means, f1 = [], []
    for draw in draws:
        places = [
            place
            for user, times in zip(order, draw, strict=True)
            for _ in range(times)
            for place, name in enumerate(names)
            if name == user
        ]
        true, given = [truth[n] for n in places], [told[n] for n in places]
        means.append(np.mean([a == b for a, b in zip(true, given, strict=True)]))
        f1.append(naive_f1(true, given))
    for one, naive in (
        (found.mean(scoring.right(truth, told)), means),
        (found.macro_f1(truth, told), f1),
    ):
        assert (one["low"], one["high"]) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])))


def test_comparison_of_two_systems():
    truth = ["bar"] * 9
    first, second = ["bar"] * 8 + [None], ["bar"] * 2 + ["cafe"] * 6 + ["bar"]
    found = values(scoring.compare(KIND, truth, first, second, users("abcdefghi"), known=truth))
    a, b = [1] * 8 + [0], [1] * 2 + [0] * 6 + [1]
    assert found == {
        "kind/accuracy_difference": pytest.approx(5 / 9),
        "kind/p": pytest.approx(mcnemar(a, b)),
    }
    # Three users with three cases each: signs of their totals, 2, 3 and 0.
    found = values(scoring.compare(KIND, truth, first, second, users("aaabbbccc"), known=truth))
    totals = ([3, 3, 2], [2, 0, 1])
    assert found["kind/p"] == pytest.approx(sign_flip(*totals))
    assert found["kind/p"] == pytest.approx(2 / 8)


def test_comparison_of_numbers():
    found = values(
        scoring.compare(
            AGE,
            [20.0, 30.0],
            [22.5, 30.0],
            [26.0, None],
            users("ab"),
            known=[20.0, 44.0],
            prefix="readout_",
        )
    )
    assert found == {
        "age/readout_accuracy_difference": 0.5,
        "age/readout_p": 1.0,
        "age/readout_mae_difference": pytest.approx((2.5 - 6 + 0 - 14) / 2),
        "age/readout_mae_p": 0.5,
    }


def test_comparison_with_the_constants():
    known = [20.0, 21.0, 40.0, 40.0]
    truth, told = [40.0, 21.0, 25.0], [40.0, 21.0, 26.0]
    found = values(scoring.compare_constant(AGE, truth, told, users("abc"), known=known))
    assert found["age/accuracy_difference"] == pytest.approx(2 / 3 - 1 / 3)  # against 40
    assert found["age/mae_difference"] == pytest.approx((0 - 19 + 0 - 0 + 1 - 4) / 3)  # against 21


def test_a_split_that_shares_users_is_refused():
    scoring.check_disjoint(["a", "b"], ["c"])
    with pytest.raises(UserError, match="2 users stand in training and held-out part, such as b"):
        scoring.check_disjoint(["a", "c", "b"], ["c", "b", "d"])
