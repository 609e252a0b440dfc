"""The match head against NumPy loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.recommenders.test_fused import (
    ITEMS,
    USERS,
    WIDTH,
    Cosine,
    base_of,
    base_states,
    batch_of,
    log_softmax,
    naive_fused,
    on_meshes,
    params_of,
    without,
)
from xrec_jax.core.errors import UserError
from xrec_jax.recommenders.explained.build import fuse
from xrec_jax.recommenders.explained.fusion import drop_parts
from xrec_jax.recommenders.explained.match import item_projection, item_vectors, query_scale

K = 4
SMALL = dict(encoding=WIDTH, bottleneck=5, hidden=7, match=K, null_dropout=0.0)


@functools.cache
def frozen_of(model):
    """Constants that are not trivial; some items have no text."""
    rng = np.random.default_rng(5)
    arrays = dict(model.frozen(np.arange(3), np.arange(3)).arrays)
    for name in ("mean", "projection", "query_scale"):
        arrays[name] = rng.normal(size=arrays[name].shape).astype(np.float32)
    arrays["std"] = rng.uniform(0.5, 2.0, arrays["std"].shape).astype(np.float32)
    vectors = rng.normal(size=(ITEMS, K)).astype(np.float32)
    vectors[::7] = 0.0
    return arrays | {"item_match": vectors}


def naive_match(params, frozen, encoding, present, item):
    """What one text adds to the score of one item."""
    weight, kernel = (np.asarray(params["match"][k], np.float64) for k in ("weight", "kernel"))
    total = 0.0
    for part in range(2):
        if not present[part]:
            continue
        query = (encoding[part] - frozen["mean"][part]) @ frozen["projection"]
        query = query.astype(np.float64) * frozen["query_scale"][part, 0]
        vector = frozen["item_match"][item].astype(np.float64)
        for k in range(K):
            total += 5 * weight[part, k] * query[k] * vector[k]
            for m in range(K):
                total += query[k] * kernel[part, k, m] / 5 * vector[m]
    return total


def expected_scores(model, params, frozen, batch, temperature=1.0):
    """`[b, items]` of the whole catalogue."""
    states, table = base_states(model, params, frozen, batch)
    score = jax.jit(model.base.scores)
    rows = []
    for state, encoding, present in zip(states, batch["encoding"], batch["present"], strict=True):
        fused = naive_fused(params["fusion"], frozen, state, encoding, present)[0]
        fused = state + temperature * (fused - state)
        row = np.asarray(score(np.float32(fused)[None], np.float32(table)), np.float64)[0]
        added = [naive_match(params, frozen, encoding, present, i) for i in range(ITEMS)]
        rows.append((row + temperature * np.array(added)) / temperature)
    return np.array(rows)


@pytest.mark.parametrize("kind", ["bpr", "sasrec", "cosine"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_scores_and_loss(kind, temperature):
    changes = {"dropout": 0.0} if kind == "sasrec" else {}
    base = Cosine(num_users=USERS, num_items=ITEMS, dim=12) if kind == "cosine" else None
    model = fuse(base or base_of(kind, **changes), reconstruction=0.0, **SMALL)
    params, batch, frozen = params_of(model), batch_of(13), frozen_of(model)
    if temperature != 1.0:
        frozen = frozen | {"temperature": np.float32(temperature)}
    expected = expected_scores(model, params, frozen, batch, temperature)
    np.testing.assert_allclose(
        jax.jit(model.item_scores)(params, frozen, batch), expected, rtol=3e-5, atol=3e-5
    )
    loss, _ = jax.jit(model.loss)(params, frozen, batch, jax.random.key(0))
    weight = np.where(batch["target"] >= 0, batch["weight"], 0.0)
    pairs = zip(weight, expected, batch["target"], strict=True)
    main = -sum(w * log_softmax(s)[y] for w, s, y in pairs) / weight.sum()
    np.testing.assert_allclose(loss, main, rtol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_candidates_and_ranking_agree_with_the_catalogue(temperature):
    model = fuse(base_of("bpr"), **SMALL)
    params, batch = params_of(model), batch_of(11, candidates=4)
    frozen = frozen_of(model) | {"temperature": np.float32(temperature)}
    scored = np.asarray(jax.jit(model.candidate_scores)(params, frozen, batch))
    whole = jax.jit(model.item_scores)
    for n in range(4):
        alone = without(batch, "candidates")
        alone |= {k: batch[k][:, n] for k in ("encoding", "present")}
        item = batch["candidates"][:, n]
        alike = np.asarray(whole(params, frozen, alone))[np.arange(11), item]
        expected = np.where(item < 0, -np.inf, alike)
        np.testing.assert_allclose(scored[:, n], expected, rtol=2e-5, atol=3e-6)

    # Ranking looks up what is kept of every user instead of encoding a batch's texts.
    rng = np.random.default_rng(3)
    texts = {
        "encoding": rng.normal(size=(USERS, 2, WIDTH)).astype(np.float32),
        "present": rng.random((USERS, 2)) < 0.6,
    }
    users = batch_of(13)
    own = users | {name: array[users["user"]] for name, array in texts.items()}

    @jax.jit
    def ranked(params, batch):
        tables = model.tables(params, frozen | texts)
        return model.scores(model.user_state(params, tables, batch), tables.item)[:, :ITEMS]

    kept = ranked(params, without(users, "encoding", "present"))
    # States for ranking are not divided by the temperature.
    np.testing.assert_allclose(kept / temperature, whole(params, frozen, own), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["bpr", "sasrec", "cosine"])
def test_without_a_text_scores_are_the_bases_to_the_last_bit(kind):
    base = Cosine(num_users=USERS, num_items=ITEMS, dim=12) if kind == "cosine" else base_of(kind)
    model = fuse(base, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    silent = batch | {"present": np.zeros((13, 2), bool)}
    bare = without(batch, "encoding", "present")

    @jax.jit
    def alone(params, batch):
        tables = base.tables(params, frozen)
        return base.scores(base.user_state(params, tables, batch), tables.item)[:, :ITEMS]

    expected = np.asarray(alone(params["base"], bare))
    scores = jax.jit(model.item_scores)
    for read in (bare, silent):
        np.testing.assert_array_equal(scores(params, frozen, read), expected)
    assert (np.asarray(scores(params, frozen, batch)) != expected).any()
    # A fresh head adds nothing, whatever there is to read; and an item without a text keeps its
    # score where only the match is not zero.
    fresh = jax.tree.map(np.asarray, params)
    fresh["fusion"] = jax.tree.map(np.zeros_like, fresh["fusion"])
    only_match = np.asarray(scores(fresh, frozen, batch))
    textless = (frozen["item_match"] == 0).all(axis=1)
    np.testing.assert_allclose(only_match[:, textless], expected[:, textless], rtol=1e-6)
    fresh["match"] = jax.tree.map(np.zeros_like, fresh["match"])
    np.testing.assert_allclose(scores(fresh, frozen, batch), expected, rtol=1e-6)


@pytest.mark.parametrize("side", ["why", "why_not"])
def test_an_unread_side_does_not_match(side):
    model = fuse(base_of("bpr"), sides=side, **SMALL)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    unread = 1 - ("why", "why_not").index(side)
    changed = batch | {"encoding": np.array(batch["encoding"])}
    changed["encoding"][:, unread] += 3.0
    scores = jax.jit(model.item_scores)
    np.testing.assert_array_equal(scores(params, frozen, changed), scores(params, frozen, batch))


def test_it_learns_which_items_a_text_speaks_of():
    """Texts name an attribute that items have; nothing tells items of one attribute apart."""
    rng = np.random.default_rng(0)
    attribute = rng.integers(0, WIDTH, ITEMS)
    model = fuse(base_of("bpr"), **(SMALL | {"match": WIDTH}), train_base=False)
    bags = np.eye(WIDTH, dtype=np.float32)
    described = bags[attribute], np.ones(ITEMS, bool)
    projection = item_projection(*described, WIDTH)
    vectors = item_vectors(*described, projection)
    frozen = frozen_of(model) | {
        "mean": np.full((2, WIDTH), 1.0 / WIDTH, np.float32),
        "projection": projection,
        "query_scale": np.ones((2, 1), np.float32),
        "item_match": vectors,
    }
    params = params_of(model) | {"match": jax.tree.map(np.zeros_like, params_of(model)["match"])}
    rule = optax.adam(0.1)

    @jax.jit
    def step(match, opt, batch):
        loss = lambda match: model.loss(  # noqa: E731
            params | {"match": match}, frozen, batch, jax.random.key(0)
        )[0]
        updates, opt = rule.update(jax.grad(loss)(match), opt)
        return optax.apply_updates(match, updates), opt

    def batch(seed, held_out):
        rng = np.random.default_rng(seed)
        # Half of the items are never a target in training: the head has to reach them, too.
        items = np.flatnonzero(np.arange(ITEMS) % 2 == held_out)
        target = rng.choice(items, 32).astype(np.int32)
        encoding = np.stack([bags[attribute[target]], bags[(attribute[target] + 1) % WIDTH]], 1)
        present = np.tile([True, True], (32, 1))
        return batch_of(32, seed=seed) | {
            "target": target,
            "weight": np.ones(32, np.float32),
            "encoding": encoding,
            "present": present,
        }

    match, opt = params["match"], rule.init(params["match"])
    for number in range(60):
        match, opt = step(match, opt, batch(number, 0))
    test = batch(999, 1)
    scores = np.asarray(jax.jit(model.item_scores)(params | {"match": match}, frozen, test))
    before = np.asarray(jax.jit(model.item_scores)(params, frozen, test))

    def mean_place(scores):
        own = scores[np.arange(32), test["target"]]
        return float(np.mean((scores > own[:, None]).sum(axis=1)))

    assert mean_place(scores) < 0.4 * mean_place(before)


def test_space_of_the_items():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(9, 9)) * np.linspace(3.0, 0.1, 9)[:, None]
    encoding = (rng.normal(size=(40, 9)) @ mixing + 5.0).astype(np.float32)
    present = rng.random(40) < 0.8
    projection = item_projection(encoding, present, 3)
    vectors = item_vectors(encoding, present, projection)
    assert projection.shape == (9, 3) and vectors.shape == (40, 3)
    assert projection.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(projection.T @ projection, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(vectors[~present], 0.0)
    rows = encoding[present].astype(np.float64)
    centred = rows - rows.mean(axis=0)
    # The same plane as that of a singular value decomposition, and distances up to one factor.
    basis = np.linalg.svd(centred, full_matrices=False)[2][:3]
    np.testing.assert_allclose(projection @ projection.T, basis.T @ basis, atol=1e-5)
    ratio = np.linalg.norm(vectors[present], axis=1) / np.linalg.norm(centred @ basis.T, axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    np.testing.assert_allclose(np.mean(np.square(vectors[present])), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors[present].mean(axis=0), 0.0, atol=1e-5)
    # Items follow the projection: turned with it, they meet a text as before.
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    np.testing.assert_allclose(
        item_vectors(encoding, present, projection @ turn), vectors @ turn, atol=1e-5
    )
    # Nothing to tell items apart by.
    for few in (np.zeros(40, bool), np.arange(40) == 3):
        projection = item_projection(encoding, few, 3)
        assert np.isfinite(projection).all()
        assert not item_vectors(encoding, few, projection).any()
    alike = np.ones((5, 4), np.float32), np.ones(5, bool)
    assert not item_vectors(*alike, item_projection(*alike, 2)).any()


def test_scale_of_the_queries():
    rng = np.random.default_rng(2)
    encoding = rng.normal(size=(30, 2, 6)).astype(np.float32) * np.array([[[4.0], [0.3]]])
    present = rng.random((30, 2)) < 0.7
    mean = np.stack([encoding[present[:, p], p].mean(axis=0) for p in range(2)])
    projection = rng.normal(size=(6, 3)).astype(np.float32)
    scale = query_scale(encoding, present, mean, projection)
    assert scale.shape == (2, 1) and scale.dtype == np.float32
    for part in range(2):
        query = (encoding[present[:, part], part] - mean[part]) @ projection * scale[part]
        np.testing.assert_allclose(np.sqrt(np.mean(query**2)), 1.0, rtol=1e-5)
    # A part that is never there, and one that always says the same.
    present[:, 0], encoding[:, 1] = False, encoding[0, 1]
    mean[1] = encoding[0, 1]
    np.testing.assert_array_equal(query_scale(encoding, present, mean, projection), 0.0)


def test_dropped_parts_do_not_match_in_training():
    """The loss with parts dropped by the key is that of a batch that lacks them."""
    model = fuse(base_of("bpr"), **(SMALL | {"null_dropout": 0.5}), reconstruction=0.0)
    params, frozen, batch = params_of(model), frozen_of(model), batch_of(13)
    key = jax.random.key(11)
    loss, _ = jax.jit(model.loss)(params, frozen, batch, key)
    null_key = jax.random.split(key, 3)[1]
    kept = np.asarray(drop_parts(null_key, jnp.asarray(batch["present"]), 0.5, 0.0))
    assert 0 < kept.sum() < batch["present"].sum()
    plain = fuse(base_of("bpr"), **SMALL, reconstruction=0.0)
    expected, _ = jax.jit(plain.loss)(params, frozen, batch | {"present": kept}, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert abs(float(loss) - float(jax.jit(plain.loss)(params, frozen, batch, key)[0])) > 1e-3


def test_one_device_and_eight_do_the_same_step():
    model = fuse(base_of("bpr"), code_dropout=0.1, **(SMALL | {"null_dropout": 0.3}))
    first, second = on_meshes(model, frozen_of(model))
    assert (first[1]["match"]["kernel"] != params_of(model)["match"]["kernel"]).all()
    close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=2e-5)
    jax.tree.map(close, second, first)


def test_refused():
    for match, part in ((-1, "between 0 and 10"), (WIDTH + 1, "between 0 and 10"), (1.5, "whole")):
        with pytest.raises(UserError, match=part):
            fuse(base_of("bpr"), **(SMALL | {"match": match}))
    model = fuse(base_of("bpr"), **SMALL)
    frozen = without(frozen_of(model), "projection")
    with pytest.raises(UserError, match="`projection`"):
        model.item_scores(params_of(model), frozen, jax.tree.map(jnp.asarray, batch_of(3)))
