"""Inside a joint run: what is drawn, shown, kept and compared, one by one."""

import copy
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs, tiny
from tests.joints import (
    ROUNDS,
    jsonl,
    newest,
    opened,  # noqa: F401 (a fixture)
    seed_run,
)
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.joint import actor
from xrec_jax.joint.actor import PolicyTask
from xrec_jax.joint.controls import systems as systems_module
from xrec_jax.joint.controls.registry import mask_titles
from xrec_jax.joint.controls.systems import Systems
from xrec_jax.joint.held_out import held_out
from xrec_jax.joint.monitors import Monitors
from xrec_jax.joint.recommender.fitting import Fitted, fit
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.recommender.rows import another, user_batch
from xrec_jax.joint.rollout import rows
from xrec_jax.joint.round import drawn_states, policy_rows, roll_out
from xrec_jax.joint.scoring import within
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.state import on_host, part_of
from xrec_jax.joint.states.base import TEST, TRAIN, VALID
from xrec_jax.joint.trainer import ready
from xrec_jax.parallel.mesh import use_mesh


def test_every_training_state_is_drawn_before_any_comes_again():
    pool = np.array([4, 7, 9, 11, 30, 31, 40])
    for group, per_round in ((1, 4), (3, 12), (2, 20)):
        how = dict(seed=3, count=per_round, group=group)
        drawn = [drawn_states(pool, number=number, **how) for number in range(1, 15)]
        assert all(len(one) == per_round for one in drawn)
        stream = np.concatenate(drawn).reshape(-1, group)
        assert (stream == stream[:, :1]).all()
        stream = stream[:, 0]
        epochs = [stream[k : k + 7] for k in range(0, len(stream) - 6, 7)]
        assert all(sorted(epoch) == pool.tolist() for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        np.testing.assert_array_equal(drawn_states(pool, number=5, **how), drawn[4])


def test_prompts_hold_what_came_before_and_no_name(opened):  # noqa: F811
    setup, states = opened.setup, opened.setup.states
    reviews, about = setup.shared.data.dataset.reviews, setup.shared.data.world.about
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


def test_soft_vectors_stand_on_their_placeholders(opened):  # noqa: F811
    prompts, tokenizer = opened.setup.prompts, opened.setup.shared.base.tokenizer
    assert prompts.soft.shape == (len(opened.setup.states), 2)
    for s, prompt in enumerate(opened.setup.states.prompts):
        ids = prompts.ids[s, : prompts.length[s]].tolist()
        first, second = prompts.soft[s]
        assert second == first + 1 and ids[first] == ids[second]
        assert ids[first] == opened.setup.shared.placeholder
        before = tokenizer.decode(ids[:first])
        assert before.strip().endswith(prompt.strip()[-30:])


def test_other_users_texts_are_other_users(opened):  # noqa: F811
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
                o
                for o in rows
                if (own["encoding"][o] == swapped["encoding"][s]).all()
                and (own["present"][o] == swapped["present"][s]).all()
            ]
            assert any(states.user[o] != states.user[s] for o in sources)


def test_shuffled_texts_are_those_of_other_users(opened, monkeypatch):  # noqa: F811
    """Of other users of the same part, each text once, where no two texts are alike."""
    systems = Systems(opened.one, opened.state)

    def encode(shared, texts):
        number = np.arange(1, len(texts) + 1, dtype=np.float32)[:, None, None]
        return np.tile(number, (1, 2, shared.encoder.width)), np.ones((len(texts), 2), bool)

    monkeypatch.setattr(JointSetup, "encode", encode)
    own, swapped = (systems._read(name)["encoding"][:, 0, 0] for name in ("joint", "shuffled"))
    states, writer = opened.setup.states, {}
    for s in systems.rows.tolist():
        writer[float(own[s])] = s
    assert len(writer) == len(systems.rows) > 40
    for s in systems.rows.tolist():
        source = writer[float(swapped[s])]
        assert states.user[source] != states.user[s] and states.part[source] == states.part[s]


def test_final_texts_are_the_best_explainers(opened, monkeypatch):  # noqa: F811
    """Of the parameters that are kept as the best, not of those of the last round."""
    one, best = opened.one, opened.one.actor.fresh(3)
    best = jax.tree.map(lambda x: x + 0.3, best)
    systems = Systems(one, opened.state.replace(best=opened.state.best | {"policy": best}))
    last = systems.texts("joint")[:6]
    systems.rows = systems.rows[:6]
    made = one.actor.answer(best, systems.rows, one.users, key=(0,))
    texts = opened.setup.shared.texts(made.tokens, made.length)
    assert systems._write_texts("joint") == texts != last


def valid_ndcg(one, params, frozen, read):
    """NDCG@10 of the looked-at valid users, user by user; a held-out item each."""
    setup, found = one.setup, []
    batch = user_batch(setup, one.recommender.model, one.tracked)
    batch |= {name: array[one.tracked] for name, array in read.items()}
    scores = np.asarray(one.recommender.model.item_scores(params, frozen, batch), np.float64)
    valid, train = setup.shared.data.split.valid, setup.shared.data.split.train
    for row, s in enumerate(one.tracked):
        user = setup.states.user[s]
        [target] = valid.item[valid.user == user].tolist()
        seen = {*train.item[train.user == user].tolist()} - {target}
        ahead = [
            i
            for i in range(setup.shared.data.dataset.num_items)
            if i != target and i not in seen and scores[row, i] >= scores[row, target]
        ]
        found.append(1 / np.log2(2 + len(ahead)) if len(ahead) < 10 else 0.0)
    return np.mean(found)


def test_parameters_are_chosen_on_looked_at_valid_users(joint, opened):  # noqa: F811
    """Of controls, and of rounds."""
    one, systems = opened.one, Systems(opened.one, opened.state)
    assert {*opened.setup.states.part[one.tracked]} == {VALID} and len(one.tracked) == 11
    read = systems._read("stated")
    frozen = systems._frozen(one.recommender, read)
    state = one.recommender.initial(one.seed, one.alone.params)
    params, value = fit(one.recommender, state, frozen, read, steps=2, seed=one.seed)
    assert value == pytest.approx(valid_ndcg(one, params, frozen, read), abs=1e-6)
    cache = jax.device_get(opened.state.cache)
    kept = {"encoding": cache.encoding, "present": cache.present}
    frozen = one.recommender.frozen(one.alone.frozen, jax.device_get(opened.state.constants))
    expected = valid_ndcg(one, opened.state.recommender["params"], frozen, kept)
    told = held_out(one, opened.state, ROUNDS)["valid/ndcg@10"]
    rounds = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert told == rounds[-1]["valid/ndcg@10"] == pytest.approx(expected, abs=1e-6)


def test_the_warm_start_learns_to_end(opened, monkeypatch):  # noqa: F811
    """Each answer is its text and the token that ends it, which is trained as any other."""
    setup, seen = opened.setup, []

    def kept(prompts, states, tokens, length, **options):
        seen.append((states.tolist(), tokens, length))
        raise runs.Cut

    monkeypatch.setattr(actor, "rows", kept)
    with pytest.raises(runs.Cut):
        opened.one.actor.warm_start(0, opened.one.users, "joint/0/sft", None)
    [(states, tokens, length)] = seen
    assert states == sorted(setup.states.teacher)
    tokenizer = setup.shared.base.tokenizer
    for row, s in enumerate(states):
        answer = tokens[row, : length[row]].tolist()
        assert answer[-1] == tokenizer.eos_id and tokenizer.eos_id not in answer[:-1]
        assert tokenizer.decode(answer[:-1]) == setup.states.teacher[s]


@pytest.mark.parametrize("values", [(0.3, 0.2), (0.2, 0.3), (0.2, 0.2)])
def test_joint_reads_with_the_better_of_two_recommenders(opened, monkeypatch, values):  # noqa: F811
    """One trained anew as those of controls are, and one that goes on from the best round."""
    one, tried = opened.one, []

    def fit(fused, state, frozen, read, *, steps, seed):
        tried.append((frozen, steps, jax.device_get(state.params)))
        return Fitted(len(tried), values[len(tried) - 1])

    monkeypatch.setattr(systems_module, "fit", fit)
    constants = {name: array + 1.0 for name, array in opened.state.constants.items()}
    systems = Systems(one, opened.state.replace(constants=constants))
    chosen = systems._joint
    again, gone_on = 1, 0  # places in the order in which they were trained
    better = again if values[again] >= values[gone_on] else gone_on
    assert chosen.params == better + 1 and chosen.frozen is tried[better][0]
    assert [steps for _, steps, _ in tried] == [5, 3 + 2 * 2 + 5]
    fresh = one.recommender.initial(one.seed, one.alone.params).params
    for (_, _, begun), start in zip(tried, (opened.state.best["recommender"], fresh), strict=True):
        runs.assert_same_bits(begun, jax.device_get(start))
    read, known = systems._read("joint"), np.concatenate([opened.setup.learned, one.tracked])
    own = one.recommender.constants(read, known)
    assert own.keys() == {"mean", "basis", "projection", "query_scale"}
    for name, array in own.items():
        np.testing.assert_array_equal(tried[again][0][name], array)
        np.testing.assert_array_equal(tried[gone_on][0][name], constants[name])


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
    assert (kept.version[opened.one.tracked] == ROUNDS).all()
    others = np.setdiff1d(np.arange(len(kept.version)), [*opened.setup.cached, *opened.one.tracked])
    assert {*opened.setup.states.rows(TEST)} <= {*others} and (kept.version[others] == -1).all()


def test_what_texts_add_to_the_held_out_item_one_by_one(joint, opened):  # noqa: F811
    """Over nothing to read, and over other texts where those of the warm start are kept."""
    one, state = opened.one, jax.device_get(opened.state)
    items, model = opened.setup.shared.data.dataset.num_items, one.recommender.model
    frozen = one.recommender.frozen(one.alone.frozen, state.constants)
    params, gains = opened.state.recommender["params"], []
    kept = {name: getattr(state.cache, name) for name in ("encoding", "present")}
    others = {name: array[one.tracked][::-1] for name, array in kept.items()}
    for place, s in enumerate(one.tracked.tolist()):
        alone = user_batch(opened.setup, model, np.array([s]))
        texts = {name: array[[s]] for name, array in kept.items()}
        first = {name: array[[place]] for name, array in others.items()}
        log_p = []
        for batch in (alone | texts, alone, alone | first):
            scores = np.asarray(model.item_scores(params, frozen, batch), np.float64)[0, :items]
            log_p.append(scores[opened.setup.states.target[s]] - np.log(np.exp(scores).sum()))
        gains.append(log_p[0] - np.array(log_p[1:]))
    told = held_out(one, opened.state.replace(first=others), ROUNDS)
    for name, expected in zip(("log_prob", "text"), np.mean(gains, axis=0), strict=True):
        found = told[f"valid/{name}_gain"]
        assert found == pytest.approx(expected, abs=1e-5) and abs(found) > 1e-4
    rounds = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert rounds[-1]["valid/log_prob_gain"] == told["valid/log_prob_gain"]
    assert rounds[0]["valid/text_gain"] == 0.0  # its own texts
    warm = jax.device_get(newest(seed_run(joint / "warm"))[0].cache)
    for name, array in state.first.items():
        np.testing.assert_array_equal(array, getattr(warm, name)[one.tracked])


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


def test_several_held_out_items_count_alike(opened):  # noqa: F811
    one, setup = opened.one, opened.setup
    users = setup.states.user[one.tracked[:2]]
    events = Interactions(np.repeat(users, [3, 1]).astype(np.int32), np.array([4, 9, 2, 7]))
    data = SimpleNamespace(split=SimpleNamespace(valid=events), dataset=setup.shared.data.dataset)
    fake = SimpleNamespace(
        shared=SimpleNamespace(data=data), setup=SimpleNamespace(states=setup.states)
    )
    targets = FusedTask.held_out(fake, one.tracked[[1, 0]])
    assert targets.tolist() == [[7, -1, -1], [4, 9, 2]]
    state = jax.device_get(opened.state)
    frozen = one.recommender.frozen(one.alone.frozen, state.constants)
    params, rows = opened.state.recommender["params"], one.tracked[[1, 0]]
    texts = {name: getattr(state.cache, name)[rows] for name in ("encoding", "present")}
    found = one.recommender.score(params, frozen, rows, **texts, key=1, targets=targets)
    batch = user_batch(setup, one.recommender.model, rows)
    for name, read in (("log_prob", texts), ("log_prob_null", {})):
        scores = np.asarray(
            one.recommender.model.item_scores(params, frozen, batch | read), np.float64
        )
        scores = scores[:, : setup.shared.data.dataset.num_items]
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        expected = [log_p[0, 7], log_p[1, [4, 9, 2]].mean()]
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_group_that_shares_its_prompt_is_read_as_apart(opened):  # noqa: F811
    """Soft prompts, ragged answers, and batches that split the rollout unevenly."""
    policy, setup, users = opened.one.actor, opened.setup, opened.one.users
    states = np.repeat(setup.rolled_out[:5], 2)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 200, (10, setup.shared.size)).astype(np.int32)
    length = rng.integers(0, setup.shared.size + 1, 10).astype(np.int32)
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


def test_a_critic_and_policy_learn_from_groups_as_from_answers_apart(joint):  # noqa: F811
    """A round's rollouts in groups of two, PPO with a critic, all of them in one batch."""
    plain = dict(optimizer="sgd", learning_rate=0.5, b1=0.0, clip_norm=0.0, weight_decay=0.0)
    after = []
    with use_mesh(tiny.mesh(1)):
        for share in (True, False):
            ppo = dict(share_prompts=share, batch_size=16, policy=plain, critic=plain)
            one = seed_run(joint / "warm", dict(rollout=dict(group_size=2), ppo=ppo))
            saved = newest(seed_run(joint / "warm"))[0]
            one = ready(one, saved, saved.best["policy"])
            before = one.actor.initial(0, one.warm_policy)
            start, state = jax.device_get(before.params), saved.replace(policy=part_of(before))
            if share:
                buffer = jax.device_get(roll_out(one, state, 1).buffer)
                score = np.random.default_rng(4).normal(size=16).astype(np.float32)
            host = on_host(state)._replace(buffer=buffer)
            batch, _, _ = policy_rows(one, state, host, score)
            learned, metrics = one.actor.update(before, batch, number=1)
            after.append((jax.device_get(learned.params), metrics))
    assert (buffer.state[::2] == buffer.state[1::2]).all() and len({*buffer.state.tolist()}) > 4
    moved = {"policy": 0.0, "critic": 0.0}
    for (path, old), (_, new), (_, other) in zip(
        runs.flat(start), runs.flat(after[0][0]), runs.flat(after[1][0]), strict=True
    ):
        np.testing.assert_allclose(new, other, atol=2e-5, err_msg=path)
        part = "policy" if "policy" in path else "critic"
        moved[part] = max(moved[part], float(np.abs(new - old).max()))
    assert min(moved.values()) > 1e-3, moved
    for name, value in after[0][1].items():
        assert value == pytest.approx(after[1][1][name], abs=1e-4), name


def test_schedules_end_with_the_last_update(opened):  # noqa: F811
    """Of three rounds of 2 epochs of 16 / 8 batches; in the first round only the critic learns."""
    shared = copy.copy(opened.setup.shared)
    setup = dataclasses.replace(opened.setup, shared=shared)
    shared.cfg = shared.cfg.copy_and_resolve_references()
    slow = dict(
        schedule="linear", final_rate=0.0, optimizer="sgd", b1=0.0, clip_norm=0.0, weight_decay=0.0
    )
    shared.cfg.update(rounds=3)
    shared.cfg.ppo.update(epochs=2, critic_warmup=1)
    shared.cfg.ppo.policy.update(slow | dict(learning_rate=0.8, warmup=0.5))
    shared.cfg.ppo.critic.update(slow | dict(learning_rate=0.6))
    rule = PolicyTask(setup, user_dim=3).tx
    expected = {
        "policy": [0.0, 0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2],
        "critic": 0.6 * (1 - np.arange(12) / 12),
    }
    tree = {"policy": jnp.ones(2), "critic": jnp.ones(1)}
    for part, rates in expected.items():
        state, found = rule.init(tree), []
        for _ in range(len(rates) + 1):
            updates, state = rule.update(tree, state, tree)
            found.append(-float(updates[part][0]))
        np.testing.assert_allclose(found, [*rates, 0.0], atol=1e-6, err_msg=part)


def test_a_recommender_whose_scores_are_nan_is_no_round_to_keep(opened):  # noqa: F811
    params = opened.state.recommender["params"]
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    state = opened.state.replace(recommender=opened.state.recommender | {"params": broken})
    with pytest.raises(UserError, match="held-out items are NaN or infinite"):
        held_out(opened.one, state, 1)


def test_updates_that_break_parameters_though_their_loss_is_finite(opened, monkeypatch):  # noqa: F811
    one = opened.one
    state = one.recommender.initial(0, one.alone.params)
    kept = jax.device_get(opened.state.cache)
    frozen = one.recommender.frozen(one.alone.frozen, jax.device_get(opened.state.constants))
    read = {"encoding": kept.encoding, "present": kept.present}

    def step(state, batch):
        broken = jax.tree.map(lambda x: x * jnp.inf, state.params)
        return state.replace(params=broken), {"train/loss": jnp.float32(1.0)}

    monkeypatch.setattr(one.recommender, "_compiled", lambda state: step)
    with pytest.raises(UserError, match=r"base/.* broke the weights; lower joint\.recommender"):
        one.recommender.train(state, frozen, read, steps=1, seed=0)


def test_titles_are_masked_in_every_script():
    titles = ["Lantern", "Cat", "千と千尋", "猫", "기생충", "Кино", "Matrix, The (1999)", "It"]
    texts = [
        "A lantern and the Lantern's Cat",
        "千と千尋は猫",
        "기생충은",
        "Кино, Киноклуб",
        "It is as the Matrix (1999), as 'It'.",
    ]
    masked = mask_titles(texts, titles)
    assert masked == [
        "A lantern and this place's this place",
        "this placeは猫",
        "this place은",
        "this place, Киноклуб",
        "It is as this place, as 'this place'.",
    ]
    # What the monitors count as a mention is gone.
    monitors = Monitors(["a lantern it is"], titles)
    assert monitors.measure(texts, [""] * 5)["monitor/title_mention"] == 1
    assert monitors.measure(masked, [""] * 5)["monitor/title_mention"] == 0
