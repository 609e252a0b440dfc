"""Content towers: an item table from vectors, against tables computed by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import tiny
from tests.recommenders.test_models import random_params
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import padded_rows, use_mesh
from xrec_jax.recommenders.content import ContentTower, content_defaults, with_content
from xrec_jax.recommenders.content.tower import whitened
from xrec_jax.recommenders.explained.build import fuse

USERS, ITEMS, LENGTH, DIM, WIDTH = 6, 11, 7, 8, 5
COLD = 4  # the item that nobody has an event with
RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(ITEMS, WIDTH)).astype(np.float32) * [1, 9, 3, 0.1, 2] + 3
PRESENT = np.arange(ITEMS) != 9
USER = np.repeat(np.arange(USERS), 8)
ITEM = RNG.choice([i for i in range(ITEMS) if i != COLD], len(USER))
BASES = {
    "bpr": dict(dim=DIM, negatives=2, l2=0.01),
    "lightgcn": dict(dim=DIM, layers=2, l2=0.01, objective="softmax"),
    "sasrec": dict(dim=DIM, layers=2, heads=2, inner=12, length=LENGTH, dropout=0.0),
    "next_place": dict(dim=DIM, layers=1, heads=2, inner=12, length=LENGTH, dropout=0.0),
}


def make(name="sasrec", **options):
    base = recommenders.create(name, BASES[name], num_users=USERS, num_items=ITEMS)
    options = {**content_defaults(), "mode": "add", "components": 3, **options}
    return with_content(base, options, WIDTH)


def test_what_a_base_reads():
    """A tower says what its base says of training rows and of ranking batches."""
    sizes = dict(dim=8, heads=2, inner=12, length=LENGTH, packing=9, windows="latest", context=2)
    base = recommenders.create("sasrec", sizes, num_users=USERS, num_items=ITEMS)
    names = ("history_length", "narrow_histories", "min_context", "latest_windows")
    tower = with_content(base, {**content_defaults(), "mode": "add", "components": 3}, WIDTH)
    for model in (tower, fuse(base, encoding=4)):
        kept = names if isinstance(model, ContentTower) else names[:2]
        assert [getattr(model, name) for name in kept] == [LENGTH, True, 2, True][: len(kept)]
    assert base.packing_length == 9


@functools.cache
def frozen_of(model):
    parts = [model.frozen(USER, ITEM), model.describe_items(None)]
    parts.append(model.describe_content(VECTORS, PRESENT))
    # Device arrays, since traced numbers cannot index those of NumPy.
    return {key: jnp.asarray(value) for part in parts for key, value in part.arrays.items()}


def batch_of(model):
    rng = np.random.default_rng(2)
    history = rng.integers(0, ITEMS, (4, LENGTH)).astype(np.int32)
    batch = {"user": np.array([0, 3, 5, 1], np.int32)}
    if model.batches == "pairs":
        batch["item"] = history[:, 0]
        return batch | ({"negative": history[:, 1:3]} if model.negatives_per_row else {})
    batch |= {"history": history, "target": np.roll(history, -1, 1)}
    batch["weight"] = rng.uniform(0, 1, history.shape).astype(np.float32)
    if model.reads_times:
        batch["hour"] = rng.integers(0, 168, history.shape).astype(np.int32)
        batch["days"] = np.cumsum(rng.uniform(0, 1, history.shape), 1).astype(np.float32)
    return batch


def naive_table(params, frozen, mode, hidden, training=False):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = []
    for i in range(padded_rows(ITEMS)):
        x = np.asarray(frozen["content"][i], np.float64)
        if hidden:
            x = np.asarray(jax.nn.gelu(jnp.asarray(x @ p["content"]["inner"], jnp.float32)))
        row = x @ p["content"]["kernel"]
        row = row * (i in ITEM or not training)
        if mode == "add" and i in ITEM:
            row = row + p["base"]["item"]["embedding"][i]
        rows.append(row)
    return np.stack(rows).astype(np.float32)


def test_whitened_vectors():
    made = whitened(VECTORS, PRESENT, 3)
    assert made.shape == (ITEMS, 3) and not made[~PRESENT].any()
    kept = made[PRESENT].astype(np.float64)
    np.testing.assert_allclose(kept.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(kept.T @ kept / len(kept), np.eye(3), atol=1e-4)
    # They span the directions of most variance of the standardised features.
    rows = VECTORS[PRESENT].astype(np.float64)
    rows = (rows - rows.mean(0)) / rows.std(0)
    u, _, _ = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(u[:, :3] @ (u[:, :3].T @ kept), kept, atol=1e-3)


@pytest.mark.parametrize("mode", ["add", "replace"])
@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("name", BASES)
def test_loss_and_gradient(name, hidden, mode):
    """Those of the base with the table, the gradient carried on by hand."""
    model = make(name, mode=mode, hidden=hidden)
    params, frozen, batch = random_params(model, 1), frozen_of(model), batch_of(model)
    assert ("embedding" in params["base"].get("item", {})) == (mode == "add")
    assert not frozen["warm"][COLD] and frozen["warm"].sum() == len(set(ITEM.tolist()))
    table = naive_table(params, frozen, mode, hidden, training=True)
    assert not table[COLD].any()

    def of_base(table):
        base = {**params["base"], "item": {"embedding": table}}
        return model.base.loss(base, frozen, batch, jax.random.key(0))[0]

    expected, table_grad = jax.jit(jax.value_and_grad(of_base))(table)

    def of_tower(params):
        return model.loss(params, frozen, batch, jax.random.key(0))[0]

    found, grads = jax.jit(jax.value_and_grad(of_tower))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6)
    inner = frozen["content"]
    if hidden:
        inner = np.asarray(jax.nn.gelu(inner @ params["content"]["inner"]))
    inner = inner * frozen["warm"][:, None]
    close(grads["content"]["kernel"], inner.T @ np.asarray(table_grad))
    if mode == "add":
        close(grads["base"]["item"]["embedding"], frozen["warm"][:, None] * table_grad)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 2, 2)])
@pytest.mark.parametrize("name", BASES)
def test_ranking(name, shape):
    """Scores are those of the base with the table; a cold item's id changes none of them."""
    model = make(name, hidden=6)
    params, frozen, batch = random_params(model, 1), frozen_of(model), batch_of(model)
    batch["length"] = np.array([LENGTH, 3, 1, 5], np.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def rank(model, params, frozen, batch):
        tables = model.tables(params, frozen)
        return model.scores(model.user_state(params, tables, batch), tables.item)

    base = {**params["base"], "item": {"embedding": naive_table(params, frozen, "add", 6)}}
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        found = rank(model, params, frozen, batch)
        expected = rank(model.base, base, frozen, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        changed = jax.tree.map(jnp.asarray, params)
        ids = changed["base"]["item"]["embedding"]
        changed["base"]["item"]["embedding"] = ids.at[COLD].add(7.0)
        np.testing.assert_array_equal(rank(model, changed, frozen, batch), found)
        changed["base"]["item"]["embedding"] = ids.at[int(ITEM[0])].add(7.0)
        assert not np.allclose(rank(model, changed, frozen, batch), found)


@pytest.mark.parametrize("name", ["bpr", "sasrec"])
def test_explanations_fused_with_a_tower(name):
    """Scores and loss of a fusion are those of a fusion of the base with the table."""
    small = dict(encoding=4, bottleneck=3, hidden=5, null_dropout=0.0)
    model = make(name)
    of_tower, of_base = fuse(model, **small), fuse(model.base, **small)
    assert of_tower.net.dim == DIM and of_tower.base.scores_are_products
    params, frozen = random_params(of_tower, 1), frozen_of(model)
    frozen = {**frozen, "mean": jnp.zeros((2, 4)), "std": jnp.ones((2, 4))}
    table = naive_table(params["base"], frozen, "add", 0)
    plain = {**params["base"]["base"], "item": {"embedding": table}}
    rng = np.random.default_rng(3)
    batch = {
        "user": np.array([0, 3, 5, 1], np.int32),
        "history": rng.integers(0, ITEMS, (4, LENGTH)).astype(np.int32),
        "length": np.array([LENGTH, 3, 1, 5], np.int32),
        "encoding": rng.normal(size=(4, 2, 4)).astype(np.float32),
        "present": np.array([[1, 1], [1, 0], [0, 0], [0, 1]], bool),
        "target": np.array([1, 4, 2, 9], np.int32),
        "weight": np.array([1.0, 0.5, 0.0, 2.0], np.float32),
    }

    @functools.partial(jax.jit, static_argnums=0)
    def both(model, params, frozen, batch):
        loss, _ = model.loss(params, frozen, batch, jax.random.key(0))
        return loss, model.item_scores(params, frozen, batch)

    found = both(of_tower, params, frozen, batch)
    expected = both(of_base, {**params, "base": plain}, frozen, batch)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-4)
    one_text = {**batch, "encoding": batch["encoding"] * np.array([[[2.0]], [[1]], [[1]], [[1]]])}
    changed = both(of_tower, params, frozen, one_text)[1]
    assert not np.allclose(changed[0], found[1][0])
    np.testing.assert_allclose(changed[1:], found[1][1:], rtol=1e-5, atol=1e-6)


def test_dropped_ids():
    """Some ids: neither the loss with all nor that with content alone, and another each update."""
    params, losses = None, {}
    for rate in (0.0, 0.5):
        model = make(id_dropout=rate)
        params = params or random_params(model, 1)
        frozen, batch = frozen_of(model), batch_of(model)
        losses[rate] = [
            float(model.loss(params, frozen, batch, jax.random.key(n))[0]) for n in (0, 1)
        ]
    only = {**params, "base": {**params["base"], "item": {}}}
    replaced = make(mode="replace").loss(only, frozen, batch, jax.random.key(0))[0]
    assert losses[0.0][0] == losses[0.0][1]
    assert len({*losses[0.5], losses[0.0][0], float(replaced)}) == 4
    # Nearly all dropped is nearly content alone.
    most = make(id_dropout=0.99).loss(params, frozen, batch, jax.random.key(3))[0]
    assert abs(most - replaced) < 0.2 * abs(losses[0.0][0] - replaced)


def test_initial_rows_spread_like_ids():
    """Content begins neither louder than the ids nor unheard."""
    model = make("bpr")
    model = dataclasses.replace(
        model, base=dataclasses.replace(model.base, dim=512, stddev=0.3), components=5
    )
    params = jax.tree.map(
        lambda x: x.unbox() if hasattr(x, "unbox") else x,
        model.init(jax.random.key(0)),
        is_leaf=lambda x: hasattr(x, "unbox"),
    )
    frozen = frozen_of(model)
    content = (frozen["content"] @ params["content"]["kernel"])[:ITEMS][PRESENT]
    np.testing.assert_allclose(content.std(), 0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "width", "message"),
    [
        (dict(mode="ad"), WIDTH, r"content: mode='ad' is not valid.*add"),
        (dict(), None, r"data\.item_vectors.*xrec encode"),
        (dict(components=6), WIDTH, "components=6 must be a whole number between 1 and 5"),
        (dict(id_dropout=1.0), WIDTH, "id_dropout=1.0"),
        (dict(mode="replace", id_dropout=0.5), WIDTH, "id_dropout needs mode='add'"),
        (dict(hidden=-1), WIDTH, "hidden=-1"),
    ],
)
def test_values_that_are_refused(options, width, message):
    base = recommenders.create("bpr", {}, num_users=USERS, num_items=ITEMS)
    options = {**content_defaults(), "mode": "add", "components": 3, **options}
    with pytest.raises(UserError, match=message):
        with_content(base, options, width)


def test_initial_rows_are_those_of_the_base():
    hparams = dict(dim=6, item_init="cooccurrence")
    base = recommenders.create("sasrec", hparams, num_users=2, num_items=ITEMS)
    user, item = np.array([0, 0, 0, 1, 1]), np.array([1, 2, 4, 2, 1])
    options = {**content_defaults(), "mode": "add", "components": 3}
    tower = with_content(base, options, WIDTH)
    (made,) = tower.initial_rows(user, item).values()
    (alone,) = base.initial_rows(user, item).values()
    jax.tree.map(np.testing.assert_array_equal, made, alone)
    assert len(made[0]) == 3
    flat = traverse_util.flatten_dict(jax.eval_shape(tower.init, jax.random.key(0)))
    assert set(tower.initial_rows(user, item)) <= set(flat)
    with pytest.raises(UserError, match="leaves no item table"):
        dataclasses.replace(tower, mode="replace", id_dropout=0.0).initial_rows(user, item)
    with pytest.raises(UserError, match="leaves no item table"):
        with_content(base, {**options, "mode": "replace"}, WIDTH)


def test_a_base_without_a_table_is_refused():
    base = recommenders.create("frequency", {}, num_users=USERS, num_items=ITEMS)
    with pytest.raises(UserError, match="Frequency learns no item table"):
        with_content(base, {**content_defaults(), "mode": "add", "components": 3}, WIDTH)
    assert with_content(base, content_defaults(), None) is base
    assert with_content(base, None, None) is base
    assert not isinstance(base, ContentTower)
