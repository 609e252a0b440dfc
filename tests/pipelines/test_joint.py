"""A whole joint run: what it leaves, that its figures are true, skipping, and going on."""

import copy
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xrec_jax
from tests import runs, tiny
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax import cli
from xrec_jax.core.logging import MetricWriter
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.evaluation.planted import world_vocabulary
from xrec_jax.joint.rollout import rows
from xrec_jax.llm.peft_io import base_of, load_adapter
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.pipelines import language, run
from xrec_jax.pipelines.datasets import prepare
from xrec_jax.pipelines.joint_policy import PolicyTask
from xrec_jax.pipelines.joint_recommender import FusedTask, another, system_of, user_batch
from xrec_jax.pipelines.joint_round import Round, within
from xrec_jax.pipelines.joint_seed import SeedRun
from xrec_jax.pipelines.joint_setup import JointSetup
from xrec_jax.pipelines.joint_states import TEST, TRAIN, VALID
from xrec_jax.pipelines.joint_systems import Systems
from xrec_jax.pipelines.joint_world import world_states
from xrec_jax.pipelines.rundir import RunDir
from xrec_jax.pipelines.train_recommender import RecommenderTask
from xrec_jax.text.claims import read_claims
from xrec_jax.text.pairs import join_pair, split_pair
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import Interrupted

ROUNDS = 2
TEXTS = {"joint", "sft", "untuned", "template", "stated", "planted"}
SYSTEMS = TEXTS | {"alone", "null", "features", "shuffled", "masked_titles"}
EVERY_ROUND = {
    "round", "verdict", "stopped", "valid/ndcg@10", "valid/alone_ndcg@10", "valid/gain",
    "valid/log_prob_gain", "valid/text_gain", "valid/planted_f1",
}  # fmt: skip
LEARNING = {
    "reward/score", "reward/log_prob_gain", "ppo/kl", "ppo/kl_beta", "ppo/entropy",
    "rollout/length", "rollout/ended", "rollout/planted_f1", "rollout/log_prob_gap",
    "cache/staleness",
    *(f"time/{n}" for n in ("rollout", "scoring", "ppo", "encoding", "recommender", "evaluation")),
}  # fmt: skip


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())["joint"]


def arrays(path):
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def seed_run(workdir):
    """The seed of a run; inside a mesh."""
    config, rundir = RunDir(workdir).config(), RunDir(workdir)
    data, mesh = prepare(config.data), tiny.mesh(1)
    base = language.load_base(config, rundir, mesh)
    setup = JointSetup(config, data, base, mesh=mesh, rundir=rundir)
    task = RecommenderTask(config, system_of(config), data=data, mesh=mesh, rundir=rundir)
    return SeedRun(setup, task, 0)


def newest(one):
    """Everything in the newest checkpoint of the rounds."""
    folder = one.setup.rundir.checkpoints("joint/0/rounds")
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore(one.shape())


@pytest.fixture(scope="module")
def opened(joint):  # noqa: F811
    """The finished seed and its last state."""
    with use_mesh(tiny.mesh(1)):
        one = seed_run(joint / "run")
        state, data, _ = newest(one)
        yield SimpleNamespace(one=one, setup=one.setup, state=state, data=data)


# What a run leaves


def test_every_file_of_the_stage(joint):  # noqa: F811
    workdir = joint / "run"
    assert {p.name for p in workdir.iterdir()} >= {"adapter_joint", "explanations", "joint"}
    folder = workdir / "joint" / "0"
    assert {p.name for p in folder.iterdir()} == {
        "rounds.jsonl", "samples.jsonl", "systems", "identity.json",
    }  # fmt: skip
    assert {p.name for p in (folder / "systems").iterdir()} == {
        *(f"{name}.npz" for name in SYSTEMS), "masked_titles.jsonl",
        *(f"{name}.jsonl" for name in TEXTS - {"untuned"}),
    }  # fmt: skip
    assert (workdir / "joint" / "untuned.jsonl").exists()  # one for all seeds
    assert {p.name for p in (workdir / "checkpoints" / "joint" / "0").iterdir()} == {
        "sft", "rounds",
    }  # fmt: skip
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
    users = [str(opened.setup.data.dataset.user_ids[u]) for u in states.user[states.rows(TEST)]]
    assert {record["system"] for record in records} == TEXTS
    for name in TEXTS:
        own = [record for record in records if record["system"] == name]
        assert [record["user"] for record in own] == users
        for record in own:
            assert tuple(split_pair(record["text"])) == (record["why"], record["why_not"])


# What is told


def planted_f1(text, likes_and_dislikes):
    """F1 of the claims of a text, by hand."""
    claims = {
        (c.attribute, c.direction, str(c.value)) for c in read_claims(text, world_vocabulary())
    }
    true = {
        (name, side, value)
        for side, key in (("for", "likes"), ("against", "dislikes"))
        for name, values in likes_and_dislikes[key].items() for value in values
    }  # fmt: skip
    right = len(claims & true)
    return 2 * right / (len(claims) + len(true))


def counted_users(setup):
    """Users that figures are over: explained, and not known to the warm start."""
    states = setup.states
    taught = {int(states.user[s]) for s in states.teacher}
    return {int(user) for user in states.user[states.rows(TEST)]} - taught


def test_figures_are_means_of_what_is_kept(joint, opened):  # noqa: F811
    figures = evaluation(joint / "run")
    kept = arrays(joint / "run" / "per_user" / "joint" / "0.npz")
    assert {name.split("/")[0] for name in kept} == SYSTEMS | {"users"}
    counted = counted_users(opened.setup)
    assert len(counted) == 19 - 8 and {*opened.setup.valid_users.tolist()} <= counted
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
    for first, second in [*((n, "alone") for n in SYSTEMS - {"alone"}), ("joint", "sft")]:
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
    states, world = opened.setup.states, opened.setup.data.world
    counted = counted_users(opened.setup)
    rows = np.array([s for s in states.rows(TEST) if int(states.user[s]) in counted])
    true = dict(
        zip(
            (str(opened.setup.data.dataset.user_ids[u]) for u in states.user[rows]),
            world.tastes_at(states.user[rows], states.before[rows]), strict=True,
        )
    )  # fmt: skip
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


# Inside a round


def test_every_training_state_is_drawn_before_any_comes_again():
    pool = np.array([4, 7, 9, 11, 30, 31, 40])
    for group, per_round in ((1, 4), (3, 12), (2, 20)):
        fake = SimpleNamespace(
            setup=SimpleNamespace(rolled_out=pool), run=SimpleNamespace(seed=3),
            asked=SimpleNamespace(
                rollout=SimpleNamespace(group_size=group, per_round=per_round)
            ),
        )  # fmt: skip
        drawn = [Round._drawn(fake, number) for number in range(1, 15)]
        assert all(len(one) == per_round for one in drawn)
        stream = np.concatenate(drawn).reshape(-1, group)
        assert (stream == stream[:, :1]).all()
        stream = stream[:, 0]
        epochs = [stream[k : k + 7] for k in range(0, len(stream) - 6, 7)]
        assert all(sorted(epoch) == pool.tolist() for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        np.testing.assert_array_equal(Round._drawn(fake, 5), drawn[4])


def test_prompts_hold_what_came_before_and_no_name(opened):
    setup, states = opened.setup, opened.setup.states
    reviews, about = setup.data.dataset.reviews, setup.data.world.about
    assert any(reviews.values()) and any(one.facts for one in about)
    for s, prompt in enumerate(states.prompts):
        assert not [title for title in states.titles if title in prompt]
        user, past = int(states.user[s]), states.history.items
        assert about[user].text in prompt
        past = past[states.history.start[s] : states.history.start[s + 1]].tolist()
        lines = [x for x in prompt.split("\n") if x[:2] in ("1.", "2.", "3.")]
        assert len(lines) == min(2, len(past)) > 0
        for line, item in zip(lines, past[-2:], strict=True):
            written = reviews.get((user, item))
            assert line.endswith(f": {written}") if written else ":" not in line
        assert states.target[s] not in past or states.target[s] == -1
    parts = {p: set(states.user[states.rows(p)].tolist()) for p in (TRAIN, VALID, TEST)}
    assert parts[VALID] == parts[TEST] >= parts[TRAIN]


def test_soft_vectors_stand_on_their_placeholders(opened):
    prompts, tokenizer = opened.setup.prompts, opened.setup.base.tokenizer
    assert prompts.soft.shape == (len(opened.setup.states), 2)
    for s, prompt in enumerate(opened.setup.states.prompts):
        ids = prompts.ids[s, : prompts.length[s]].tolist()
        first, second = prompts.soft[s]
        assert second == first + 1 and {ids[first], ids[second]} == {opened.setup.placeholder}
        before = tokenizer.decode(ids[:first])
        assert before.strip().endswith(prompt.strip()[-30:])


def test_other_users_texts_are_other_users(opened):
    rng = np.random.default_rng(2)
    for count, people in ((1, 1), (9, 2), (40, 7), (64, 64)):
        users = rng.integers(0, people, count)
        for key in range(5):
            place = another(users, key)
            alone = len(set(users.tolist())) == 1
            assert ((users[place] != users) | alone).all()
    systems = Systems(opened.one, opened.state)
    own, swapped = systems._read("joint"), systems._read("shuffled")
    states = opened.setup.states
    for part in (TRAIN, VALID, TEST):
        rows = [s for s in systems.rows if states.part[s] == part]
        for s in rows:
            sources = [
                o for o in rows
                if (own["encoding"][o] == swapped["encoding"][s]).all()
                and (own["present"][o] == swapped["present"][s]).all()
            ]  # fmt: skip
            assert any(states.user[o] != states.user[s] for o in sources)


def test_staleness_of_the_kept_texts(joint, opened):  # noqa: F811
    """The oldest quarter is written anew each round; nobody is left out for long."""
    count = len(opened.setup.cached)
    refreshed = -(-count // 4)
    versions = [0] * count
    rounds = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    for number in range(1, ROUNDS + 1):
        versions = sorted(versions)
        versions[:refreshed] = [number] * refreshed
        stale = [number - version for version in versions]
        told = rounds[number]
        assert told["cache/staleness"] == pytest.approx(sum(stale) / count)
        assert told["cache/staleness_max"] == max(stale)
        assert told["cache/refreshed"] == refreshed
    kept = jax.device_get(opened.state.cache)
    assert sorted(kept.version[opened.setup.cached].tolist()) == sorted(versions)
    assert (kept.version[opened.one.valid] == ROUNDS).all()
    others = np.setdiff1d(np.arange(len(kept.version)), [*opened.setup.cached, *opened.one.valid])
    assert {*opened.setup.states.rows(TEST)} <= {*others} and (kept.version[others] == -1).all()


def test_what_texts_add_to_the_held_out_item_one_by_one(joint, opened):  # noqa: F811
    """Over nothing to read, and over other texts where those of the warm start are kept."""
    one, state = opened.one, jax.device_get(opened.state)
    items, model = opened.setup.data.dataset.num_items, one.fused.model
    frozen = one.fused.frozen(one.base_frozen, state.constants)
    params, gains = opened.state.recommender["params"], []
    kept = {name: getattr(state.cache, name) for name in ("encoding", "present")}
    others = {name: array[one.valid][::-1] for name, array in kept.items()}
    for place, s in enumerate(one.valid.tolist()):
        alone = user_batch(opened.setup, model, np.array([s]))
        texts = {name: array[[s]] for name, array in kept.items()}
        first = {name: array[[place]] for name, array in others.items()}
        log_p = []
        for batch in (alone | texts, alone, alone | first):
            scores = np.asarray(model.item_scores(params, frozen, batch), np.float64)[0, :items]
            log_p.append(scores[opened.setup.states.target[s]] - np.log(np.exp(scores).sum()))
        gains.append(log_p[0] - np.array(log_p[1:]))
    told = one.round.held_out(opened.state.replace(first=others), ROUNDS)
    for name, expected in zip(("log_prob", "text"), np.mean(gains, axis=0), strict=True):
        found = told[f"valid/{name}_gain"]
        assert found == pytest.approx(expected, abs=1e-5) and abs(found) > 1e-4
    rounds = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert rounds[-1]["valid/log_prob_gain"] == told["valid/log_prob_gain"]
    assert rounds[0]["valid/text_gain"] == 0.0  # its own texts
    warm = jax.device_get(newest(seed_run(joint / "warm"))[0].cache)
    for name, array in state.first.items():
        np.testing.assert_array_equal(array, getattr(warm, name)[one.valid])


def test_correlation_within_groups_against_a_loop():
    rng = np.random.default_rng(6)
    prompt = np.repeat(rng.normal(size=5), 3)  # differs between groups only: must not count
    shared = rng.normal(size=15)
    first, second = 9.0 * prompt + shared, 0.7 * rng.normal(size=15) + shared - 4.0 * prompt
    left, right = [], []
    for start in range(0, 15, 3):
        left += [x - sum(first[start : start + 3]) / 3 for x in first[start : start + 3]]
        right += [x - sum(second[start : start + 3]) / 3 for x in second[start : start + 3]]
    expected = np.corrcoef(left, right)[0, 1]
    assert 0.3 < expected == pytest.approx(within(first, second, 3))
    assert within(prompt, second, 3) == 0.0


def test_several_held_out_items_count_alike(opened):
    one, setup = opened.one, opened.setup
    users = setup.states.user[one.valid[:2]]
    events = Interactions(np.repeat(users, [3, 1]).astype(np.int32), np.array([4, 9, 2, 7]))
    data = SimpleNamespace(split=SimpleNamespace(valid=events), dataset=setup.data.dataset)
    fake = SimpleNamespace(setup=SimpleNamespace(data=data, states=setup.states))
    targets = FusedTask.held_out(fake, one.valid[[1, 0]])
    assert targets.tolist() == [[7, -1, -1], [4, 9, 2]]
    state = jax.device_get(opened.state)
    frozen = one.fused.frozen(one.base_frozen, state.constants)
    params, rows = opened.state.recommender["params"], one.valid[[1, 0]]
    texts = {name: getattr(state.cache, name)[rows] for name in ("encoding", "present")}
    found = one.fused.score(params, frozen, rows, **texts, key=1, targets=targets)
    batch = user_batch(setup, one.fused.model, rows)
    for name, read in (("log_prob", texts), ("log_prob_null", {})):
        scores = np.asarray(one.fused.model.item_scores(params, frozen, batch | read), np.float64)
        scores = scores[:, : setup.data.dataset.num_items]
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        expected = [log_p[0, 7], log_p[1, [4, 9, 2]].mean()]
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_group_that_shares_its_prompt_is_read_as_apart(opened):
    """Soft prompts, ragged answers, and batches that split the rollout unevenly."""
    policy, setup, users = opened.one.policy, opened.setup, opened.one.users
    states = np.repeat(setup.rolled_out[:5], 2)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 200, (10, setup.size)).astype(np.int32)
    length = rng.integers(0, setup.size + 1, 10).astype(np.int32)
    said = []
    for group in (1, 2):
        batch = rows(setup.prompts, states, tokens, length, group=group)
        batch["user"] = users[states[::group]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "group", group)
            said.append(policy.assess(opened.state.policy["params"], {}, batch))
            part = policy._part(batch, np.array([3, 1]))
        chosen = (group * np.array([3, 1])[:, None] + np.arange(group)).ravel()
        np.testing.assert_array_equal(part["length"], length[chosen])
        np.testing.assert_array_equal(part["user"], batch["user"][[3, 1]])
    assert said[0].keys() == said[1].keys() >= {"log_probs", "reference", "entropy", "values"}
    for name, apart in said[0].items():
        np.testing.assert_allclose(said[1][name], apart, atol=2e-5, err_msg=name)


def test_the_adapter_is_the_best_policy_and_loads(joint, opened):  # noqa: F811
    path = joint / "run" / "adapter_joint" / "0"
    assert base_of(path).path == str(joint / "model")
    saved = load_adapter(path, opened.setup.base.model.config)
    best = jax.device_get(opened.state.best["policy"]["lora"])
    runs.assert_same_bits(jax.device_get(saved.params), best)
    lm = xrec_jax.load_llm(joint / "model", path, batch=8)
    prompt = opened.setup.states.prompts[0]
    plain, tuned = (
        np.asarray(lm.logits([lm.tokenizer.encode(prompt)], adapter=name))
        for name in (None, "default")
    )
    assert np.abs(plain - tuned).max() > 1e-4


def test_schedules_end_with_the_last_update(opened):
    """Of two rounds of 2 epochs of 16 / 8 batches, and of 3 + 2 x 2 + 5 steps of a recommender."""
    setup = copy.copy(opened.setup)
    setup.asked = setup.asked.copy_and_resolve_references()
    slow = dict(
        schedule="linear", final_rate=0.0, optimizer="sgd", b1=0.0, clip_norm=0.0, weight_decay=0.0
    )
    setup.asked.ppo.update(epochs=2)
    setup.asked.ppo.policy.update(slow | dict(learning_rate=0.8, warmup=0.5))
    setup.asked.recommender.train.update(slow | dict(learning_rate=0.6))
    policy = PolicyTask(setup, user_dim=3).rule
    fused = FusedTask(setup, opened.one.fused.task, width=opened.one.fused.model.encoding).rule
    rising, falling = [0.0, 0.2, 0.4, 0.6], [0.8, 0.6, 0.4, 0.2]
    for rule, expected in ((policy, rising + falling), (fused, 0.6 * (1 - np.arange(12) / 12))):
        tree = {"policy": jnp.ones(2), "critic": jnp.ones(1), "base": jnp.ones(1)}
        state, rates = rule.init(tree), []
        for _ in range(len(expected) + 1):
            updates, state = rule.update(tree, state, tree)
            rates.append(-float(updates["policy"][0]))
        np.testing.assert_allclose(rates, [*expected, 0.0], atol=1e-6)


# Running again


def test_a_second_run_changes_nothing(joint, capsys, tmp_path):  # noqa: F811
    shutil.copytree(joint / "run", tmp_path / "run")
    before = runs.contents(tmp_path / "run")
    with runs.one_device():
        run.run(tiny.joint(joint / "model"), tmp_path / "run")
    assert runs.contents(tmp_path / "run") == before
    assert "joint/0" not in capsys.readouterr().out


def test_evaluate_gives_the_same_figures(joint, tmp_path):  # noqa: F811
    shutil.copytree(joint / "run", tmp_path / "run")
    expected = evaluation(joint / "run")
    path = tmp_path / "run" / "evaluation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "joint"}))
    with runs.one_device():
        assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert evaluation(tmp_path / "run") == expected


def test_evaluate_of_a_run_that_is_not_finished(joint, capsys, tmp_path):  # noqa: F811
    shutil.copytree(joint / "warm", tmp_path / "run")
    with runs.one_device():
        assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "joint/0 is not finished" in capsys.readouterr().err


class Stopping(MetricWriter):
    """A metric log that sends SIGTERM to its own process after round 1."""

    def write(self, stage, step, metrics):
        super().write(stage, step, metrics)
        if (stage, step) == ("joint/0", 1):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(joint, opened, tmp_path):  # noqa: F811
    """By SIGTERM after round 1, between the rollout and the updates of round 2, and at the end."""
    workdir = tmp_path / "run"
    shutil.copytree(joint / "warm", workdir)
    with use_mesh(tiny.mesh(1)):
        writer = Stopping(workdir)
        with pytest.raises(Interrupted, match="saved at step 1"):
            seed_run(workdir).run(writer)
        writer.close()
        for step in (3, 4):
            writer = MetricWriter(workdir)
            with runs.cut_after(step):
                seed_run(workdir).run(writer)
            writer.close()
        state, data, _ = newest(seed_run(workdir))
    runs.assert_same_bits(jax.device_get(state.saved()), jax.device_get(opened.state.saved()))
    untimed = [
        [runs.untimed(json.loads(json.dumps(number))) for number in one["rounds"]]
        for one in (data, opened.data)
    ]
    assert untimed[0] == untimed[1] and data["guard"] == opened.data["guard"]
    assert runs.metrics(workdir, "joint") == runs.metrics(joint / "run", "joint")


def test_without_a_round_the_warm_start_is_what_is_tested(joint, tmp_path):  # noqa: F811
    """All that is left beside it are the last updates of its recommender."""
    workdir = tmp_path / "run"
    shutil.copytree(joint / "warm", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["joint"].update(rounds=0, systems=["sft"])
    (workdir / "config.json").write_text(json.dumps(config))
    with runs.one_device():
        run.run(RunDir(workdir).config(), workdir)
    (only,) = jsonl(workdir / "joint" / "0" / "rounds.jsonl")
    (first, *_) = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert runs.untimed(only) == runs.untimed(first)
    texts = {"joint": [], "sft": []}
    for record in jsonl(workdir / "explanations" / "joint_0.jsonl"):
        texts[record["system"]].append(record["text"])
    assert texts["joint"] == texts["sft"] and len(texts["sft"]) == 19
    told = evaluation(workdir)
    assert told["rounds"]["valid/best_gain"]["value"] == pytest.approx(only["valid/gain"])
    assert told["rounds"]["planted/f1_difference"]["value"] == 0
    assert {"joint", "sft", "alone", "joint vs alone", "joint vs sft"} <= told.keys()


def test_pairs_of_the_warm_start_are_true(opened):
    states, world = opened.setup.states, opened.setup.data.world
    assert len(states.teacher) == 8
    for s, text in states.teacher.items():
        assert states.part[s] == TRAIN and text == join_pair(split_pair(text))
        (true,) = world.tastes_at(states.user[[s]], states.before[[s]])
        assert planted_f1(text, true) == 1.0


def test_a_teacher_who_tells_what_prompts_state(opened):
    config = opened.setup.config.copy_and_resolve_references()
    config.joint.sft.teacher = "stated"
    states, true = world_states(config, opened.setup.data), opened.setup.states
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
