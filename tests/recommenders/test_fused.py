"""The explanation-informed recommender against NumPy loops."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from tests.recommenders.test_reranking import naive_rank
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.ranking.evaluator import RankingEvaluator
from xrec_jax.parallel.mesh import RULES, gather, put_batch, put_replicated, put_sharded, use_mesh
from xrec_jax.recommenders import blocks, sasrec
from xrec_jax.recommenders.explained.build import fuse, fuse_features
from xrec_jax.recommenders.explained.fusion import drop_parts
from xrec_jax.recommenders.explained.reranking import rank_of
from xrec_jax.recommenders.mf import BPRMF
from xrec_jax.recommenders.whitening import measure
from xrec_jax.training.state import TrainState
from xrec_jax.training.steps import recommend_step

BASES = ("bpr", "sasrec", "lightgcn")
USERS, ITEMS, WIDTH = 75, 61, 10
SMALL = dict(encoding=WIDTH, bottleneck=5, hidden=7)


class Cosine(BPRMF):
    """Scores that are no inner products."""

    def scores(self, user_state, item_table):
        norm = jnp.linalg.norm(item_table, axis=1)
        return 3 * super().scores(user_state, item_table) / jnp.maximum(norm, 1e-9)


def base_of(name, **changes):
    hparams = tiny.MODELS[name] | ({"layers": 1} if name == "sasrec" else {}) | changes
    return recommenders.create(name, hparams, num_users=USERS, num_items=ITEMS)


@functools.cache
def frozen_of(model, features=None):
    """Frozen arrays with constants that are not trivial."""
    train = tiny.data().split.train
    arrays = dict(model.frozen(train.user, train.item).arrays)
    rng = np.random.default_rng(5)
    arrays["mean"] = rng.normal(size=arrays["mean"].shape).astype(np.float32)
    arrays["std"] = rng.uniform(0.5, 2.0, arrays["std"].shape).astype(np.float32)
    if model.item_features:
        arrays["item_features"] = rng.random((ITEMS, model.item_features)).astype(np.float32)
    return arrays


@functools.cache
def params_of(model):
    """Random parameters, so that nothing is zero or one."""
    shapes = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(1))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32), shapes)


@functools.cache
def compiled(model):
    """Scores, log-probabilities, loss and metrics of a batch."""
    return jax.jit(
        lambda params, frozen, batch, key=None: (
            model.item_scores(params, frozen, batch),
            jax.nn.log_softmax(model.item_scores(params, frozen, batch), axis=1),
            *model.loss(params, frozen, batch, jax.random.key(0) if key is None else key),
        )
    )


def batch_of(size, candidates=0, seed=0):
    """Rows of which some lack one part or both, some have weight 0 and one has no target."""
    rng = np.random.default_rng(seed)
    lead = (size, candidates) if candidates else (size,)
    batch = {
        "user": rng.integers(0, USERS, size),
        "history": rng.integers(0, ITEMS, (size, 9)),
        "length": rng.integers(0, 10, size),
        "target": rng.integers(0, ITEMS, size),
    }
    if candidates:
        batch["candidates"] = rng.permuted(np.tile(np.arange(ITEMS), (size, 1)), axis=1)
        batch["candidates"] = batch["candidates"][:, :candidates]
        batch["target"][::2] = batch["candidates"][::2, 1]
        batch["candidates"][::3, -2:] = -1
    batch["target"][1] = -1
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    batch["weight"] = rng.choice([0.0, 0.25, 1.0, 1.7], size).astype(np.float32)
    batch["encoding"] = rng.normal(size=(*lead, 2, WIDTH)).astype(np.float32)
    batch["present"] = rng.random((*lead, 2)) < 0.6
    return batch


def without(batch, *names):
    return {name: values for name, values in batch.items() if name not in names}


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def naive_fused(fusion, frozen, state, encoding, present):
    """One state, part by part, in float64: fused state, gate, error of every part there."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), fusion)
    dense = lambda layer, x: x @ layer["kernel"] + layer.get("bias", 0.0)  # noqa: E731
    codes, errors = [], []
    for part in range(len(encoding)):
        if not present[part]:
            codes.append(p["null"][part])
            continue
        x = (encoding[part].astype(np.float64) - frozen["mean"][part]) / frozen["std"][part]
        codes.append(np.tanh(dense(p["autoencoder"]["down"], x)))
        errors.append(np.mean((dense(p["autoencoder"]["up"], codes[-1]) - x) ** 2))
    codes, null = np.concatenate(codes), p["null"].reshape(-1)
    layers = p["residual"]
    gate = 1 / (1 + np.exp(-dense(layers["gate"], np.concatenate([state, codes]))))
    change, nothing = (
        dense(layers["second"], gelu(dense(layers["first"], c))) for c in (codes, null)
    )
    return state + gate * (change - nothing), gate, errors


def base_states(model, params, frozen, batch):
    """States and item table of the base alone, which has tests of its own."""

    @jax.jit
    def both(params, batch):
        tables = model.base.tables(params, frozen)
        return model.base.user_state(params, tables, batch), tables.item

    state, table = both(params["base"], without(batch, "encoding", "present"))
    return np.asarray(state, np.float64), np.asarray(table, np.float64)[:ITEMS]


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


# A batch of 128 takes the loss in chunks.
@pytest.mark.parametrize(("name", "size"), [*((name, 13) for name in BASES), ("bpr", 128)])
def test_scores_and_loss(name, size):
    changes = {"dropout": 0.0} if name == "sasrec" else {}
    model = fuse(base_of(name, **changes), null_dropout=0.0, reconstruction=0.37, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(size)
    states, table = base_states(model, params, frozen, batch)
    rows = [
        naive_fused(params["fusion"], frozen, *row)
        for row in zip(states, batch["encoding"], batch["present"], strict=True)
    ]
    scores = [row[0] @ table.T for row in rows]
    found, log_probs, loss, metrics = compiled(model)(params, frozen, batch)
    assert found.shape == (size, ITEMS) and found.dtype == log_probs.dtype == jnp.float32
    np.testing.assert_allclose(found, scores, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(log_probs, [log_softmax(s) for s in scores], rtol=2e-5, atol=2e-5)

    weight = np.where(batch["target"] >= 0, batch["weight"], 0.0)
    main = error = parts = gate = ratio = read = 0.0
    for w, y, s, (fused, g, errors), state in zip(
        weight, batch["target"], scores, rows, states, strict=True
    ):
        main -= w * log_softmax(s)[y] / weight.sum()
        error, parts = error + w * sum(errors), parts + w * len(errors)
        if errors:
            gate, read = gate + w * g.mean(), read + w
            ratio += w * np.linalg.norm(fused - state) / np.linalg.norm(state)
    np.testing.assert_allclose(loss, main + 0.37 * error / parts, rtol=1e-5)
    expected = {
        "cross_entropy": main,
        "reconstruction": error / parts,
        "gate": gate / read,
        "residual_ratio": ratio / read,
        "read": parts / (2 * weight.sum()),
    }
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-5, err_msg=key)


def test_candidates_have_explanations_of_their_own():
    model = fuse(base_of("lightgcn"), null_dropout=0.0, reconstruction=0.2, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(11, candidates=5)
    states, table = base_states(model, params, frozen, batch)
    expected = np.full((11, 5), -np.inf)
    main = total = error = parts = 0.0
    for b, n in np.ndindex(11, 5):
        item = batch["candidates"][b, n]
        if item < 0:
            continue
        fused, _, errors = naive_fused(
            params["fusion"], frozen, states[b], batch["encoding"][b, n], batch["present"][b, n]
        )
        expected[b, n] = fused @ table[item]
        if batch["target"][b] in batch["candidates"][b] and batch["target"][b] >= 0:
            error += batch["weight"][b] * sum(errors)
            parts += batch["weight"][b] * len(errors)
    score = jax.jit(model.candidate_scores)
    found = score(params, frozen, batch)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    for b in range(11):
        place = np.flatnonzero(batch["candidates"][b] == batch["target"][b])
        if batch["target"][b] >= 0 and len(place):
            main -= batch["weight"][b] * log_softmax(expected[b])[place[0]]
            total += batch["weight"][b]
    assert 0 < total < batch["weight"].sum()
    loss, _ = jax.jit(model.loss)(params, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, main / total + 0.2 * error / parts, rtol=1e-5)
    # Nothing but its own explanation sets a candidate's score: another order, the same scores.
    turned = batch | {k: batch[k][:, ::-1] for k in ("candidates", "encoding", "present")}
    again = score(params, frozen, turned)
    np.testing.assert_allclose(again[:, ::-1], found, rtol=1e-6)
    # Without explanations the scores are the base's.
    bare = score(params, frozen, without(batch, "encoding", "present"))
    alone = (states @ table.T)[np.arange(11)[:, None], batch["candidates"]]
    alone[batch["candidates"] < 0] = -np.inf
    np.testing.assert_allclose(bare, alone, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bpr", "cosine"])
def test_temperature(kind):
    """Residuals grow with it, log-probabilities are of scores divided by it, ranks stay."""
    base = base_of("bpr") if kind == "bpr" else Cosine(num_users=USERS, num_items=ITEMS, dim=12)
    model = fuse(base, null_dropout=0.0, reconstruction=0.0, **SMALL)
    params, batch, heat = params_of(model), batch_of(13), 1.7
    frozen = frozen_of(model) | {"temperature": np.float32(heat)}
    states, table = base_states(model, params, frozen, batch)
    fused = [
        state + heat * (naive_fused(params["fusion"], frozen, state, *row)[0] - state)
        for state, *row in zip(states, batch["encoding"], batch["present"], strict=True)
    ]
    score = jax.jit(base.scores)
    expected = np.asarray(score(np.float32(fused), np.float32(table)), np.float64) / heat
    found, log_probs, loss, _ = compiled(model)(params, frozen, batch)
    np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(log_probs, [log_softmax(s) for s in expected], rtol=3e-5, atol=3e-5)
    weight = np.where(batch["target"] >= 0, batch["weight"], 0.0)
    main = -sum(w * log_softmax(s)[y] for w, s, y in zip(weight, expected, batch["target"]))  # noqa: B905
    np.testing.assert_allclose(loss, main / weight.sum(), rtol=2e-5)
    # States for ranking are not divided; without anything to read they are the base's.
    ranked = jax.jit(lambda p, b: model.user_state(p, model.tables(p, frozen), b))
    np.testing.assert_allclose(ranked(params, batch), fused, rtol=3e-5, atol=3e-5)
    bare = without(batch, "encoding", "present")
    nothing = batch | {"present": np.zeros((13, 2), bool)}
    np.testing.assert_array_equal(ranked(params, nothing), ranked(params, bare))
    np.testing.assert_array_equal(ranked(params, bare), np.float32(states))
    several = batch_of(11, candidates=4)
    told = np.asarray(jax.jit(model.candidate_scores)(params, frozen, several))
    for n in range(4):
        one = without(several, "candidates")
        one |= {k: several[k][:, n] for k in ("encoding", "present")}
        item = several["candidates"][:, n]
        alike = np.asarray(compiled(model)(params, frozen, one)[0])[np.arange(11), item]
        np.testing.assert_allclose(told[:, n], np.where(item < 0, -np.inf, alike), rtol=1e-5)


@functools.cache
def trained(name, train_base, steps=3):
    """Parameters before and after some steps of Adam."""
    model = fuse(base_of(name), train_base=train_base, **SMALL)
    frozen, rule = frozen_of(model), optax.adam(0.03)
    first = params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(1))
    opt = rule.init(params)

    @jax.jit
    def step(params, opt, batch, key):
        grads, _ = jax.grad(model.loss, has_aux=True)(params, frozen, batch, key)
        updates, opt = rule.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    for number in range(steps):
        params, opt = step(params, opt, batch_of(16, seed=number), jax.random.key(number))
    return model, first, params


def moved(a, b):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
        )
        if (np.asarray(x) != np.asarray(y)).any()
    }


@pytest.mark.parametrize("name", BASES[:2])
def test_gradients_reach_the_base_only_where_wanted(name):
    _, first, last = trained(name, train_base=False)
    everything = moved(first, jax.tree.map(lambda x: x + 1, first))
    fusion = {leaf for leaf in everything if leaf.startswith("fusion/")}
    assert moved(first, last) == fusion and fusion
    if name == "bpr":
        _, first, last = trained(name, train_base=True)
        assert moved(first, last) == everything


@pytest.mark.parametrize("name", BASES[:2])
def test_nothing_to_read_is_the_base_to_the_last_bit(name):
    model, fresh, params = trained(name, train_base=name == "bpr")
    frozen, batch = frozen_of(model), batch_of(13)
    bare = without(batch, "encoding", "present")
    nothing = batch | {"present": np.zeros((13, 2), bool)}
    states = jax.jit(lambda p, b: model.user_state(p, model.tables(p, frozen), b))
    alone = jax.jit(lambda p, b: model.base.user_state(p, model.base.tables(p, frozen), b))(
        params["base"], bare
    )
    assert (np.asarray(states(params, batch)) != np.asarray(alone)).any()
    for given in (bare, nothing):
        found = np.asarray(states(params, given))
        np.testing.assert_array_equal(found.view(np.int32), np.asarray(alone).view(np.int32))
    scores = jax.jit(model.item_scores)
    np.testing.assert_array_equal(scores(params, frozen, nothing), scores(params, frozen, bare))
    # A fresh fusion changes nothing, whatever there is to read.
    np.testing.assert_array_equal(states(fresh, batch), states(fresh, bare))


def test_parts_are_dropped_at_their_rate():
    left = np.asarray(drop_parts(jax.random.key(0), jnp.ones((20000, 2), bool), 0.3, 0.0))
    sigma = math.sqrt(0.3 * 0.7 / 20000)
    assert (abs(left.mean(0) - 0.7) < 5 * sigma).all()
    assert abs(left.all(1).mean() - 0.49) < 5 * sigma  # each part by itself
    left = np.asarray(drop_parts(jax.random.key(0), jnp.ones((20000, 2), bool), 0.0, 0.25))
    assert (left[:, 0] == left[:, 1]).all() and abs(left.mean() - 0.75) < 5 * sigma
    present = np.random.default_rng(0).random((50, 2)) < 0.5
    assert not (np.asarray(drop_parts(jax.random.key(1), present, 0.4, 0.0)) & ~present).any()
    batch = batch_of(2000) | {"present": np.ones((2000, 2), bool)}
    model = fuse(base_of("bpr"), null_dropout=0.1, null_rows=0.2, **SMALL)
    _, metrics = jax.jit(model.loss)(params_of(model), frozen_of(model), batch, jax.random.key(3))
    assert abs(metrics["read"] - 0.9 * 0.8) < 0.06


def test_rows_of_weight_zero_count_nothing():
    model = fuse(base_of("bpr"), code_dropout=0.2, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    changed, other = dict(batch), batch_of(13, seed=9)
    idle = (batch["weight"] == 0) | (batch["target"] < 0)
    assert 2 < idle.sum() < 11
    for name in batch:
        if name != "weight":
            changed[name] = np.where(
                idle.reshape(-1, *(1,) * (batch[name].ndim - 1)), other[name], batch[name]
            )
    changed["weight"] = np.where(idle, 0.0, batch["weight"]).astype(np.float32)
    (loss, metrics), grads = grad(params, frozen, batch, jax.random.key(0))
    (loss2, metrics2), grads2 = grad(params, frozen, changed, jax.random.key(0))
    np.testing.assert_allclose(loss2, loss, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), metrics2, metrics)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), grads2, grads)
    idle_batch = batch | {"weight": np.zeros(13, np.float32)}
    (loss, _), grads = grad(params, frozen, idle_batch, jax.random.key(0))
    assert loss == 0 and not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("sides", "other"), [("why", 1), ("why_not", 0)])
def test_a_side_that_is_not_read_is_absent(sides, other):
    model, both = (fuse(base_of("bpr"), sides=s, **SMALL) for s in (sides, "both"))
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    absent = batch | {"present": batch["present"] & (np.arange(2) != other)}
    unread = batch | {"encoding": batch["encoding"].copy()}
    unread["encoding"][:, other] = np.nan  # not even looked at
    jax.tree.map(
        np.testing.assert_array_equal,
        compiled(model)(params, frozen, unread),
        compiled(both)(params, frozen, absent),
    )


@pytest.mark.parametrize(("name", "devices"), [("bpr", 1), ("sasrec", 8)])
def test_ranking_through_the_evaluator(name, devices):
    """Explanations of all users in the frozen arrays, users ranked one by one in NumPy."""
    model = fuse(base_of(name), **SMALL)
    split, params = tiny.data().split, params_of(model)
    rng = np.random.default_rng(3)
    frozen = frozen_of(model) | {
        "encoding": rng.normal(size=(USERS, 2, WIDTH)).astype(np.float32),
        "present": rng.random((USERS, 2)) < 0.6,
    }
    mesh = tiny.mesh(devices)
    with use_mesh(mesh):
        evaluator = RankingEvaluator(
            model, seen=[split.train], held_out=split.valid, mesh=mesh, ks=(5,)
        )
        found = evaluator(params, frozen)
    users = found.users
    history = [split.train.item[split.train.user == u] for u in users]
    batch = {
        "user": users,
        "history": np.zeros((len(users), 9), np.int32),
        "length": np.array([min(len(h), 9) for h in history], np.int32),
    }
    for row, items in enumerate(history):
        batch["history"][row, : batch["length"][row]] = items[-9:]
    states, table = base_states(model, params, frozen, batch)
    expected, ranks = [], []
    for row, user in enumerate(users):
        fused, _, _ = naive_fused(
            params["fusion"], frozen, states[row], frozen["encoding"][user], frozen["present"][user]
        )
        targets = split.valid.item[split.valid.user == user]
        assert len(targets) == 1
        ranks.append(naive_rank(fused @ table.T, targets[0], set(history[row]) - set(targets)))
        expected.append(1 / math.log2(1 + ranks[-1]) if ranks[-1] <= 5 else 0.0)
    assert len(set(ranks)) > 10
    np.testing.assert_allclose(found.masked["ndcg@5"], expected, atol=1e-6)
    # A batch that brings the same encodings gets the same ranks.
    batch |= {k: frozen[k][users] for k in ("encoding", "present")}
    seen = np.full((len(users), max(map(len, history))), -1, np.int32)
    for row, items in enumerate(history):
        seen[row, : len(items)] = items
    target = np.array([split.valid.item[split.valid.user == u][0] for u in users], np.int32)
    scores = jax.jit(model.item_scores)(params, frozen, batch)
    np.testing.assert_array_equal(jax.jit(rank_of)(scores, target, seen), ranks)


def on_meshes(model, frozen):
    """Metrics, parameters and scores after one step on one device, and on eight."""
    rule, results = optax.sgd(0.5), []
    boxed = nn.get_partition_spec(jax.eval_shape(model.init, jax.random.key(0)))
    for shape in ((1,), (8, 2, 2)):
        mesh = tiny.mesh(*shape)
        with use_mesh(mesh):
            split = nn.logical_to_mesh_sharding(boxed, mesh, RULES)
            params = put_sharded(params_of(model), split)
            arrays = put_replicated(frozen, mesh)
            state = TrainState(0, params, rule.init(params), None, frozen=arrays)
            step = jax.jit(functools.partial(recommend_step, model=model, optimizer=rule))
            state, metrics = step(state, put_batch(batch_of(16), mesh), jax.random.key(7))
            scores = jax.jit(model.item_scores)(state.params, arrays, batch_of(16, seed=1))
            results.append((gather(metrics), gather(state.params), gather(scores)))
    return results


def test_one_device_and_eight_do_the_same_step():
    model = fuse(base_of("bpr"), code_dropout=0.1, item_features=3, **SMALL)
    (metrics, params, scores), (metrics8, params8, scores8) = on_meshes(model, frozen_of(model))
    assert moved(params, params_of(model)) == moved(params, jax.tree.map(np.zeros_like, params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5), metrics8, metrics)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), params8, params)
    np.testing.assert_allclose(scores8, scores, rtol=3e-5, atol=2e-5)


def test_plain_features_in_place_of_explanations():
    model = fuse_features(
        base_of("bpr"),
        encoding=4,
        item_features=3,
        bottleneck=5,
        hidden=7,
        null_dropout=0.0,
        train_base=False,
    )
    params, frozen = params_of(model), frozen_of(model)
    batch = without(batch_of(13), "encoding", "present", "history", "length")
    batch["features"] = np.random.default_rng(4).random((13, 4)).astype(np.float32)
    states, table = base_states(model, params, frozen, batch)
    table = table + frozen["item_features"] @ np.asarray(params["items"]["kernel"], np.float64)
    expected = [
        naive_fused(params["fusion"], frozen, state, row[None], [True])[0] @ table.T
        for state, row in zip(states, batch["features"], strict=True)
    ]
    item_scores = jax.jit(model.item_scores)
    found = item_scores(params, frozen, batch)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    # The users' own features in the frozen arrays do the same.
    features = np.zeros((USERS, 4), np.float32)
    features[batch["user"]] = batch["features"]
    batch["features"] = features[batch["user"]]

    @jax.jit
    def ranked(params, frozen, batch):
        tables = model.tables(params, frozen)
        return model.scores(model.user_state(params, tables, batch), tables.item)[:, :ITEMS]

    own = ranked(params, frozen | {"features": features}, without(batch, "features"))
    np.testing.assert_allclose(own, item_scores(params, frozen, batch), rtol=1e-6)
    # Fresh layers change nothing; a step moves all but the base.
    second = jax.tree.map(jnp.zeros_like, params["fusion"]["residual"]["second"])
    fresh = params | {"items": jax.tree.map(jnp.zeros_like, params["items"])}
    fresh["fusion"] = params["fusion"] | {
        "residual": params["fusion"]["residual"] | {"second": second}
    }
    states, table = base_states(model, fresh, frozen, batch)
    found = item_scores(fresh, frozen, batch)
    np.testing.assert_allclose(found, states @ table.T, rtol=1e-5, atol=1e-6)
    grads, _ = jax.jit(jax.grad(model.loss, has_aux=True))(params, frozen, batch, jax.random.key(0))
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["base"]))
    assert np.asarray(grads["items"]["kernel"]).any()


def test_a_base_with_scores_of_its_own():
    base = Cosine(num_users=USERS, num_items=ITEMS, dim=12)
    model = fuse(base, null_dropout=0.0, reconstruction=0.0, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    scores, _, loss, _ = compiled(model)(params, frozen, batch)
    scores = np.asarray(scores, np.float64)
    weight = np.where(batch["target"] >= 0, batch["weight"], 0.0)
    expected = -sum(
        w * log_softmax(s)[y] for w, s, y in zip(weight, scores, batch["target"], strict=True)
    )
    np.testing.assert_allclose(loss, expected / weight.sum(), rtol=1e-5)
    batch = batch_of(13, candidates=4)
    found = np.asarray(jax.jit(model.candidate_scores)(params, frozen, batch))
    # Row by row: the score of one candidate is that of the catalogue for its own explanation.
    for n in range(4):
        one = without(batch, "candidates") | {k: batch[k][:, n] for k in ("encoding", "present")}
        scores = np.asarray(compiled(model)(params, frozen, one)[0])
        item = batch["candidates"][:, n]
        expected = np.where(item < 0, -np.inf, scores[np.arange(13), item])
        np.testing.assert_allclose(found[:, n], expected, rtol=1e-5)


@pytest.mark.parametrize("base_dropout", [True, False])
def test_dropout_of_the_base(monkeypatch, base_dropout):
    on = []
    for module in (sasrec, blocks):  # the sum of items and positions, and the layers
        monkeypatch.setattr(
            module, "dropout", lambda x, rate, key: on.append(rate > 0 and key is not None) or x
        )
    model = fuse(base_of("sasrec"), train_base=False, base_dropout=base_dropout, **SMALL)
    args = params_of(model), frozen_of(model), batch_of(4)
    on.clear()
    jax.eval_shape(model.loss, *args, jax.random.key(0))
    assert len(on) == 4 and all(dropped == base_dropout for dropped in on)
    on.clear()
    jax.eval_shape(model.item_scores, *args)
    assert len(on) == 4 and not any(on)


def test_measure():
    rng = np.random.default_rng(0)
    encoding = rng.normal(3.0, 2.0, (30, 3, 4)).astype(np.float32)
    encoding[:, :, 1] = 7.5  # never changes
    present = rng.random((30, 3)) < 0.5
    present[:, 2] = False
    mean, std = measure(encoding, present)
    for part in range(2):
        rows = encoding[present[:, part], part].astype(np.float64)
        expected = rows.std(0)
        expected[1] = 1.0
        np.testing.assert_allclose(mean[part], rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(std[part], expected, rtol=1e-6)
    assert not mean[2].any() and (std[2] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": 0}, "fused: encoding=0 must be a whole number"),
        ({"bottleneck": 2.5}, "fused: bottleneck=2.5 must be a whole number"),
        ({"null_dropout": 1.2}, "fused: null_dropout=1.2 must be a number between 0.0 and 1.0"),
        ({"code_dropout": 1.0}, "fused: code_dropout=1.0 must be"),
        ({"reconstruction": -0.1}, "fused: reconstruction=-0.1 must be"),
        ({"sides": "whynot"}, "fused: sides='whynot' is not valid.*why_not"),
        ({"train_base": "no"}, "fused: train_base='no' is not valid"),
        ({"botleneck": 3}, "fused has no hyper-parameter 'botleneck'.*bottleneck"),
        ({"num_users": 3}, "fused has no hyper-parameter 'num_users'"),
    ],
)
def test_bad_hyperparameters(changes, message):
    with pytest.raises(UserError, match=message):
        fuse(base_of("bpr"), **SMALL | changes)


def test_bad_input():
    with pytest.raises(UserError, match="Popularity learns no user vectors"):
        fuse(base_of("popularity"), encoding=3)
    with pytest.raises(UserError, match="`encoding` is missing"):
        fuse(base_of("bpr"))
    with pytest.raises(UserError, match="feature fusion: sides='why' is not valid"):
        fuse_features(base_of("bpr"), encoding=3, sides="why")
    model = fuse(base_of("bpr"), **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(3)
    with pytest.raises(UserError, match="`encoding` needs `present`"):
        model.item_scores(params, frozen, without(batch, "present"))
    with pytest.raises(UserError, match=r"shape \[3, 2, 9\], .* must be 2 and 10"):
        model.item_scores(params, frozen, batch | {"encoding": batch["encoding"][..., :9]})
