"""What the recommender of a joint run learns from and is measured on, against plain loops."""

import dataclasses
import functools
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests import tiny
from tests.joint.test_granularity import scrambled
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.run_data import prepare
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.recommender.rows import another
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.states.base import TEST, TRAIN, VALID
from xrec_jax.joint.states.setup import state_setup
from xrec_jax.joint.states.world import world_states
from xrec_jax.parallel.mesh import gather, use_mesh
from xrec_jax.recommenders.explained.match import item_projection, item_vectors, query_scale
from xrec_jax.training.recommender import build_model

WIDTH = 3


def config_of(*, model="sasrec", held_out=0.3, **states):
    made = tiny.config(model)
    made.data.world.update(dict(review_share=0.5, about_share=0.4))
    made.joint.states.update(dict(history=3, max_users=37, min_history=2) | states)
    made.joint.sft.examples = 7
    made.joint.valid_users = 11
    made.joint.rollout.held_out = held_out
    made.joint.recommender.update(dict(bottleneck=4, hidden=6, components=2, match=2))
    return made


@functools.cache
def world():
    return prepare(config_of().data)


class Drawn:
    """Encodings drawn by text, without a language model."""

    width = WIDTH

    def __call__(self, texts):
        rows = [
            np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH) for text in texts
        ]
        return np.array(rows, np.float32).reshape(-1, WIDTH), np.array([bool(t) for t in texts])


def setup_of(config, data, mesh=None):
    shared = JointSetup(config, data, None, mesh=mesh, rundir=None, encoder=Drawn())
    return state_setup(shared, world_states(config, data))


def past(states, s):
    return states.history.items[states.history.start[s] : states.history.start[s + 1]].tolist()


def sequences(data):
    """Items of the training events of every user, in order."""
    found = {}
    for user, item in zip(
        data.split.train.user.tolist(), data.split.train.item.tolist(), strict=True
    ):
        found.setdefault(user, []).append(item)
    return found


def naive_lessons(setup):
    """Event by event: each is served by the newest text before it that reaches so far."""
    states, reach, found = setup.states, setup.shared.cfg.states.reach, {}
    for user, items in sequences(setup.shared.data).items():
        own = {int(states.before[s]): s for s in states.rows(TRAIN) if states.user[s] == user}
        for place, item in enumerate(items):
            before = max((b for b in own if b <= place), default=None)
            if before is not None and place < before + reach:
                found.setdefault(int(own[before]), []).append((item, items[:place]))
    return found


@pytest.mark.parametrize(
    ("train_states", "reach", "min_history"),
    [(1, 1, 2), (1, 4, 2), (3, 2, 2), (2, 5, 0), (6, 3, 1)],
)
def test_lessons_are_those_of_a_plain_loop(train_states, reach, min_history):
    setup = setup_of(
        config_of(train_states=train_states, reach=reach, min_history=min_history), world()
    )
    expected, states = naive_lessons(setup), setup.states
    rows = states.rows(TRAIN).tolist()
    assert sorted(expected) == rows and setup.targets.shape == (len(states), reach)
    for s in range(len(states)):
        mine = [item for item, _ in expected[s]] if s in expected else [int(states.target[s])]
        padded = mine + [-1] * (reach - len(mine))
        assert setup.targets[s].tolist() == padded and mine[0] == states.target[s]
    rolled = {int(u) for u in states.user[setup.rolled_out]}
    kept = [s for s in rows if int(states.user[s]) not in rolled]
    assert 0 < len(kept) < len(rows) and setup.learned.tolist() == kept
    wanted = [(s, item, before) for s in kept for item, before in expected[s]]
    lessons = setup.training_rows
    found = [
        (int(s), int(item), past(SimpleNamespace(history=lessons.history), n))
        for n, (s, item) in enumerate(zip(lessons.state, lessons.target, strict=True))
    ]
    assert found == wanted and (reach == 1) == (len(found) == len(kept))
    if reach == 4:
        counts = (setup.targets[rows] >= 0).sum(axis=1)
        assert len(np.unique(counts)) > 1  # users whose events end the reach are among them


def test_users_of_the_warm_start_are_in_no_figure():
    setup = setup_of(config_of(), world())
    states = setup.states
    taught = {int(states.user[s]) for s in states.teacher}
    assert len(taught) == 7 and setup.taught_users.tolist() == sorted(taught)
    others = {int(u) for u in states.user[states.rows(VALID)]} - taught
    assert len(setup.tracked_users) == 11 and {*setup.tracked_users.tolist()} <= others
    config = config_of()
    config.joint.valid_users = 0
    setup = setup_of(config, world())
    assert setup.tracked_users.tolist() == sorted(others)


def test_a_share_of_the_users_teaches_and_all_keep_their_history():
    config, data = config_of(train_states=2, reach=3), world()
    whole, some = setup_of(config, data), setup_of(config, data._replace(train_share=0.6))
    learned = {int(u) for u in some.shared.data.learned.user}
    users = {int(u) for u in whole.states.user}
    assert users & learned and users - learned
    for part in (TRAIN, VALID, TEST):
        rows = [
            [
                (int(s.user[r]), int(s.before[r]), int(s.target[r]), past(s, r), s.prompts[r])
                for r in s.rows(part)
            ]
            for s in (whole.states, some.states)
        ]
        assert rows[1] == [row for row in rows[0] if part != TRAIN or row[0] in learned]
    for s in (*some.states.teacher, *some.learned, *some.rolled_out, *some.training_rows.state):
        assert int(some.states.user[s]) in learned


@functools.cache
def fused():
    """A fused recommender with random weights, encodings drawn at random."""
    mesh = tiny.mesh()
    setup = setup_of(config_of(train_states=2, reach=3), world(), mesh)
    with use_mesh(mesh):
        base = build_model(setup.shared.config.recommend["sasrec"], setup.shared.data)
        task = FusedTask(setup, SimpleNamespace(model=base), width=WIDTH)
        weights = scrambled(task.model.init(jax.random.key(1)), 2)
        rng = np.random.default_rng(5)
        read = {
            "encoding": rng.normal(size=(len(setup.states), 2, WIDTH)).astype(np.float32),
            "present": rng.random((len(setup.states), 2)) < 0.7,
        }
        train = setup.shared.data.learned
        frozen = task.frozen(
            base.frozen(train.user, train.item).arrays, task.constants(read, setup.learned)
        )
    return setup, task, weights, frozen, read


def test_training_rows_are_lessons():
    setup, task, _, _, read = fused()
    rows = task.trained_rows()
    assert rows.tolist() == list(range(len(setup.training_rows.state)))
    wanted = [
        (s, *one)
        for s, found in sorted(naive_lessons(setup).items())
        if s in setup.learned
        for one in found
    ]
    chosen = rows[::-3]
    batch = task.batch(chosen, read)
    width = task.model.history_length
    for n, row in enumerate(chosen):
        s, item, before = wanted[row]
        latest = before[-width:]
        assert batch["user"][n] == setup.states.user[s] and batch["target"][n] == item
        assert batch["history"][n, : batch["length"][n]].tolist() == latest
        assert not batch["history"][n, len(latest) :].any()
        np.testing.assert_array_equal(batch["encoding"][n], read["encoding"][s])
        np.testing.assert_array_equal(batch["present"][n], read["present"][s])
    assert (batch["weight"] == 1).all()


def test_texts_meet_the_items_of_the_run():
    """The match takes the items' own texts, in the order of the items, by the run's encoder."""
    setup, task, weights, frozen, read = fused()
    items = setup.shared.data.dataset.items.to_dicts()
    texts = setup.states.item_texts
    assert len(texts) == len(items) and len(set(texts)) > 5
    for text, row in zip(texts, items, strict=True):
        own = [str(row[k]) for k in ("kind", "cuisine", "mood") if str(row[k]) != "none"]
        # A plural may end otherwise ("bakeries"); nothing is named that the item is not.
        assert all(value[:-1] in text for value in own)
        others = {str(other["mood"]) for other in items} - {str(row["mood"])}
        assert not any(other in text for other in others) and str(row["name"]) not in text
    described = setup.shared.encoder(texts)
    projection = item_projection(*described, 2)
    np.testing.assert_array_equal(frozen["projection"], projection)
    np.testing.assert_array_equal(frozen["item_match"], item_vectors(*described, projection))
    # As a checkpoint of another machine may have it: items follow the projection that is kept.
    turned = projection[:, ::-1].copy()
    with use_mesh(setup.shared.mesh):
        kept = task.frozen({}, {"projection": turned})
    np.testing.assert_array_equal(kept["item_match"], item_vectors(*described, turned))
    rows = setup.learned
    scale = query_scale(
        read["encoding"][rows], read["present"][rows], np.asarray(frozen["mean"]), projection
    )
    np.testing.assert_array_equal(frozen["query_scale"], scale)
    assert task.model.match == 2 and "match" in weights


def test_the_items_of_a_history_are_read_in_place_of_a_text():
    setup, *_ = fused()
    texts = [text if n % 3 else "" for n, text in enumerate(setup.states.item_texts)]
    setup = dataclasses.replace(setup, states=dataclasses.replace(setup.states, item_texts=texts))
    read, encoder = setup.history_reading(), setup.shared.encoder
    silent = 0
    for s in range(len(setup.states)):
        own = [encoder([texts[i]])[0][0] for i in past(setup.states, s) if texts[i]]
        assert read["present"][s].tolist() == [bool(own), False]
        np.testing.assert_allclose(
            read["encoding"][s, 0], np.mean(own, axis=0) if own else 0.0, atol=1e-6
        )
        silent += not own
    assert 0 < silent < len(setup.states) and not read["encoding"][:, 1].any()


def test_the_temperature_is_fitted_on_every_held_out_event():
    setup, task, weights, _, _ = fused()
    data, base = setup.shared.data, task.task.model
    arrays = base.frozen(data.learned.user, data.learned.item).arrays
    state = {int(setup.states.user[s]): s for s in setup.states.rows(VALID)}
    rng, found = np.random.default_rng(3), []
    with use_mesh(setup.shared.mesh):
        users = task.user_states(weights["base"], arrays)
        table = np.asarray(base.tables(weights["base"], arrays).item)[: data.dataset.num_items]

        def drawn(names):  # as if scores were right once divided by 1.6
            likely = np.array([users[state[u]] @ table.T for u in names.tolist()]) / 1.6
            picked = (likely + rng.gumbel(size=likely.shape)).argmax(axis=1)
            return Interactions(names, picked.astype(np.int32))

        names = np.array(sorted(state), np.int32)
        valid, more = drawn(names), drawn(np.repeat(names, rng.integers(1, 4, len(names))))
        nobody = valid.take(np.isin(names, setup.tracked_users, invert=True))
        for events in (valid, more, nobody):
            config = setup.shared.config.copy_and_resolve_references()
            other = setup_of(config, data, setup.shared.mesh)
            assert other.tracked_users.tolist() == setup.tracked_users.tolist()
            split = dataclasses.replace(data.split, valid=events)
            other.shared.data = data._replace(split=split)
            own = FusedTask(other, task.task, width=WIDTH)
            found.append(float(own.temperature(weights["base"], arrays)))
    for events, heat in zip((valid, more), found, strict=False):
        pairs = [
            (state[int(u)], int(i))
            for u, i in zip(events.user, events.item, strict=True)
            if u in setup.tracked_users
        ]
        scores = np.float64([users[s] @ table.T for s, _ in pairs])
        own = scores[np.arange(len(pairs)), [i for _, i in pairs]]
        losses = [
            np.mean(np.log(np.exp(scores / t).sum(axis=1)) - own / t)
            for t in (heat / 1.03, heat, heat * 1.03)
        ]
        assert min(losses) == losses[1] and 0.25 < heat < 4
    assert found[0] != found[1] and found[2] == 1.0
    setup.shared.cfg.recommender.temperature = 1.25
    assert task.temperature(None, None) == np.float32(1.25)
    setup.shared.cfg.recommender.temperature = 0.0


@pytest.mark.parametrize("train_base", [False, True])
def test_a_base_that_is_not_trained_does_not_decay(train_base):
    setup, _, weights, frozen, read = fused()
    setup = setup_of(
        setup.shared.config.copy_and_resolve_references(), setup.shared.data, setup.shared.mesh
    )
    setup.shared.cfg.recommender.train_base = train_base
    setup.shared.cfg.recommender.train.update(
        dict(optimizer="adamw", weight_decay=0.5, learning_rate=0.01)
    )
    with use_mesh(setup.shared.mesh):
        model = build_model(setup.shared.config.recommend["sasrec"], setup.shared.data)
        task = FusedTask(setup, SimpleNamespace(model=model), width=WIDTH)
        first = task.initial(0, weights["base"])
        before = gather(first.params)
        last = gather(task.train(first, frozen, read, steps=2, seed=0)[0].params)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, last)
    assert all(jax.tree.leaves(same["base"])) != train_base
    assert not any(jax.tree.leaves(same["fusion"]["autoencoder"]))


def test_a_text_is_worth_its_mean_over_the_targets():
    setup, task, weights, frozen, read = fused()
    states, expected = setup.rolled_out[:9], naive_lessons(setup)
    encoding, present = read["encoding"][states], read["present"][states]
    with use_mesh(setup.shared.mesh):
        told = task.score(weights, frozen, states, encoding, present, key=3)
        batch = {"user": setup.states.user[states]}
        batch["history"] = setup.states.history.padded(states, task.model.history_length)
        batch["length"] = np.minimum(
            setup.states.history.lengths[states], task.model.history_length
        ).astype(np.int32)
        score = jax.jit(task.model.item_scores)
        own = score(weights, frozen, batch | {"encoding": encoding, "present": present})
        null = score(weights, frozen, batch)
        other = another(setup.states.user[states], 3)
        texts = {"encoding": encoding[other], "present": present[other]}
        shuffled = score(weights, frozen, batch | texts)
    assert (setup.states.user[states[other]] != setup.states.user[states]).all()
    assert len({len(expected[int(s)]) for s in states}) > 1
    for name, scores in (
        ("log_prob", own),
        ("log_prob_null", null),
        ("log_prob_shuffled", shuffled),
    ):
        scores = np.asarray(scores, np.float64)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        for n, s in enumerate(states):
            values = [logs[n, item] for item, _ in expected[int(s)]]
            np.testing.assert_allclose(told[name][n], np.mean(values), atol=2e-4)
            seen, target = past(setup.states, s), int(setup.states.target[s])
            ahead = [
                i
                for i in range(scores.shape[1])
                if i != target and i not in seen and scores[n, i] >= scores[n, target]
            ]
            assert told[name.replace("log_prob", "rank")][n] == 1 + len(ahead)
    assert np.abs(told["log_prob"] - told["log_prob_null"]).max() > 0.01
