"""Planted-reason scores: worked by hand, against a loop, and on explainers of known quality."""

import functools

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.reasons import Reason, Reasons
from xrec_jax.data.world.world import generate
from xrec_jax.evaluation.faithfulness import planted
from xrec_jax.evaluation.statistics.significance import sign_flip
from xrec_jax.text.claims.reader import Claim
from xrec_jax.text.synthetic.explanations import explain
from xrec_jax.text.synthetic.template_explainer import template_explanation, unfaithful_explanation

TRUTH = [
    Claim("kind", "for", "bar"),
    Claim("price", "against", "3", "pricier"),
    Claim("distance", "for", "1.2 km"),
]


@pytest.mark.parametrize(
    ("claim", "right"),
    [
        (Claim("kind", "for", "bar"), True),
        (Claim("kind", "for", "Bar"), True),
        (Claim("kind", "for", "cafe"), False),
        (Claim("kind", "for", None), False),
        (Claim("kind", "against", "bar"), False),
        (Claim("sequence", "for", "bar"), False),
        (Claim("price", "against", "3"), True),
        (Claim("price", "against", "3", "pricier"), True),
        (Claim("price", "against", "3", "cheaper"), False),
        (Claim("price", "against", None, "pricier"), False),
        (Claim("distance", "for", None), True),
        (Claim("distance", "for", "9 km"), True),
        (Claim("distance", "against", "1.2 km"), False),
        (Claim("genre", "for", "bar"), False),
    ],
)
def test_what_agrees(claim, right):
    assert any(planted.agrees(claim, reason) for reason in TRUTH) == right


def test_scores_by_hand():
    said = [
        [TRUTH[0], Claim("mood", "for", "quiet"), Claim("distance", "for"), TRUTH[2]],
        TRUTH,
        [],
        [],
        [Claim("mood", "against", "quiet"), Claim("genre", "for", "x")],
    ]
    true = [TRUTH, TRUTH, [], TRUTH, []]
    found = planted.score_claims(said, true)
    # The two ways to say that it is near are one claim: 2 of 3 claims, 2 of 3 reasons.
    np.testing.assert_allclose(found.precision, [2 / 3, 1, 1, 0, 0])
    np.testing.assert_allclose(found.recall, [2 / 3, 1, 1, 0, 0])
    np.testing.assert_allclose(found.f1, [2 / 3, 1, 1, 0, 0])
    figures = found.estimates(resamples=200)
    assert figures["planted/f1"]["value"] == pytest.approx((2 / 3 + 2) / 5)
    assert figures["planted/f1"]["count"] == 5
    for name, value, count in [
        ("micro_precision", 5 / 8, 8),
        ("micro_recall", 5 / 9, 9),
        ("micro_f1", 10 / 17, 17),
        ("kind_precision", 1, 2),
        ("kind_recall", 2 / 3, 3),
        ("mood_precision", 0, 2),
        ("mood_f1", 0, 2),
        ("distance_recall", 2 / 3, 3),
        ("price_precision", 1, 1),
        ("price_recall", 1 / 3, 3),
        ("against_precision", 1 / 2, 2),
        ("for_precision", 4 / 6, 6),
    ]:
        entry = figures[f"planted/{name}"]
        assert (entry["value"], entry["count"]) == (pytest.approx(value), count), name
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert "planted/sequence_f1" not in figures
    single = planted.score_claims(said[:1], true[:1]).estimates()
    assert single["planted/f1"]["low"] is None and single["planted/micro_f1"]["low"] is None


def test_pooled_interval_against_a_loop():
    """The bootstrap of a ratio of sums, text by text."""
    rng = np.random.default_rng(0)
    kinds = ("bar", "cafe", "gym")
    said = [[Claim("kind", "for", kinds[rng.integers(3)])] for _ in range(40)]
    said += [[], [Claim("kind", "for", k) for k in kinds]] * 5
    true = [[Claim("kind", "for", "bar")]] * 50
    found = planted.score_claims(said, true).pooled(resamples=4000)["planted/micro_precision"]
    right = np.array([sum(claim.value == "bar" for claim in claims) for claims in said])
    claimed = np.array([len(claims) for claims in said])
    values = []
    for _ in range(4000):
        rows = rng.integers(0, 50, 50)
        values.append(right[rows].sum() / claimed[rows].sum())
    low, high = np.quantile(values, [0.025, 0.975])
    assert found["value"] == right.sum() / claimed.sum()
    assert found["low"] == pytest.approx(low, abs=0.015)
    assert found["high"] == pytest.approx(high, abs=0.015)


def test_both_forms_of_planted_reasons():
    reasons = Reasons(
        user=0,
        item=1,
        utility=1.0,
        unexplained=0.0,
        for_=(
            Reason("kind", "bar", 1.5, "likes bars"),
            Reason("distance", "1.2 km", 0.7, "closer to home than most (1.2 km)"),
        ),
        against=(Reason("price", "3", -0.8, "pricier than usual"),),
    )
    rows = {
        "for": [reason._asdict() for reason in reasons.for_],
        "against": [reason._asdict() for reason in reasons.against],
    }
    assert planted.planted_claims(reasons) == planted.planted_claims(rows) == set(TRUTH)
    assert planted.planted_claims({"for": [], "against": []}) == set()
    for wrong in ({"for": []}, {"for": [{"attribute": "kind"}], "against": []}, "likes bars", None):
        with pytest.raises(UserError, match="planted reasons need lists"):
            planted.planted_claims(wrong)


@functools.cache
def explained():
    """Texts of explainers of known quality on 75 visits, and the truth."""
    made = generate(WorldConfig(**tiny.WORLD))
    items, users = made.dataset.items.to_dicts(), made.dataset.users.to_dicts()
    events = made.dataset.interactions
    past = [[items[i] for i in events.item[events.user == user]] for user in range(len(users))]
    last = np.array([int(events.item[events.user == user][-1]) for user in range(len(users))])
    truth = made.reasons(np.arange(len(users)), last)
    vocabulary = planted.world_vocabulary()

    def texts(write):
        return [
            write(items[item], past[user][-9:-1], users[user], user)
            for user, item in enumerate(last.tolist())
        ]

    return truth, {
        "true": texts(
            lambda item, history, user, row: explain(
                truth[row], item=item, history=history, user=user, key=row
            )
        ),
        "template": texts(lambda *row: template_explanation(*row[:3], key=row[3])),
        "unfaithful": texts(
            lambda *row: unfaithful_explanation(*row[:3], key=row[3], vocabulary=vocabulary)
        ),
        "silent": ["It is a nice place."] * len(users),
    }


def test_known_explainers_come_in_the_right_order():
    truth, texts = explained()
    assert all(why.for_ or why.against for why in truth)
    scores = {name: planted.score_texts(made, truth) for name, made in texts.items()}
    f1 = {name: found.f1.mean() for name, found in scores.items()}
    assert f1["true"] > 0.99
    assert 0.25 < f1["template"] < 0.75
    assert f1["unfaithful"] == f1["silent"] == 0
    again = planted.score_texts(texts["template"][::-1], truth[::-1])
    np.testing.assert_array_equal(again.f1[::-1], scores["template"].f1)
    compared = planted.compare(scores["true"], scores["template"], resamples=100)
    difference = compared["planted/f1_difference"]
    assert difference["value"] == pytest.approx(f1["true"] - f1["template"])
    assert difference["low"] > 0.2 and compared["planted/p"]["value"] < 0.01
    expected = sign_flip(scores["true"].recall, scores["template"].recall)
    assert compared["planted/recall_p"]["value"] == expected
    assert planted.compare(scores["true"], scores["true"])["planted/p"]["value"] == 1


def test_mistakes():
    with pytest.raises(UserError, match="2 texts and 1 sets of planted reasons"):
        planted.score_texts(["a", "b"], [{"for": [], "against": []}])
    with pytest.raises(UserError, match="0 texts"):
        planted.score_claims([], [])
    one, two = (planted.score_claims([[]] * n, [[]] * n) for n in (1, 2))
    with pytest.raises(UserError, match="as many values"):
        planted.compare(one, two)
