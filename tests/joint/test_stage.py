"""A whole joint run: what it leaves, and that its figures are true."""

import re

import jax
import numpy as np
import pytest

import xrec_jax
from tests import runs
from tests.joints import (
    ROUNDS,
    SYSTEMS,
    TEXTS,
    arrays,
    counted_users,
    evaluation,
    jsonl,
    opened,  # noqa: F401 (a fixture)
    planted_f1,
)
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.evaluation.faithfulness.planted import world_vocabulary
from xrec_jax.joint.states.base import TEST, TRAIN
from xrec_jax.joint.states.world import world_states
from xrec_jax.llm.io.peft_io import base_of, load_adapter
from xrec_jax.text.claims.reader import read_claims
from xrec_jax.text.synthetic.taste_pairs import join_pair, split_pair

EVERY_ROUND = {
    "round",
    "verdict",
    "stopped",
    "best_round",
    "valid/ndcg@10",
    "valid/alone_ndcg@10",
    "valid/gain",
    "valid/log_prob_gain",
    "valid/text_gain",
    "valid/planted_f1",
}
LEARNING = {
    "reward/score",
    "reward/log_prob_gain",
    "ppo/kl",
    "ppo/kl_beta",
    "ppo/entropy",
    "rollout/length",
    "rollout/ended",
    "rollout/planted_f1",
    "rollout/log_prob_gap",
    "cache/staleness",
    *(f"time/{n}" for n in ("rollout", "scoring", "ppo", "encoding", "recommender", "evaluation")),
}


# What a run leaves


def test_every_file_of_the_stage(joint):  # noqa: F811
    workdir = joint / "run"
    assert {p.name for p in workdir.iterdir()} >= {"adapter_joint", "explanations", "joint"}
    folder = workdir / "joint" / "0"
    assert {p.name for p in folder.iterdir()} == {
        "rounds.jsonl",
        "samples.jsonl",
        "systems",
        "identity.json",
    }
    assert {p.name for p in (folder / "systems").iterdir()} == {
        *(f"{name}.npz" for name in SYSTEMS),
        "masked_titles.jsonl",
        *(f"{name}.jsonl" for name in TEXTS - {"untuned"}),
    }
    assert (workdir / "joint" / "untuned.jsonl").exists()  # one for all seeds
    assert {p.name for p in (workdir / "checkpoints" / "joint" / "0").iterdir()} == {
        "sft",
        "rounds",
    }
    assert (workdir / "explanations" / "joint_0.jsonl").exists()
    assert (workdir / "per_user" / "joint" / "0.npz").exists()
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]


def test_rounds_and_their_log(joint):  # noqa: F811
    found = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert [one["round"] for one in found] == [*range(ROUNDS + 1)]
    assert all(one.keys() >= EVERY_ROUND and not one["stopped"] for one in found)
    assert all(one.keys() >= LEARNING for one in found[1:])
    assert all(np.isfinite(v) for one in found for v in one.values() if not isinstance(v, str))
    lines = [x for x in jsonl(joint / "run" / "metrics.jsonl") if x["stage"] == "joint/0"]
    assert [line["step"] for line in lines] == [one["round"] for one in found]
    for line, one in zip(lines, found, strict=True):
        assert {k: v for k, v in line.items() if "/" in k} == {
            k: v for k, v in one.items() if "/" in k
        }
    # Sampler and trainer have the same weights, adapter, temperature and soft prompts.
    assert all(0 < one["rollout/log_prob_gap_max"] < 1e-3 for one in found[1:])
    for one in found:
        gain = one["valid/ndcg@10"] / one["valid/alone_ndcg@10"] - 1
        assert one["valid/gain"] == pytest.approx(gain)


def test_samples_and_final_texts(joint, opened):  # noqa: F811
    samples = jsonl(joint / "run" / "joint" / "0" / "samples.jsonl")
    assert [s["round"] for s in samples] == [0, 0, 1, 1, 2, 2]
    for sample in samples:
        assert sample.keys() == {"round", "user", "part", "prompt", "text", "planted", "f1"}
        assert sample["part"] == "valid" and 0 <= sample["f1"] <= 1
    assert [s["user"] for s in samples[:2]] * 3 == [s["user"] for s in samples]
    records = jsonl(joint / "run" / "explanations" / "joint_0.jsonl")
    states = opened.setup.states
    ids = opened.setup.shared.data.dataset.user_ids
    users = [str(ids[u]) for u in states.user[states.rows(TEST)]]
    assert {record["system"] for record in records} == TEXTS
    for name in TEXTS:
        own = [record for record in records if record["system"] == name]
        assert [record["user"] for record in own] == users
        for record in own:
            assert tuple(split_pair(record["text"])) == (record["why"], record["why_not"])


# What is told


def test_figures_are_means_of_what_is_kept(joint, opened):  # noqa: F811
    figures = evaluation(joint / "run")
    kept = arrays(joint / "run" / "per_user" / "joint" / "0.npz")
    assert {name.split("/")[0] for name in kept} == SYSTEMS | {"users"}
    counted = counted_users(opened.setup)
    assert len(counted) == 19 - 8 and {*opened.setup.tracked_users.tolist()} <= counted
    counts = np.array([user in counted for user in kept["users"].tolist()])
    assert counts.sum() == len(counted) and len(counts) == 26
    for name in SYSTEMS:
        own = arrays(joint / "run" / "joint" / "0" / "systems" / f"{name}.npz")
        for metric in ("ndcg@10", "recall@10", "mrr@10"):
            values = kept[f"{name}/{metric}"]
            np.testing.assert_array_equal(values, own[f"test/{metric}"])
            for prefix, chosen in (("test", values[counts]), ("test_all", values)):
                told = figures[name][f"{prefix}/{metric}"]
                assert told["value"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-12)
                assert told["count"] == len(chosen) and told["low"] <= told["value"]
    for first, second in [
        *((n, "alone") for n in SYSTEMS - {"alone"}),
        ("joint", "sft"),
        ("refit", "sft"),
    ]:
        a, b = (kept[f"{name}/ndcg@10"][counts] for name in (first, second))
        told = figures[f"{first} vs {second}"]
        difference = sum(x - y for x, y in zip(a, b, strict=True)) / len(a)
        assert told["ndcg@10/difference"]["value"] == pytest.approx(difference, abs=1e-12)
        relative = difference / (sum(b) / len(b))
        assert told["ndcg@10/relative"]["value"] == pytest.approx(relative, abs=1e-12)
        p = told["ndcg@10/p"]
        assert 0 < p["value"] <= 1 and p["count"] == told["ndcg@10/relative"]["count"] == len(a)


def test_figures_of_texts_by_hand(joint, opened):  # noqa: F811
    figures = evaluation(joint / "run")
    records = jsonl(joint / "run" / "explanations" / "joint_0.jsonl")
    states, world = opened.setup.states, opened.setup.shared.data.world
    counted = counted_users(opened.setup)
    rows = np.array([s for s in states.rows(TEST) if int(states.user[s]) in counted])
    true = dict(
        zip(
            (str(opened.setup.shared.data.dataset.user_ids[u]) for u in states.user[rows]),
            world.tastes_at(states.user[rows], states.before[rows]),
            strict=True,
        )
    )
    for name in TEXTS:
        own = [r for r in records if r["system"] == name and r["user"] in true]
        assert len(own) == len(counted)
        words = [len(record["text"].split()) for record in own]
        assert figures[name]["text/words"]["value"] == pytest.approx(np.mean(words))
        f1 = [planted_f1(record["text"], true[record["user"]]) for record in own]
        assert figures[name]["planted/f1"]["value"] == pytest.approx(np.mean(f1))
        named = [any(t.lower() in r["text"].lower() for t in states.titles) for r in own]
        assert figures[name]["text/title_mention"]["value"] == pytest.approx(np.mean(named))
    assert figures["planted"]["planted/f1"]["value"] == 1.0
    rounds = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    told = {key: entry["value"] for key, entry in figures["rounds"].items()}
    gains = [one["valid/gain"] for one in rounds]
    best = rounds[gains.index(max(gains))]
    assert rounds[-1]["best_round"] == best["round"]
    assert told["guards/stopped"] == 0 and told["valid/best_gain"] == pytest.approx(max(gains))
    assert told["planted/f1_first"] == pytest.approx(rounds[0]["valid/planted_f1"])
    assert told["planted/f1_difference"] == pytest.approx(
        best["valid/planted_f1"] - rounds[0]["valid/planted_f1"]
    )


def test_nothing_to_read_is_the_recommender_alone_to_the_last_bit(joint):  # noqa: F811
    kept = arrays(joint / "run" / "per_user" / "joint" / "0.npz")
    stage_own = arrays(joint / "run" / "per_user" / "recommend" / "sasrec" / "0.npz")
    metrics = [name.split("/")[1] for name in kept if name.startswith("null/")]
    assert len(metrics) > 4
    for metric in metrics:
        assert kept[f"null/{metric}"].tobytes() == kept[f"alone/{metric}"].tobytes()
    np.testing.assert_allclose(kept["alone/ndcg@10"], stage_own["test/ndcg@10"], atol=1e-6)


def test_the_adapter_is_the_best_policy_and_loads(joint, opened):  # noqa: F811
    path = joint / "run" / "adapter_joint" / "0"
    assert base_of(path).path == str(joint / "model")
    saved = load_adapter(path, opened.setup.shared.base.model.config)
    best = jax.device_get(opened.state.best["policy"]["lora"])
    runs.assert_same_bits(jax.device_get(saved.params), best)
    lm = xrec_jax.load_llm(joint / "model", path, batch=8)
    prompt = opened.setup.states.prompts[0]
    plain, tuned = (
        np.asarray(lm.logits([lm.tokenizer.encode(prompt)], adapter=name))
        for name in (None, "default")
    )
    assert np.abs(plain - tuned).max() > 1e-4


def test_pairs_of_the_warm_start_are_true(opened):  # noqa: F811
    states, world = opened.setup.states, opened.setup.shared.data.world
    assert len(states.teacher) == 8
    for s, text in states.teacher.items():
        assert states.part[s] == TRAIN and text == join_pair(split_pair(text))
        (true,) = world.tastes_at(states.user[[s]], states.before[[s]])
        assert planted_f1(text, true) == 1.0


def test_a_teacher_who_tells_what_prompts_state(opened):  # noqa: F811
    config = opened.setup.shared.config.copy_and_resolve_references()
    config.joint.sft.teacher = "stated"
    states, true = world_states(config, opened.setup.shared.data), opened.setup.states
    assert states.teacher.keys() == true.teacher.keys()
    fewer = 0
    for s, text in states.teacher.items():
        assert text == states.stated[s]
        written = " ".join(  # what stands behind places, and the line about the user
            line.partition(": ")[2] for line in states.prompts[s].splitlines()
        )
        told = {str(claim.value) for claim in read_claims(text, world_vocabulary())}
        for value in told:
            words = {**KIND_WORDS, **MOOD_WORDS}.get(value, (value,))
            assert any(word in written for word in words), (value, written)
        (tastes,) = states.planted[s : s + 1]
        known = {one["value"] for side in tastes.values() for one in side}
        for value in known - told:
            words = {**KIND_WORDS, **MOOD_WORDS}.get(value, (value,))
            assert not any(re.search(rf"\b{word}\b", written) for word in words), (value, written)
            fewer += 1
    assert fewer > 5
