"""Fair judging: hand-worked ratios, strengths against scipy, judges with a known fault."""

import itertools

import numpy as np
import pytest
from scipy import optimize, special, stats

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation import judging
from xrec_jax.evaluation.judging import Comparisons, compare, length_control, resampling


def table(rows, systems=("A", "B", "C"), words=None):
    """Comparisons from (prompt, one, other, forward, backward)."""
    prompts, one, other, forward, backward = map(np.array, zip(*rows, strict=True))
    words = np.zeros((len(rows), 2), int) if words is None else np.array(words)
    number = np.array([systems.index(name) for name in one])
    rival = np.array([systems.index(name) for name in other])
    return Comparisons(systems, prompts, number, rival, forward * 1.0, backward * 1.0, words)


# Prompt 0: A beats B in both orders, A and C disagree; prompt 1: B beats A weakly, C beats B.
HAND = [
    (0, "A", "B", 0.9, 0.2),
    (0, "A", "C", 0.6, 0.7),
    (1, "A", "B", 0.45, 0.53),
    (1, "B", "C", 0.1, 0.95),
]


def random_table(seed=0, prompts=40, systems=("A", "B", "C", "D"), strengths=None):
    rng = np.random.default_rng(seed)
    strengths = rng.normal(size=len(systems)) if strengths is None else np.array(strengths)
    rows, words = [], []
    for prompt in range(prompts):
        for a, b in itertools.combinations(range(len(systems)), 2):
            if rng.random() < 0.15:
                continue
            logit = strengths[a] - strengths[b] + rng.normal()
            rows.append(
                (
                    prompt,
                    systems[a],
                    systems[b],
                    special.expit(logit + rng.normal() / 2),
                    special.expit(-logit + rng.normal() / 2),
                )
            )
            words.append(rng.integers(20, 90, 2))
    return table(rows, systems, words)


# Verdicts, ratios, matrix


def test_points_keep_ties():
    found = table(HAND)
    np.testing.assert_array_equal(judging.points(found), [1.0, 0.5, 0.0, 0.0])
    # Mean probabilities are .85, .45, .46 and .075.
    np.testing.assert_array_equal(judging.points(found, margin=0.05), [1.0, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(judging.points(found, soft=True), [0.85, 0.45, 0.46, 0.075])


def test_one_undecided_order_is_a_tie():
    found = table([(0, "A", "B", 0.5, 0.1), (1, "A", "B", 0.8, 0.5), (2, "A", "B", 0.5, 0.5)])
    np.testing.assert_array_equal(judging.points(found), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(judging.consistent(found), [False, False, True])


def test_win_ratios_by_hand():
    ratios = judging.win_ratios(table(HAND), resamples=0)
    assert ratios["A"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert ratios["B"]["value"] == pytest.approx((0 + 1 + 0) / 3)
    assert ratios["C"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert ratios["A"]["low"] is None and ratios["A"]["count"] == 2
    ties = judging.tie_rates(table(HAND), resamples=0)
    assert [ties[name]["value"] for name in "ABC"] == pytest.approx([1 / 3, 0, 1 / 2])


def test_win_matrix_by_hand():
    np.testing.assert_array_equal(
        judging.win_matrix(table(HAND)), [[0, 1, 0.5], [1, 0, 0], [0.5, 1, 0]]
    )


def test_pairs_are_turned_to_the_name_that_is_asked_for():
    found = table(HAND).pair("C", "B")
    assert (found.forward[0], found.backward[0]) == (0.95, 0.1)
    figures = judging.pair_figures(table(HAND), resamples=0)
    assert figures.keys() == {"A vs B", "A vs C", "B vs C"}
    assert figures["A vs B"]["win/ratio"]["value"] == 0.5
    assert figures["A vs B"]["win/consistency"]["value"] == 1.0
    assert figures["A vs C"]["win/ties"]["value"] == 1.0


def test_position_bias_by_hand():
    bias = judging.position_bias(table(HAND))
    np.testing.assert_array_equal(bias, [0.0, 0.5, 0.0, 0.0])


def test_the_interval_is_that_of_prompts_drawn_whole():
    found = random_table(3)
    ratio = judging.win_ratios(found, resamples=4000)["B"]
    gained = judging.points(found)
    mine = {}
    for prompt, one, other, point in zip(
        found.prompts, found.one, found.other, gained, strict=True
    ):
        if 1 in (one, other):
            mine.setdefault(prompt, []).append(point if one == 1 else 1 - point)
    rng = np.random.default_rng(99)
    prompts = sorted(set(found.prompts.tolist()))
    sampled = []
    for _ in range(3000):
        drawn = [value for p in rng.choice(prompts, len(prompts)) for value in mine.get(p, [])]
        sampled.append(np.mean(drawn))
    assert ratio["value"] == pytest.approx(np.mean([v for row in mine.values() for v in row]))
    low, high = np.quantile(sampled, [0.025, 0.975])
    assert (ratio["low"], ratio["high"]) == pytest.approx((low, high), abs=0.012)


# Strengths


def reference_strengths(wins, virtual=1.0):
    wins = (wins + virtual / 2) * (1 - np.eye(len(wins)))

    def loss(free):
        s = np.append(free, -free.sum())
        return -(wins * special.log_expit(s[:, None] - s[None, :])).sum()

    found = optimize.minimize(loss, np.zeros(len(wins) - 1), method="BFGS", tol=1e-10).x
    return np.append(found, -found.sum())


@pytest.mark.parametrize("seed", range(4))
def test_bradley_terry_is_the_optimum_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 60, (5, 5)) / 2 * rng.integers(0, 2, (5, 5))
    found = judging.bradley_terry(wins)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found, reference_strengths(wins), atol=2e-4)


def test_two_systems_have_the_closed_form():
    found = judging.bradley_terry(np.array([[0.0, 29.5], [9.5, 0.0]]))
    assert found[0] - found[1] == pytest.approx(np.log(30 / 10))


def test_a_system_that_never_loses_stays_finite_and_many_problems_at_once_are_the_same():
    never = np.array([[0, 4000.0, 4000.0], [0, 0, 2000.0], [0, 2000.0, 0]])
    other = np.array([[0, 3.0, 0.5], [1.0, 0, 2.0], [2.5, 7.0, 0]])
    both = judging.bradley_terry(np.stack([never, other]))
    assert np.all(np.isfinite(both)) and both[0, 0] > 4
    np.testing.assert_allclose(both[0], judging.bradley_terry(never), atol=1e-9)
    np.testing.assert_allclose(both[1], judging.bradley_terry(other), atol=1e-9)
    np.testing.assert_allclose(both[0], reference_strengths(never), atol=5e-3)


def test_strengths_have_intervals_that_hold_the_truth():
    truth = np.array([1.2, 0.1, -0.3, -1.0])
    found = judging.strengths(random_table(5, prompts=150, strengths=truth), resamples=200)
    assert list(found) == ["A", "B", "C", "D"]
    order = [found[name]["value"] for name in found]
    assert order == sorted(order, reverse=True)
    for name, estimate in found.items():
        assert estimate["low"] < estimate["value"] < estimate["high"], name
        assert estimate["count"] == 150


@pytest.mark.parametrize("wins", [np.ones((2, 3)), np.ones((1, 1)), -np.ones((2, 2))])
def test_wins_that_are_no_table_are_refused(wins):
    with pytest.raises(UserError, match="wins must"):
        judging.bradley_terry(wins)


# Length


def reference_fit(found, gained):
    features, size = length_control.difference(found), len(found.systems)

    def loss(x):
        logit = x[found.one] - x[found.other] + x[size] * features
        likelihood = gained * special.log_expit(logit) + (1 - gained) * special.log_expit(-logit)
        return -likelihood.sum() + 0.5e-3 * (x**2).sum()

    x = optimize.minimize(loss, np.zeros(size + 1), method="BFGS", tol=1e-9).x
    return x[:size] - x[:size].mean(), x[size]


@pytest.mark.parametrize("soft", [False, True])
def test_length_control_is_the_optimum_that_scipy_finds(soft):
    found = random_table(7, prompts=30)
    gained = judging.points(found, soft=soft)
    fitted = length_control.fit(found, gained)
    strengths, slope = reference_fit(found, gained)
    np.testing.assert_allclose(fitted.strengths, strengths, atol=1e-3)
    assert fitted.slope == pytest.approx(slope, abs=1e-3)
    ratios = judging.length_controlled(found, soft=soft, resamples=0)
    others = [special.expit(strengths[1] - strengths[k]) for k in (0, 2, 3)]
    assert ratios["B"]["value"] == pytest.approx(np.mean(others), abs=1e-3)


def test_a_judge_of_length_is_neutralised():
    """Prefers the longer text, whoever wrote it; A merely tends to write more."""
    rng = np.random.default_rng(0)
    texts = {
        name: ["w " * int(n) for n in rng.integers(low, low + 40, 120)]
        for name, low in (("A", 40), ("B", 30), ("C", 30))
    }

    def judge(prompts, first, second):
        return special.expit([(len(a) - len(b)) / 12 for a, b in zip(first, second, strict=True)])

    found = compare(judge, [f"p{i}" for i in range(120)], texts).table
    assert judging.win_ratios(found, resamples=0)["A"]["value"] > 0.6
    controlled = judging.length_controlled(found, resamples=100)
    for name, estimate in controlled.items():
        assert estimate["value"] == pytest.approx(0.5, abs=0.07), name
        assert estimate["low"] <= 0.5 <= estimate["high"], name


def test_texts_of_equal_length_leave_the_ratio_of_the_strengths():
    found = random_table(8)
    found = Comparisons(**{**vars(found), "words": np.full((len(found), 2), 50)})
    strengths = judging.bradley_terry(judging.win_matrix(found), virtual_ties=1e-6)
    expected = [
        np.mean([special.expit(s - other) for j, other in enumerate(strengths) if j != i])
        for i, s in enumerate(strengths)
    ]
    ratios = judging.length_controlled(found, resamples=0)
    assert [e["value"] for e in ratios.values()] == pytest.approx(expected, abs=1e-3)


# Judges


def test_a_judge_that_knows_only_places_gives_one_half():
    prompts = [f"p{i}" for i in range(7)]
    texts = {name: [f"{name} {i}" for i in range(7)] for name in "ABC"}
    found = compare(lambda p, a, b: np.full(len(p), 0.2), prompts, texts).table
    assert [e["value"] for e in judging.win_ratios(found).values()] == [0.5, 0.5, 0.5]
    assert not judging.consistent(found).any()
    np.testing.assert_array_equal(judging.position_bias(found), -0.5)
    np.testing.assert_array_equal(judging.points(found, soft=True), 0.5)


def test_compare_asks_about_every_pair_in_both_orders():
    asked = []

    def judge(prompts, first, second):
        asked.extend(zip(prompts, first, second, strict=True))
        return np.linspace(0.1, 0.9, len(prompts))

    texts = {"A": ["a0", "a1 x"], "B": ["b0", None], "C": ["", "c1"]}
    found = compare(judge, ["p0", "p1"], texts)
    assert asked == [
        ("p0", "a0", "b0"),
        ("p1", "a1 x", "c1"),
        ("p0", "b0", "a0"),
        ("p1", "c1", "a1 x"),
    ]
    assert found.missing == 4 and found.refused == 0
    np.testing.assert_allclose(found.table.forward, np.linspace(0.1, 0.9, 4)[:2])
    np.testing.assert_allclose(found.table.backward, np.linspace(0.1, 0.9, 4)[2:])
    np.testing.assert_array_equal(found.table.words, [[1, 1], [2, 1]])


def test_what_a_judge_refuses_is_left_out_and_counted():
    def judge(prompts, first, second):
        return np.where([prompt == "long" for prompt in prompts], np.nan, 0.75)

    found = compare(judge, ["long", "short"], {"A": ["x", "y"], "B": ["z", "t"]})
    assert len(found.table) == 1 and found.refused == 1
    with pytest.raises(UserError, match="could read none of the 1 pairs"):
        compare(judge, ["long"], {"A": ["x"], "B": ["z"]})


def test_prompts_of_equal_text_are_one_cluster():
    found = compare(
        lambda p, a, b: np.full(len(p), 0.75), ["p", "q", "p"], {"A": list("xyz"), "B": list("uvw")}
    )
    np.testing.assert_array_equal(found.table.prompts, [0, 1, 0])


@pytest.mark.parametrize(
    "given, message",
    [(lambda p, a, b: np.zeros(3), "shape"), (lambda p, a, b: np.full(len(p), 1.5), "from 0 to 1")],
)
def test_a_judge_that_gives_no_probabilities_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        compare(given, ["p"], {"A": ["x"], "B": ["y"]})


def test_too_little_to_compare_is_refused():
    judge = lambda p, a, b: np.full(len(p), 0.5)  # noqa: E731
    for texts, message in (
        ({"A": ["x"]}, "two systems"),
        ({"A": ["x"], "B": ["y", "z"]}, "2 texts for 1 prompts"),
        ({"A": ["x"], "B": [None]}, "nothing to compare"),
    ):
        with pytest.raises(UserError, match=message):
            compare(judge, ["p"], texts)


def test_tables_that_cannot_be_are_refused():
    for rows, message in (
        ([(0, "A", "A", 0.5, 0.5)], "itself"),
        ([(0, "A", "B", 1.5, 0.5)], "probabilities"),
    ):
        with pytest.raises(UserError, match=message):
            table(rows)
    with pytest.raises(UserError, match="margin"):
        judging.points(table(HAND), margin=0.5)


# Calibration, agreement and baselines


def test_calibration_error_by_hand():
    p = [0.95, 0.93, 0.1, 0.84, 0.55, 0.52]
    better = [1, 2, 2, 2, 1, 2]
    # Bins are .05 wide. Confidences .95 and .93 in one of them, right and wrong; .9 in the next
    # below, right; .84 two below, wrong; .55 and .52 in the first, right and wrong.
    expected = abs(1 - 0.95 - 0.93) + abs(1 - 0.9) + abs(0 - 0.84) + abs(1 - 0.55 - 0.52)
    assert judging.expected_calibration_error(p, better) == pytest.approx(expected / 6)
    assert judging.expected_calibration_error([1.0, 0.0, 1.0], [1, 2, 1]) == 0.0
    whole = abs(3 - np.sum([0.95, 0.93, 0.9, 0.84, 0.55, 0.52]))
    assert judging.expected_calibration_error(p, better, bins=1) == pytest.approx(whole / 6)


def test_a_calibrated_judge_has_a_small_error_and_a_sure_one_has_not():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=20_000)
    better = 2 - (rng.uniform(size=p.size) < p)
    assert judging.expected_calibration_error(p, better) < 0.015
    surer = special.expit(4 * special.logit(p))
    assert judging.expected_calibration_error(surer, better) > 0.1


def test_calibration_figures_with_intervals():
    rng = np.random.default_rng(2)
    p, prompts = rng.uniform(size=90), np.repeat(np.arange(30), 3)
    better = 2 - (rng.uniform(size=90) < p)
    found = judging.calibration(p, better, [f"p{i}" for i in prompts], resamples=400)
    first = better == 1
    given = np.where(first, p, 1 - p)
    assert found["accuracy"]["value"] == pytest.approx(np.mean((p > 0.5) == first))
    assert found["log_loss"]["value"] == pytest.approx(-np.mean(np.log(given)))
    assert found["brier"]["value"] == pytest.approx(np.mean((p - first) ** 2))
    assert found["ece"]["value"] == pytest.approx(judging.expected_calibration_error(p, better))
    for estimate in found.values():
        assert estimate["count"] == 30
        assert estimate["low"] < estimate["high"]
    with_none = judging.calibration(p, better, prompts, resamples=0)
    assert all(e["low"] is None for e in with_none.values())


def test_the_interval_of_the_calibration_error_holds_the_truth():
    """Answers of a judge that is a little too sure; one drawn anew gets twice the error."""
    rng = np.random.default_rng(0)
    holds, points = 0, np.arange(100)
    for number in range(100):
        p = rng.random(600)
        # Within a bin true and given probability differ by 0.4 |p - 1/2|: 0.1 on average.
        better = np.where(rng.random(600) < 0.6 * p + 0.2, 1, 2)
        found = judging.calibration(p, better, points.repeat(6), resamples=200, seed=number)["ece"]
        assert found["low"] <= found["value"] <= found["high"]
        holds += found["low"] <= 0.1 <= found["high"]
    assert holds >= 87
    p = rng.random(80)
    calm = judging.calibration(p, np.where(rng.random(80) < p, 1, 2), points[:80], resamples=500)
    assert calm["ece"]["low"] < 0.02 < calm["ece"]["value"]


def test_whole_clusters_widen_the_interval():
    """Rows that repeat their prompt's value tell no more than one of them."""
    values = np.random.default_rng(3).uniform(size=50)
    alone = judging.clustered_mean(values, np.arange(50), resamples=2000)
    repeated = judging.clustered_mean(np.repeat(values, 4), np.repeat(np.arange(50), 4))
    apart = judging.clustered_mean(np.repeat(values, 4), np.arange(200), resamples=2000)
    width = {
        name: e["high"] - e["low"]
        for name, e in (("alone", alone), ("repeated", repeated), ("apart", apart))
    }
    assert width["repeated"] == pytest.approx(width["alone"], rel=0.1)
    assert width["apart"] == pytest.approx(width["alone"] / 2, rel=0.1)
    expected = 2 * stats.norm.ppf(0.975) * values.std() / np.sqrt(50)
    assert width["alone"] == pytest.approx(expected, rel=0.1)


def test_an_even_probability_is_half_right_and_certain_errors_have_a_finite_loss():
    np.testing.assert_array_equal(judging.right([0.5, 0.7, 0.2], [1, 2, 2]), [0.5, 0, 1])
    found = judging.calibration([1.0, 0.0], [2, 2], [0, 1], resamples=0)
    assert np.isfinite(found["log_loss"]["value"])


@pytest.mark.parametrize("p, better", [([0.5], [1, 2]), ([1.2], [1]), ([0.5], [0]), ([], [])])
def test_labels_and_probabilities_that_do_not_fit_are_refused(p, better):
    with pytest.raises(UserError):
        judging.expected_calibration_error(p, better)


def test_baselines():
    assert judging.majority([1, 2, 2]) == 2 and judging.majority([1, 2]) == 1
    np.testing.assert_array_equal(judging.constant([2, 2, 1], 3), [2, 2, 2])
    guesses = judging.pair_prior(
        ["x", "x", "y", "y", "y", None], [1, 1, 2, 2, 1, 2], ["y", "x", "never", None]
    )
    np.testing.assert_array_equal(guesses, [2, 1, 1, 1])
    with pytest.raises(UserError):
        judging.pair_prior(["x"], [1, 2], [])
    with pytest.raises(UserError):
        judging.majority([])


def test_an_empty_set_has_no_mean_and_one_prompt_no_interval():
    with pytest.raises(UserError):
        judging.clustered_mean([], [])
    one = judging.clustered_mean([1.0, 0.0], ["p", "p"])
    assert one == {"value": 0.5, "low": None, "high": None, "count": 1}
    assert resampling.draws(5, resamples=3).sum(axis=1).tolist() == [5, 5, 5]
