"""Explanations of candidates: retrieval, equal treatment, leave-one-out gains, reranked lists."""

import dataclasses
import functools
import json
import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import runs, tiny
from tests.joint.test_state_files import twin
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.data.run_data import prepare
from xrec_jax.data.world.vocabulary import KINDS, MOODS
from xrec_jax.evaluation.faithfulness.planted import planted_claims, score_texts, world_vocabulary
from xrec_jax.evaluation.ranking.evaluator import RankingEvaluator
from xrec_jax.joint.granularity import GRANULARITIES
from xrec_jax.joint.recommender.reranker import RerankTask, retrieved
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.states.base import TEST, TRAIN, VALID
from xrec_jax.joint.states.candidate_texts import WRITERS
from xrec_jax.joint.states.candidates import cases_of, placed, slots_of
from xrec_jax.joint.states.files import file_states
from xrec_jax.joint.states.world import world_states
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.text.claims.reader import read_claims
from xrec_jax.text.synthetic.item_pairs import NOTHING, reason_pair
from xrec_jax.text.synthetic.taste_pairs import join_pair, taste_pair
from xrec_jax.training.recommender import build_model

CANDIDATES, WIDTH = 5, 3


def rerank_config(model="sasrec", **states):
    config = tiny.config(model)
    config.data.world.update(dict(about_share=0.6, review_share=0.5))
    config.joint.granularity = "user_item"
    config.joint.candidates = CANDIDATES
    config.joint.states.update(dict(template="candidate", history=3, max_users=19) | states)
    config.joint.sft.examples = 7
    config.joint.recommender.update(dict(bottleneck=4, hidden=6, components=0))
    config.ranking.ks = (3, 10)
    return config


@functools.cache
def world():
    return prepare(rerank_config().data)


def scrambled(tree, seed):
    """A tree of the same shapes with random values, so that nothing is zero."""
    leaves, structure = jax.tree.flatten(nn.unbox(tree))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [(x + 0.7 * rng.normal(size=x.shape)).astype(np.float32) for x in leaves]
    )


def made_of(model, devices=1):
    """A setup without a language model, its cases, and a fused recommender with random weights."""
    config, data, mesh = rerank_config(model), world(), tiny.mesh(devices)
    base = build_model(config.recommend[model], data)
    params = scrambled(base.init(jax.random.key(0)), 1)
    frozen = base.frozen(data.learned.user, data.learned.item).arrays
    task = SimpleNamespace(model=base)
    shared = SimpleNamespace(config=config, cfg=config.joint, data=data, mesh=mesh)
    shared.put = functools.partial(JointSetup.put, shared)
    rng = np.random.default_rng(6)
    described = rng.normal(size=(data.dataset.num_items, WIDTH)).astype(np.float32)
    setup = SimpleNamespace(
        shared=shared,
        states=world_states(config, data),
        match_features=2,
        item_encoding=(described, np.arange(len(described)) % 5 > 0),
    )
    best = retrieved(setup, task, params, frozen, count=CANDIDATES)
    states = setup.states
    cases = cases_of(states, placed(best, states), WRITERS["world"](config, data, states))
    setup.states = cases
    setup.learned, setup.rolled_out = cases.divided(0.3)
    setup.tracked_users = np.unique(states.user[states.rows(VALID)])[::2]
    fused = RerankTask(setup, task, width=WIDTH)
    weights = {**scrambled(fused.model.init(jax.random.key(1)), 2), "base": params}
    rng = np.random.default_rng(5)
    read = {
        "encoding": rng.normal(size=(len(cases), 2, WIDTH)).astype(np.float32),
        "present": rng.random((len(cases), 2)) < 0.7,
    }
    constants = {
        "mean": np.full((2, WIDTH), 0.1, np.float32),
        "std": np.full((2, WIDTH), 1.3, np.float32),
        "projection": np.eye(WIDTH, 2, dtype=np.float32),
        "query_scale": np.array([[0.24], [0.14]], np.float32),
    }
    return SimpleNamespace(
        setup=setup,
        base=base,
        params=params,
        alone=frozen,
        best=best,
        states=states,
        cases=cases,
        fused=fused,
        weights=weights,
        read=read,
        frozen=fused.frozen(frozen, constants),
        data=data,
    )


@functools.cache
def made(model="sasrec"):
    with use_mesh(tiny.mesh()):
        return made_of(model)


def past(states, s):
    return states.history.items[states.history.start[s] : states.history.start[s + 1]].tolist()


def old_scores(one, user, history):
    """Scores of the whole catalogue by the recommender alone, of one user."""
    batch = {"user": np.array([user], np.int32)}
    if one.base.history_length:
        latest = history[-one.base.history_length :]
        padded = latest + [0] * (one.base.history_length - len(latest))
        batch["history"] = np.array([padded], np.int32)
        batch["length"] = np.array([len(latest)], np.int32)
    scores = _catalogue(one.base, one.params, one.alone, batch)
    return np.asarray(scores)[0, : one.base.num_items].astype(np.float64), batch


@functools.partial(jax.jit, static_argnums=0)
def _catalogue(base, params, frozen, batch):
    tables = base.tables(params, frozen)
    return base.scores(base.user_state(params, tables, batch), tables.item)


_ONE = jax.jit(lambda model, *rest: model.candidate_scores(*rest), static_argnums=0)


@pytest.mark.parametrize("model", ["sasrec", "bpr"])
def test_candidates_are_the_best_unseen_items(model):
    one = made(model)
    for s in range(0, len(one.states), 7):
        history = past(one.states, s)
        scores, _ = old_scores(one, one.states.user[s], history)
        unseen = [i for i in range(len(scores)) if i not in history]
        assert one.best[s].tolist() == sorted(unseen, key=lambda i: -scores[i])[:CANDIDATES]


def test_only_training_states_get_their_target():
    one = made()
    cases, states = one.cases, one.states
    added = 0
    for s in range(len(states)):
        kept, target = set(one.best[s].tolist()), int(states.target[s])
        if states.part[s] == TRAIN and target not in kept:
            kept = {*one.best[s, :-1].tolist(), target}
            added += 1
        assert cases.candidates[s].tolist() == sorted(kept)
    assert added > 3
    assert set(cases.state[one.setup.learned]) == set(one.fused.trained_rows())
    outside = (cases.candidates != states.target[:, None]).all(axis=1)
    assert not outside[states.part == TRAIN].any() and outside[states.part != TRAIN].any()
    np.testing.assert_array_equal(cases.slots.reshape(-1), np.arange(len(cases)))
    for case in (0, 11, len(cases) - 1):
        s = int(cases.state[case])
        assert past(cases, case) == past(states, s) and cases.user[case] == states.user[s]
    assert cases.notes[-1].startswith("the target is among the candidates in ")


def test_rows_with_fewer_candidates_than_asked_for():
    best = np.array([[4, 2, -1], [9, 7, 8], [-1, -1, -1], [5, 6, 1]], np.int32)
    states = SimpleNamespace(
        part=np.array([TRAIN, TEST, TRAIN, TRAIN]), target=np.array([3, 3, 3, -1])
    )
    found = placed(best, states)
    assert found.tolist() == [[3, 4, -1], [7, 8, 9], [3, -1, -1], [1, 5, 6]]
    assert slots_of(found).tolist() == [[0, 1, -1], [2, 3, 4], [5, -1, -1], [6, 7, 8]]


def test_nothing_in_a_case_depends_on_which_candidate_is_true():
    one = made()
    states, config = one.states, one.setup.shared.config
    whole = WRITERS["world"](config, one.data, states)
    first = cases_of(states, one.cases.candidates, whole)
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = rng.integers(CANDIDATES, size=len(states))
        target = one.cases.candidates[np.arange(len(states)), chosen]
        other = dataclasses.replace(states, target=target)
        np.testing.assert_array_equal(placed(one.cases.candidates, other), one.cases.candidates)
        again = cases_of(other, one.cases.candidates, WRITERS["world"](config, one.data, other))
        for name in ("prompts", "teacher", "template", "summary", "said", "planted"):
            assert getattr(again, name) == getattr(first, name), name
        np.testing.assert_array_equal(again.features, first.features)
        np.testing.assert_array_equal(again.candidate, first.candidate)
    # A prompt shows its own candidate, and no name of any place.
    row = one.data.dataset.items.to_dicts()[int(first.candidate[3])]
    assert f"price {row['price']}, {row['district']}" in first.prompts[3]
    assert not any(row["name"] in prompt for prompt in first.prompts)
    assert len(first.teacher) == 7
    assert all(first.part[case] == TRAIN for case in first.teacher)


def test_true_reasons_are_read_from_their_words():
    rng = np.random.default_rng(1)
    users, items = rng.integers(75, size=400), rng.integers(61, size=400)
    seen = set()
    for true in world().world.reasons(users, items):
        reasons = {
            side: [dict(attribute=r.attribute, value=r.value, phrase=r.phrase) for r in found]
            for side, found in (("for", true.for_), ("against", true.against))
        }
        text = join_pair(reason_pair(reasons))
        assert score_texts([text], [true]).f1[0] == 1.0, text
        seen |= {(claim.attribute, claim.direction) for claim in planted_claims(true)}
    assert len(seen) == 14  # every attribute for and against
    assert not read_claims(join_pair(NOTHING), world_vocabulary())


def new_scores(one, cases, read):
    """Score of each case by its own text, one at a time."""
    found = []
    for case in cases:
        _, batch = old_scores(one, one.cases.user[case], past(one.cases, case))
        batch["candidates"] = one.cases.candidate[[case]][None]
        batch |= {name: read[name][[case]][None] for name in read}
        score = _ONE(one.fused.model, one.weights, one.frozen, batch)
        found.append(float(score[0, 0]))
    return found


def naive_rank(one, s, scores, target, seen, user):
    """Place of the target in a list that is sorted anew; `scores` of the state's candidates."""
    old, _ = old_scores(one, user, seen)
    head = [] if s is None else one.cases.candidates[s].tolist()
    ranked = [i for _, i in sorted(zip([-x for x in scores], head, strict=True))]
    rest = [i for i in range(len(old)) if i not in head and (i not in seen or i == target)]
    return 1 + [*ranked, *sorted(rest, key=lambda i: -old[i])].index(target)


@pytest.mark.parametrize("model", ["sasrec", "bpr"])
def test_a_text_is_worth_what_its_absence_costs(model):
    one = made(model)
    cases, rng = one.cases, np.random.default_rng(3)
    rows = np.concatenate([rng.choice(one.setup.rolled_out, 9, replace=False), cases.slots[-1][:2]])
    rows = np.repeat(rows, 2)[1:]
    own = {
        "encoding": rng.normal(size=(len(rows), 2, WIDTH)).astype(np.float32),
        "present": np.ones((len(rows), 2), bool),
    }
    with use_mesh(tiny.mesh()):
        found = one.fused.score(
            one.weights, one.frozen, rows, own["encoding"], own["present"], key=4, read=one.read
        )
    for place, case in enumerate(rows):
        s = int(cases.state[case])
        target = int(cases.target[case])
        group = [int(c) for c in cases.slots[s] if c >= 0]
        for name in ("", "_null"):
            read = {key: array.copy() for key, array in one.read.items()}
            for key in read:
                read[key][case] = own[key][place]
            if name == "_null":
                read["present"][case] = False
            scores = new_scores(one, group, read)
            if target in cases.candidates[s]:
                mine = scores[cases.candidates[s].tolist().index(target)]
                gain = mine - math.log(sum(math.exp(x) for x in scores))
                rank = naive_rank(one, s, scores, target, past(cases, case), int(cases.user[case]))
                assert found[f"rank{name}"][place] == rank
            else:
                gain = 0.0
            np.testing.assert_allclose(found[f"log_prob{name}"][place], gain, atol=2e-5)
    assert (found["log_prob"] != found["log_prob_null"])[:15].all()
    assert found["log_prob"].dtype == np.float32


@pytest.mark.parametrize(("group", "part"), [("test", TEST), ("few", VALID)])
def test_lists_are_ranked_as_sorted_anew(group, part):
    one = made()
    with use_mesh(tiny.mesh()):
        found = one.fused.evaluate(group, one.weights, one.frozen, one.read)
    split, states = one.data.split, one.states
    of_user = {int(states.user[s]): int(s) for s in states.rows(part)}
    before, held_out = [split.train], split.valid
    if group == "test":
        before, held_out = [split.train, split.valid], split.test
    moved = 0
    for place in range(0, len(found.users), 3):
        user = int(found.users[place])
        seen = [item for one in before for item in one.item[one.user == user].tolist()]
        [target] = held_out.item[held_out.user == user].tolist()
        s = of_user.get(user)
        scores = [] if s is None else new_scores(one, cases_at(one, s), one.read)
        rank = naive_rank(one, s, scores, target, seen, user)
        ndcg = 1 / math.log2(1 + rank) if rank <= 10 else 0.0
        assert found.masked["ndcg@10"][place] == pytest.approx(ndcg)
        assert found.masked["hit@3"][place] == (rank <= 3)
        moved += s is not None and rank <= CANDIDATES
    assert moved and (len(of_user) < len(found.users)) == (group == "test")


def cases_at(one, s):
    return [int(c) for c in one.cases.slots[s]]


@pytest.mark.parametrize(("model", "devices"), [("sasrec", 1), ("bpr", 8)])
def test_without_a_text_the_list_is_that_of_the_recommender_alone(model, devices):
    with use_mesh(tiny.mesh(devices)):
        one = made_of(model, devices)
        nothing = one.read | {"present": np.zeros_like(one.read["present"])}
        split = one.data.split
        alone = RankingEvaluator(
            one.base,
            seen=[split.train, split.valid],
            held_out=split.test,
            mesh=tiny.mesh(devices),
            ks=(3, 10),
        )(one.params, one.alone)
        found = one.fused.evaluate("test", one.weights, one.frozen, nothing)
        few = one.fused.evaluate("few", one.weights, one.frozen, one.read)
        read = one.fused.evaluate("test", one.weights, one.frozen, one.read)
    for name, values in alone.masked.items():
        np.testing.assert_array_equal(found.masked[name], values)
    assert few.users.tolist() == one.setup.tracked_users.tolist()
    assert (read.masked["ndcg@10"] != alone.masked["ndcg@10"]).any()


def test_training_rows_have_all_candidates_and_their_texts():
    one = made()
    states = one.fused.trained_rows()[[4, 0, 4]]
    batch = one.fused.batch(states, one.read)
    np.testing.assert_array_equal(batch["candidates"], one.cases.candidates[states])
    np.testing.assert_array_equal(
        batch["encoding"][1, 2], one.read["encoding"][cases_at(one, states[1])[2]]
    )
    np.testing.assert_array_equal(batch["present"], one.read["present"][one.cases.slots[states]])
    assert (batch["candidates"] == batch["target"][:, None]).sum() == 3
    with use_mesh(tiny.mesh()):
        users = one.fused.user_states(one.params, one.alone)
        plain = one.fused._user_states_of(one.params, one.alone, one.cases.slots[:, 0])
    np.testing.assert_allclose(users, plain[one.cases.state], atol=1e-6)


def test_cases_of_a_file(tmp_path):
    source = twin(tmp_path)
    source.config.joint.granularity = "user_item"
    source.config.joint.states.template = "profile_candidate"
    states = file_states(source.config, source.data)
    rng = np.random.default_rng(2)
    best = np.stack(
        [
            rng.permutation([i for i in range(32) if i not in past(states, s)])[:6]
            for s in range(len(states))
        ]
    )
    write = WRITERS["file"](source.config, source.data, states)
    cases = cases_of(states, placed(best, states), write)
    assert len(cases.teacher) == len(states.teacher) == 5
    for case, text in cases.teacher.items():
        assert cases.candidate[case] == cases.target[case] and cases.part[case] == TRAIN
        assert text == states.teacher[int(cases.state[case])]
    described = {r["iid"]: r for r in source.records}
    for case in range(0, len(cases), 5):
        item, prompt = int(cases.candidate[case]), cases.prompts[case]
        shown = prompt.split("Candidate: ")[1].strip()
        record = described.get(f"i{item:02d}")
        chain = item in (27, 28, 29, 30)
        assert (shown == "unknown") is (record is None or item in (29, 30))
        if record and not chain:
            assert shown.startswith(f"{record['title']}: Fans of")
    own = cases.target == cases.candidate
    np.testing.assert_array_equal(cases.unshown_target, np.where(own, -1, cases.target))
    other = dataclasses.replace(states, target=np.roll(states.target, 3))
    again = cases_of(other, cases.candidates, WRITERS["file"](source.config, source.data, other))
    assert again.prompts == cases.prompts and again.template == cases.template


def test_what_cannot_be_is_one_clear_line():
    config, data = rerank_config(), world()
    states = world_states(config, data)
    wrong = config.copy_and_resolve_references()
    wrong.joint.candidates = 61
    with pytest.raises(UserError, match=r"candidates=61 leaves nothing to retrieve from 61 items"):
        GRANULARITIES["user_item"].check(wrong, data)
    wrong = config.copy_and_resolve_references()
    wrong.joint.sft.examples = 9999
    with pytest.raises(UserError, match=r"joint.sft.examples=9999, but only \d+ users"):
        world_states(wrong, data)
    for granularity, template, hint in (
        ("user", "candidate", "'tastes'"),
        ("user_item", "tastes", "'candidate'"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.joint.granularity, wrong.joint.states.template = granularity, template
        with pytest.raises(UserError, match=rf"template='{template}' asks about .*{hint}"):
            world_states(wrong, data)
    with pytest.raises(UserError, match=r"joint.sft.examples=500, but only"):
        config.joint.sft.examples = 500
        cases_of(states, made().cases.candidates, WRITERS["world"](config, data, states))


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_whole_run(tmp_path):
    texts = [join_pair(taste_pair({"kind": [k]}, {"mood": [m]})) for k in KINDS for m in MOODS]
    tiny.llama_directory(tmp_path / "model", texts, ends=6.0, num_layers=1, max_positions=512)
    config = tiny.joint(tmp_path / "model")
    config.data.world.about_share = 0.6
    config.joint.update(dict(granularity="user_item", candidates=3, rounds=1))
    config.joint.states.update(dict(template="candidate", history=1, max_users=12))
    config.recommend = {"bpr": tiny.config("bpr", epochs=1).recommend.bpr}
    config.llm.generation_batch = 8
    config.joint.explain.max_new_tokens = 6
    config.joint.systems = ("planted",)
    config.joint.ppo.estimator, config.joint.rollout.group_size = "group", 2
    config.joint.soft_prompt.vectors = 0
    workdir = tmp_path / "run"
    with runs.one_device():
        run.run(config, workdir)
    rounds = jsonl(workdir / "joint" / "0" / "rounds.jsonl")
    assert [one["round"] for one in rounds] == [0, 1]
    assert rounds[1]["reward/log_prob_gain"] != 0 and rounds[1]["rollout/log_prob_gap"] < 1e-4
    with np.load(workdir / "joint" / "0" / "candidates.npz") as file:
        states, width = file["candidates"].shape
    assert width == 3 and states <= 36
    table = json.loads((workdir / "evaluation.json").read_text())
    for name in ("ndcg@10", "recall@5"):
        alone = table["joint"]["alone"][f"test_all/{name}"]["value"]
        assert alone == pytest.approx(table["recommend"]["bpr"][f"test/{name}"]["value"])
    assert table["joint"]["planted"]["planted/f1"]["value"] == 1.0
    records = jsonl(workdir / "explanations" / "joint_0.jsonl")
    own = [(one["user"], one["item"]) for one in records if one["system"] == "joint"]
    assert len(own) == len(set(own)) == 3 * 12
    with runs.one_device():
        (workdir / "evaluation.json").unlink()
        run.evaluate(workdir)
    again = json.loads((workdir / "evaluation.json").read_text())
    assert again["joint"] == table["joint"]
