"""The pure functions of the two experiments on joint training."""

import argparse
import functools
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import recpie_ablations, recpie_data_share, recpie_match
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.run_config import start_run


def test_matching_share_lies_on_the_line_between_two_shares():
    shares, values = [0.1, 0.3, 1.0], [0.10, 0.14, 0.15]
    found = recpie_data_share.matching_share
    assert found(shares, values, 0.13) == pytest.approx(0.1 + 0.75 * 0.2)
    assert found(shares, values, 0.145) == pytest.approx(0.65)
    assert found(shares, values, 0.14) == pytest.approx(0.3)
    assert found(shares, values, 0.09) == 0.1  # enough at the first: no more is known
    assert found(shares, values, 0.16) is None
    assert found([0.1, 1.0], [0.2, 0.1], 0.15) == 0.1  # the smallest, though more data is worse


def test_shares_are_compared_with_alone_on_all_data():
    rng = np.random.default_rng(0)
    alone, joint, planted = rng.random((3, 3, 2, 40))  # systems, shares, seeds, users
    joint[0] -= 0.5  # less than alone on all data at the first share
    planted[0] += 0.5
    values = {"alone": alone, "joint": joint, "planted": planted}
    found = recpie_data_share.compare([0.2, 0.5, 1.0], values, resamples=50)
    assert found["users"] == 40
    for place, share in enumerate(("0.2", "0.5", "1")):
        one = found["shares"][share]
        assert one["joint"]["value"] == pytest.approx(joint[place].mean())
        assert one["planted"]["value"] == pytest.approx(planted[place].mean())
        difference = joint[place].mean() - alone[2].mean()
        assert one["joint_less_alone_on_all"]["value"] == pytest.approx(difference)
        assert one["joint_less_alone"]["value"] == pytest.approx(
            joint[place].mean() - alone[place].mean()
        )
    assert found["planted_matching_share"] == 0.2 != found["matching_share"]
    found["matching_share"] = None
    shown = recpie_data_share.show(found | {"metric": "ndcg@10"})
    assert "all data at no share that was run, true tastes with 20.0% or less" in shown


@pytest.mark.parametrize("text", ["0,1", "0.1,1.5", "0.2,0.5", "a", ""])
def test_wrong_shares_are_refused(text):
    with pytest.raises(UserError, match="--shares"):
        recpie_data_share.shares_of(text)


def test_an_override_keeps_the_kind_of_a_value():
    config = recpie_ablations.world_config(
        argparse.Namespace(
            tiny=True,
            seeds="3,4",
            override=[
                "joint.kl.beta=1",
                "joint.systems=null,features",
                "joint.recommender.train_base=true",
                "joint.encoder=last",
                "joint.guards.max_leak=0.5",
            ],
        )
    )
    assert config.seeds == (3, 4)
    assert type(config.joint.kl.beta) is float and config.joint.kl.beta == 1.0
    assert config.joint.systems == ("null", "features")
    assert config.joint.recommender.train_base is True
    assert config.joint.encoder == "last" and config.joint.guards.max_leak == 0.5


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("joint.kl.bata=1", "did you mean 'beta'"),
        ("joint.kl=1", "is a group"),
        ("joint.rounds=few", "joint.rounds is 2"),
        ("joint.rounds=true", "joint.rounds is 2"),
        ("joint.rounds", "key=value"),
        ("joint.rounds.x=1", "no key"),
    ],
)
def test_a_wrong_override_is_one_clear_line(entry, says):
    with pytest.raises(UserError, match="--override") as caught:
        recpie_ablations.world_config(argparse.Namespace(tiny=True, seeds="", override=[entry]))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_those_of_the_config():
    known = recpie_ablations.ablations()
    assert recpie_ablations.chosen("", list(known)) == list(known)
    assert recpie_ablations.chosen("ppo,full,ppo", list(known)) == ["ppo", "full"]
    with pytest.raises(UserError, match="did you mean 'no_kl'"):
        recpie_ablations.chosen("no_kll", list(known))


def test_a_run_with_more_seeds_and_controls_is_read_and_not_run_again(tmp_path):
    def config(seeds="", **changes):
        override = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return recpie_ablations.world_config(
            argparse.Namespace(tiny=True, seeds=seeds, override=override)
        )

    theirs = config("0,1,2", joint__systems="null,sft")
    rundir = RunDir(tmp_path / "run")
    start_run(rundir, theirs)
    (tmp_path / "run" / "evaluation.json").write_text('{"joint": {}}')
    done = functools.partial(recpie_ablations.is_finished, more_seeds=True)
    assert done(rundir, config("2,0", joint__systems="sft"))
    assert not done(rundir, config("0,3", joint__systems="sft"))
    assert not recpie_ablations.is_finished(rundir, config("0", joint__systems="sft"))
    assert recpie_ablations.is_finished(rundir, config("0,1,2", joint__systems="sft"))
    assert not done(rundir, config("0", joint__systems="sft,features"))
    assert not done(rundir, config("0", joint__systems="sft", joint__kl__beta=1))


def _figure(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 9}


def test_table_shows_controls_alone_where_nothing_was_trained_jointly():
    table = {name: {"test/ndcg@10": _figure(0.2)} for name in ("joint", "alone", "null")}
    table["joint"]["planted/f1"] = _figure(0.6)
    for name in ("joint", "null"):
        table[f"{name} vs alone"] = {"ndcg@10/relative": _figure(0.25), "ndcg@10/p": _figure(0.03)}
    assert list(recpie_ablations.rows_of(table, rounds=0, k=10)) == ["null"]
    systems = recpie_ablations.rows_of(table, rounds=2, k=10)
    assert list(systems) == ["joint", "null"] and systems["joint"]["p"] == 0.03
    changes = recpie_ablations.changes_of({"systems": (), "kl": {"beta": 0.0}})
    shown = recpie_ablations.show(
        {
            "metric": "ndcg@10",
            "ablations": {
                "no_kl": {"changes": changes, "alone": _figure(0.16), "systems": systems}
            },
            "failed": {"other": "why"},
        }
    ).splitlines()
    assert shown[2].split() == [
        *("no_kl", "kl.beta=0.0", "joint", "0.2000", "0.1600"),
        *("+25.0%", "[+15.0%,", "+35.0%]", "0.0300", "0.600"),
    ]
    assert shown[3].split()[:3] == ["no_kl", "null", "0.2000"] and shown[-1] == "other: why"


def planted(*claims):
    """Tastes as states have them, from "+mood quiet" or "-kind bar"."""
    sides = {"for": [], "against": []}
    for claim in claims:
        attribute, value = claim[1:].split()
        side = "for" if claim[0] == "+" else "against"
        sides[side].append({"attribute": attribute, "value": value, "phrase": f"x {value}"})
    return sides


TASTES = [
    planted("+mood quiet", "+kind cafe", "-cuisine Thai", "-mood lively"),
    planted("+kind bar", "+kind museum", "-kind gym"),
    planted("+cuisine Greek", "-mood artsy", "-mood trendy"),
]


def test_noise_replaces_tastes_by_others_of_their_kind():
    for tastes in TASTES:
        assert recpie_match.noisy(tastes, 0.0, 3) == tastes
        noisy = recpie_match.noisy(tastes, 1.0, 3)
        for side in ("for", "against"):
            before = [(r["attribute"], r["value"]) for r in tastes[side]]
            after = [(r["attribute"], r["value"]) for r in noisy[side]]
            assert [name for name, _ in after] == [name for name, _ in before]
            assert not {*after} & {*before}
            assert all(value in recpie_match.VALUES[name] for name, value in after)


def test_noisy_texts_have_the_wanted_f1():
    states = SimpleNamespace(planted=TASTES * 150)
    texts, reached = recpie_match.noisy_texts(states, 0.735, 0)
    assert len(texts) == 450 and reached == pytest.approx(0.735, abs=0.02)
    again, _ = recpie_match.noisy_texts(states, 0.735, 0)
    other, _ = recpie_match.noisy_texts(states, 0.735, 1)
    assert again == texts != other
    whole, reached = recpie_match.noisy_texts(states, 1.0, 0)
    assert reached > 0.99 and whole[0] == recpie_match.said(TASTES[0])


def test_shares_at_which_texts_reach_the_recommender_alone():
    rng = np.random.default_rng(0)
    users = rng.uniform(0.0, 0.2, 50)
    users[7] = -1.0  # without a test event
    kept = users >= 0

    def rows(value):
        return np.where(kept, users * value / users[kept].mean(), -1.0)[None].repeat(2, axis=0)

    values = [
        {"alone": rows(0.05), "stated, match": rows(0.09), "stated, residual": rows(0.06)},
        {"alone": rows(0.10), "stated, match": rows(0.15), "stated, residual": rows(0.08)},
    ]
    result = recpie_match.answer([0.2, 1.0], values, resamples=50)
    assert result["users"] == 49
    assert result["shares"]["0.2"]["stated, match"]["value"] == pytest.approx(0.09)
    # A sixth of the way from .09 to .15.
    assert result["parity_share"]["stated, match"] == pytest.approx(0.2 + 0.8 / 6)
    assert result["parity_share"]["stated, residual"] is None
    result["metric"] = "ndcg@5"
    shown = recpie_match.show(result)
    assert "NDCG@5" in shown
    assert "33.3%" in shown and "none" in shown
    result["parity_share"]["stated, match"] = 0.2
    assert "20.0% or less" in recpie_match.show(result)
