"""Every guard at its border, and the messages that say what to do."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.joint.guards import (
    LIMITS,
    GuardOptions,
    GuardState,
    check_gap,
    check_rollouts,
    check_round,
    check_scores,
    kept_round,
)

# Every limit at a value that float32 rounds.
OPTIONS = GuardOptions(
    kl_ceiling=0.3,
    min_entropy=0.1,
    min_reward_std=0.01,
    min_ended=0.35,
    max_title_mention=0.7,
    max_unshown_title=0.45,
    max_target_title=0.15,
    max_copied=0.6,
    max_repetition=0.55,
    max_duplicates=0.9,
    max_missing_why_not=0.3,
    min_length_ratio=0.4,
    max_length_ratio=2.3,
    max_odd_tokens=0.2,
    max_leak=0.21,
)

# Scores


def test_good_scores_pass():
    check_scores({"gain": jnp.array([0.5, -0.25])}, jnp.array([25.0, -25.0]), GuardOptions())
    check_scores({"gain": jnp.array([0.5])}, jnp.array([1e9]), GuardOptions(max_reward=None))
    check_scores({}, jnp.zeros(0), GuardOptions())


def test_a_part_that_is_not_finite():
    parts = {"judge": jnp.zeros(5), "gain": jnp.array([0.5, np.nan, np.inf, np.nan, -np.inf])}
    words = (
        r"reward part 'gain' is not finite in 4 of 5 rows \(2 NaN, 2 infinite; first row 1\).*"
        r"joint\.rewards"
    )
    with pytest.raises(UserError, match=words):
        check_scores(parts, jnp.zeros(5), GuardOptions())


def test_a_score_that_is_not_finite_though_its_parts_are():
    with pytest.raises(UserError, match="score is not finite in 1 of 2 rows"):
        check_scores({"gain": jnp.ones(2)}, jnp.array([0.5, jnp.inf]), GuardOptions())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_wrong_scale(sign):
    parts = {"judge": jnp.array([0.4, 0.1, 0.2]), "gain": jnp.array([0.25, 81.5, 30.0]) * sign}
    words = (
        r"wrong reward scale: \|score\| reaches 81\.6, beyond top\.guards\.max_reward=25 in 2 of 3 "
        rf"rows, where part 'gain' is {'-' if sign < 0 else ''}81\.5 .*lower top\.rewards\.gain or "
    )
    with pytest.raises(UserError, match=words):
        score = jnp.array([0.65, 81.6, 30.2]) * sign
        check_scores(parts, score, GuardOptions(), config="top")
    with pytest.raises(UserError, match="wrong reward scale"):
        check_scores({}, jnp.array([25.000002]), GuardOptions())


# The gap of sampler and trainer


def test_gap_by_hand():
    sampled = jnp.array([[-1.0, -2.5, np.nan], [-0.5, 7.0, 7.0]])
    trained = jnp.array([[-1.25, -2.375, -9.0], [-0.5, 3.0, np.inf]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]], bool)
    made = check_gap(sampled, trained, mask, GuardOptions(gap_max=0.125))
    assert made == {"rollout/log_prob_gap": 0.125, "rollout/log_prob_gap_max": 0.25}
    with pytest.raises(UserError, match=r"differ by 0\.125 .*at most 0\.25.*gap_max=0\.124"):
        check_gap(sampled, trained, mask, GuardOptions(gap_max=0.124))
    check_gap(sampled, trained, mask, GuardOptions(gap_max=None))
    assert check_gap(sampled, trained, mask & False, OPTIONS)["rollout/log_prob_gap"] == 0


@pytest.mark.parametrize("who", ["sampler", "trainer"])
def test_log_probs_that_are_not_finite(who):
    good, bad = jnp.zeros((2, 3)), jnp.zeros((2, 3)).at[1, 1].set(-jnp.inf)
    pair = (bad, good) if who == "sampler" else (good, bad)
    with pytest.raises(UserError, match=f"of the {who} are not finite for 1 of 6 answer tokens"):
        check_gap(*pair, jnp.ones((2, 3), bool), GuardOptions(gap_max=None))


# Rollouts


def test_no_answer_ends():
    state = GuardState(best_gain=0.0125, best_round=3)
    verdict = check_rollouts(
        jnp.zeros(4, bool), jnp.full(4, 32), GuardOptions(min_ended=None), state=state, number=5
    )
    assert verdict.stop and verdict.best_round == 3 and not verdict.improved
    assert verdict.line() == (
        "stopped after round 5: none of 4 answers ended by itself (mean length 32.0 tokens): raise "
        "max_new_tokens, or tune the explainer until its answers end; best round 3 is kept "
        "(gain 0.0125)"
    )


@pytest.mark.parametrize(("ended", "stops"), [(7, False), (6, True)])
def test_few_answers_end(ended, stops):
    verdict = check_rollouts(np.arange(20) < ended, np.full(20, 9), OPTIONS)
    assert verdict.stop == stops
    if stops:
        assert "only 6 of 20 answers ended" in verdict.line()
        assert "no good round to keep" in verdict.line()


@pytest.mark.parametrize(("lengths", "stops"), [([1, 2], False), ([1, 1, 2], True)])
def test_empty_answers(lengths, stops):
    assert check_rollouts(np.ones(len(lengths), bool), np.array(lengths)).stop == stops


def test_no_rollouts():
    assert check_rollouts(np.zeros(0, bool), np.zeros(0)).reasons == ("there are no rollouts",)


# Rounds


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.option)
def test_each_limit_at_its_border(limit):
    edge = getattr(OPTIONS, limit.option)
    wrong = {"above": 1.001, "below": 0.999, "upto": 1.0}[limit.side] * edge
    fine = edge * (1.001 if limit.side == "upto" else 1.0)
    for value in (fine, np.float32(fine), jnp.float32(fine)):
        _, verdict = check_round({limit.metric: value}, GuardState(), OPTIONS, number=1)
        assert not verdict.stop
    state, verdict = check_round({limit.metric: wrong}, GuardState(), OPTIONS, number=4)
    assert verdict.stop and len(verdict.reasons) == 1
    assert f"guards.{limit.option}={edge:g}" in verdict.line()
    assert state.tripped == (f"round 4: {verdict.reasons[0]}",)
    off = dataclasses.replace(OPTIONS, **{limit.option: None})
    for value in (wrong, math.nan):
        assert not check_round({limit.metric: value}, GuardState(), off, number=1)[1].stop or (
            limit.metric == "monitor/length_ratio"  # its other side is still on
        )


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.option)
def test_what_is_not_finite_trips(limit):
    _, verdict = check_round({limit.metric: jnp.nan}, GuardState(), OPTIONS, number=1)
    assert verdict.stop and f"is nan ({limit.metric}" in verdict.line()


def test_every_limit_has_an_option():
    fields = {field.name for field in dataclasses.fields(GuardOptions)}
    others = {"max_reward", "gap_max", "min_length", "patience", "min_delta", "gain_metric"}
    assert {limit.option for limit in LIMITS} == fields - others


def follow(gains, options):
    """The verdicts of rounds until one stops, and the last state."""
    state, verdicts = GuardState(), []
    for number, gain in enumerate(gains):
        metrics = {} if gain is None else {"valid/gain": gain}
        state, verdict = check_round(metrics, state, options, number=number)
        verdicts.append(verdict)
        if verdict.stop:
            break
    return verdicts, state


def test_early_stop_keeps_the_best_round():
    gains = [0.0, 0.02, 0.015, None, 0.03, 0.03, 0.029, 0.5]
    verdicts, state = follow(gains, GuardOptions(patience=2))
    assert [v.improved for v in verdicts] == [True, True, False, False, True, False, False]
    assert [v.stop for v in verdicts] == [False] * 6 + [True]
    assert (state.best_gain, state.best_round, state.bad_rounds) == (0.03, 4, 2)
    assert verdicts[-1].line() == (
        "stopped after round 6: no better held-out gain in 2 rounds (valid/gain 0.029, best was "
        "0.03; guards.patience=2); best round 4 is kept (gain 0.03)"
    )
    assert verdicts[4].line() == "round 4: goes on; best round 4 is kept (gain 0.03)"
    assert not follow(gains, GuardOptions(patience=3))[0][-1].stop
    assert not follow([0.5] + [0.0] * 30, GuardOptions(patience=None))[0][-1].stop


def test_a_gain_must_exceed_the_best_by_the_least_step():
    verdicts, state = follow([0.25, 0.375, 0.5], GuardOptions(min_delta=0.125))
    assert [v.improved for v in verdicts] == [True, False, True]
    assert state.best_round == 2


def test_a_hacked_round_is_never_the_best():
    state = GuardState(best_gain=0.01, best_round=2)
    metrics = {"valid/gain": 0.9, "monitor/target_title": 0.8, "ppo/kl": 3.5}
    after, verdict = check_round(metrics, state, OPTIONS, number=3)
    assert verdict.stop and not verdict.improved and len(verdict.reasons) == 2
    assert (after.best_gain, after.best_round) == (0.01, 2)


def test_a_gain_that_is_not_finite_stops():
    state, verdict = check_round({"valid/gain": math.nan}, GuardState(), OPTIONS, number=1)
    assert verdict.stop and "valid/gain is nan" in verdict.line() and state.best_gain is None


def test_state_goes_through_json():
    state = follow([0.1, 0.2, math.inf], GuardOptions())[1]
    assert GuardState.from_json(json.loads(json.dumps(state.to_json()))) == state
    for wrong in ({}, {"tripped": [], "worst_gain": 1}, {"tripped": None}):
        with pytest.raises(UserError, match="not a saved guard state"):
            GuardState.from_json(wrong)


def recorded(metrics, options):
    """Records of rounds as the trainer writes them."""
    state, records = GuardState(), []
    for number, own in enumerate(metrics):
        state, verdict = check_round(own, state, options, number=number)
        records.append({"round": number, **own} | verdict.record())
    return records


@pytest.mark.parametrize(
    ("metrics", "best", "causes"),
    [
        ([{"valid/gain": g} for g in (0.1, 0.3, 0.2, 0.25)], 1, [None, None, None, "patience"]),
        ([{"valid/gain": 0.5}, {"valid/gain": 0.9, "ppo/kl": 3.5}], 0, [None, "guard"]),
        # A start that trips a limit is no good round, whatever its gain.
        ([{"valid/gain": 0.5, "ppo/kl": 3.5}, {"valid/gain": 0.2}], 1, ["guard", None]),
        ([{"valid/gain": 0.5, "ppo/kl": 3.5}, {"rollout/ended": 0.5}], None, ["guard", None]),
        ([{"valid/gain": 0.5, "ppo/kl": 3.5}] * 2, None, ["guard", "guard"]),
    ],
)
def test_the_kept_round_is_the_one_that_was_recorded(metrics, best, causes):
    """And records of older runs, which say nothing of it, are judged again by the same rule."""
    options = dataclasses.replace(OPTIONS, patience=2)
    records = recorded(metrics, options)
    assert [record.get("stop_cause") for record in records] == causes
    assert records[-1]["best_round"] == best and kept_round(records, options) == best
    older = [{k: v for k, v in record.items() if k != "best_round"} for record in records]
    assert kept_round(older, options) == best and kept_round([], options) is None
    assert kept_round([*records[:-1], records[-1] | {"best_round": 7}], options) == 7


# Options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kl_celing": 1.0}, "no option 'kl_celing'; did you mean 'kl_ceiling'"),
        ({"kl_ceiling": math.nan}, "kl_ceiling=nan must be a number from 0"),
        ({"max_copied": -0.1}, "max_copied=-0.1 must be"),
        ({"max_reward": "25"}, "max_reward='25' must be"),
        ({"max_leak": True}, "max_leak=True must be"),
        ({"patience": 0}, "patience=0 must be a whole number from 1"),
        ({"patience": 1.5}, "patience=1.5 must be"),
        ({"min_delta": None}, "min_delta=None must be"),
        ({"gain_metric": None}, "gain_metric=None must be"),
        ({"min_length_ratio": 3}, "min_length_ratio=3 must be below max_length_ratio=2.5"),
    ],
)
def test_wrong_options(given, words):
    with pytest.raises(UserError, match=words):
        GuardOptions.of(given)


def test_options_from_a_mapping():
    assert GuardOptions.of({"max_copied": None, "patience": 3}).patience == 3
