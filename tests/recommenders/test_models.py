"""Recommenders against NumPy loops, and the same on one device and on eight."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from xrec_jax import recommenders
from xrec_jax.core.dropout import dropout
from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import device_bytes
from xrec_jax.data.histories import Histories
from xrec_jax.data.packed_windows import PackedWindows
from xrec_jax.data.pipeline import BatchSource, Negatives, PairRows, WindowRows
from xrec_jax.data.readers.vectors import ItemVectors
from xrec_jax.parallel.mesh import gather, put_batch, put_sharded, sharding, use_mesh
from xrec_jax.recommenders.content import with_content
from xrec_jax.training.loop import compile_step
from xrec_jax.training.recommender import frozen_arrays
from xrec_jax.training.state import initializer, with_rows
from xrec_jax.training.steps import recommend_step

VARIANTS = {
    "bpr": ("bpr", {}),
    "lightgcn": ("lightgcn", dict(propagation="dense", l2=0.02, negatives=3)),
    "lightgcn-sparse": ("lightgcn", dict(propagation="sparse", l2=0.02)),
    "lightgcn-softmax": ("lightgcn", dict(propagation="sparse", objective="softmax")),
    "sasrec": ("sasrec", {}),
    "sasrec-sampled": ("sasrec", dict(objective="sampled_softmax", negatives=5)),
    "sasrec-bce": ("sasrec", dict(objective="bce", negatives=2, context=4)),
    "sasrec-gated": (
        "sasrec",
        dict(
            block="gated",
            positions="rotary",
            objective="sampled_softmax",
            negatives_per="batch",
            sampler="popularity",
            negatives=23,
        ),
    ),
    "sasrec-in_batch": (
        "sasrec",
        dict(
            block="pre_norm",
            objective="sampled_softmax",
            negatives_per="batch",
            sampler="in_batch",
            negatives=23,
            packing=20,
        ),
    ),
    "sasrec-gbce": ("sasrec", dict(objective="gbce", negatives_per="batch", negatives=23)),
    "sasrec-content": ("sasrec", dict(packing=20, item_init="cooccurrence")),
    "next_place": ("next_place", dict(dim=16, layers=1, heads=2, inner=32, length=12)),
}
TOWERS = {"sasrec-content": dict(mode="add", components=8, hidden=16, id_dropout=0.3)}
MESHES = {"8": (8, 1, 1), "4x2": (8, 2, 1), "2x2x2": (8, 2, 2)}
BATCH = 64


def make(variant, num_users=75, num_items=61, **hparams):
    name, changes = VARIANTS.get(variant, (variant, {}))
    merged = {**tiny.MODELS.get(name, {}), **changes, **hparams}
    model = recommenders.create(name, merged, num_users=num_users, num_items=num_items)
    return with_content(model, TOWERS.get(variant), 8)


def frozen_of(model):
    """What a run takes from its events, item table and item vectors."""
    rng = np.random.default_rng(4)
    vectors = ItemVectors(rng.normal(size=(61, 8)).astype(np.float32), np.arange(61) != 7)
    frozen = frozen_arrays(model, tiny.data()._replace(item_vectors=vectors))
    if "place" in frozen.arrays:  # the world's items have no places
        frozen.arrays["place"][:61] = rng.uniform(0, 1, (61, 2))
        frozen.arrays["located"][:61] = np.arange(61) != 3
    return frozen


@functools.cache
def train_events():
    train = tiny.data().split.train
    dataset = tiny.data().dataset
    assert (dataset.num_users, dataset.num_items) == (75, 61)
    return train


def source(model):
    events = train_events()
    if model.reads_times:  # what copies learns from repeats, of which the world has none
        events = dataclasses.replace(events, item=events.item % 9)
    histories = Histories.of([events], model.num_users)
    negatives = Negatives(
        histories, model.num_items, per_row=model.negatives_per_row, sampling=model.sampling, seed=3
    )
    if model.batches == "sequences":
        rows = WindowRows.of(
            histories,
            negatives,
            length=model.history_length,
            context=model.min_context,
            seed=3,
            clocks=model.reads_times,
            latest=model.latest_windows,
        )
        if model.packing_length:
            rows = PackedWindows.of(rows, model.packing_length)
    else:
        rows = PairRows.of(histories, negatives)
    return BatchSource(rows, batch_size=BATCH, seed=3)


@functools.cache
def three_steps(variant, *shape):
    """Initial parameters, losses of three steps, last parameters and bytes on each device."""
    model, mesh = make(variant), tiny.mesh(*shape)
    rule = optax.adam(0.02)
    frozen = frozen_of(model)
    batches = source(model)
    with use_mesh(mesh):
        state = initializer(
            model.init, rule, mesh=mesh, frozen=frozen.arrays, frozen_axes=frozen.axes
        )(5)
        state = with_rows(state, model.initial_rows(train_events().user, train_events().item))
        first = gather(state.params)
        taken = device_bytes({"params": state.params, "opt": state.opt_state})
        shapes = {k: a.nbytes for k, a in device_leaves(state).items()}
        step = compile_step(functools.partial(recommend_step, model=model, optimizer=rule), state)
        losses = []
        for number in range(3):
            state, metrics = jax.block_until_ready(step(state, put_batch(batches[number], mesh)))
            losses.append([float(metrics["train/loss"]), float(metrics["train/grad_norm"])])
        after = device_bytes({"params": state.params, "opt": state.opt_state})
    assert taken == after, "a step moved an array"
    return first, np.array(losses), gather(state.params), (taken, shapes)


def device_leaves(state):
    leaves = jax.tree_util.tree_leaves_with_path({"params": state.params, "opt": state.opt_state})
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_steps_learn(variant):
    first, losses, last, _ = three_steps(variant)
    assert np.isfinite(losses).all() and (losses[:, 1] > 0).all()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, first, last)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("variant", "mesh"),
    [
        (variant, mesh)
        for variant in VARIANTS
        for mesh in MESHES
        # Made of parts that the others try on every mesh, these are tried on the hardest.
        if mesh == "2x2x2" or variant not in ("sasrec-content", "next_place")
    ],
)
def test_eight_devices_do_what_one_does(variant, mesh):
    first, losses, last, _ = three_steps(variant)
    first_8, losses_8, last_8, (taken, whole) = three_steps(variant, *MESHES[mesh])
    jax.tree.map(np.testing.assert_array_equal, first_8, first)
    np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), last_8, last)
    tables = [name for name in taken if name.endswith("embedding")]
    moments = [name for name in tables if name.startswith("opt/")]
    assert len(moments) == 2 * (len(tables) - len(moments)) > 0
    for name in tables:
        assert taken[name] == dict.fromkeys(range(8), whole[name] // 8)
    tensor = tiny.mesh(*MESHES[mesh]).shape["tensor"]
    for name in taken:
        if name.endswith(("/q", "/out", "/up", "/down")):
            assert taken[name] == dict.fromkeys(range(8), whole[name] // tensor)


def random_params(model, seed=0):
    """Initial parameters with noise on everything, so that no scale or bias is trivial."""
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


def pair_batch(model, size, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
        "user": rng.integers(0, model.num_users, size),
        "item": rng.integers(0, model.num_items, size),
    }
    if model.negatives_per_row:
        batch["negative"] = rng.integers(0, model.num_items, (size, model.negatives_per_row))
    return {name: values.astype(np.int32) for name, values in batch.items()}


def naive_pairs(user, item, batch, l2, raw_user, raw_item):
    """BPR loss of a batch, pair by pair, in float64."""
    total = 0.0
    for u, i, negatives in zip(batch["user"], batch["item"], batch["negative"], strict=True):
        pair = [math.log1p(math.exp(-(user[u] @ item[i] - user[u] @ item[n]))) for n in negatives]
        squares = [raw_user[u] @ raw_user[u], raw_item[i] @ raw_item[i]]
        squares += [raw_item[n] @ raw_item[n] for n in negatives]
        total += sum(pair) / len(pair) + l2 * 0.5 * sum(squares)
    return total / len(batch["user"])


def embeddings(params):
    return (np.asarray(params[k]["embedding"], np.float64) for k in ("user", "item"))


@pytest.mark.parametrize("l2", [0.0, 0.37])
def test_mf_loss(l2):
    model = make("bpr", l2=l2, negatives=3)
    params = random_params(model)
    batch = pair_batch(model, 21)
    user, item = embeddings(params)
    found, _ = model.loss(params, {}, batch, None)
    np.testing.assert_allclose(found, naive_pairs(user, item, batch, l2, user, item), rtol=1e-5)
    tables = model.tables(params, {})
    scores = model.scores(model.user_state(params, tables, {"user": batch["user"]}), tables.item)
    np.testing.assert_allclose(scores, user[batch["user"]] @ item.T, rtol=1e-5, atol=1e-5)


def events_with_repeats(model):
    rng = np.random.default_rng(8)
    user = rng.integers(0, model.num_users - 3, 200)  # some users have no event
    item = np.minimum(rng.zipf(1.5, 200), model.num_items - 4) - 1
    return np.append(user, user[:50]), np.append(item, item[:50])


def naive_propagation(model, params, events):
    """The mean of all layers, edge by edge."""
    edges = set(zip(*(e.tolist() for e in events), strict=True))
    count = {}
    for u, i in edges:
        count["u", u] = count.get(("u", u), 0) + 1
        count["i", i] = count.get(("i", i), 0) + 1
    user, item = embeddings(params)
    layers = [(user, item)]
    for _ in range(model.layers):
        new_user, new_item = np.zeros_like(user), np.zeros_like(item)
        for u, i in edges:
            norm = math.sqrt(count["u", u]) * math.sqrt(count["i", i])
            new_user[u] += layers[-1][1][i] / norm
            new_item[i] += layers[-1][0][u] / norm
        layers.append((new_user, new_item))
    return [sum(layer[k] for layer in layers) / len(layers) for k in (0, 1)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 2, 2)])
@pytest.mark.parametrize(("propagation", "layers"), [("dense", 3), ("sparse", 3), ("sparse", 1)])
def test_lightgcn_propagation(propagation, layers, shape):
    model = make("lightgcn", propagation=propagation, layers=layers)
    events, params = events_with_repeats(model), random_params(model)
    user, item = naive_propagation(model, params, events)
    frozen = model.frozen(*events)
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        table = sharding(mesh, "table_rows", "features")
        placed = put_sharded(params, jax.tree.map(lambda _: table, params))
        arrays = put_sharded(
            dict(frozen.arrays), {k: sharding(mesh, *axes) for k, axes in frozen.axes.items()}
        )
        tables = jax.block_until_ready(jax.jit(model.tables)(placed, arrays))
        assert tables.item.sharding.is_equivalent_to(table, 2) or mesh.size == 1
    np.testing.assert_allclose(tables.user, user, atol=2e-6)
    np.testing.assert_allclose(tables.item, item, atol=2e-6)


def test_lightgcn_picks_by_size(monkeypatch):
    model = make("lightgcn", propagation="auto")
    events = events_with_repeats(model)
    assert set(model.frozen(*events).arrays) == {"adjacency", "transposed"}
    monkeypatch.setattr("xrec_jax.recommenders.lightgcn.DENSE_CELLS", 64 * 128 - 1)
    assert set(model.frozen(*events).arrays) == {"user", "item", "weight"}


@pytest.mark.parametrize(
    ("objective", "size"), [("bpr", 21), ("softmax", 64), ("softmax", 128), ("softmax", 24)]
)
def test_lightgcn_loss(objective, size):
    model = make("lightgcn", objective=objective, l2=0.37, negatives=2)
    events, params = events_with_repeats(model), random_params(model)
    user, item = naive_propagation(model, params, events)
    raw_user, raw_item = embeddings(params)
    batch = pair_batch(model, size)
    found, _ = jax.jit(model.loss)(params, dict(model.frozen(*events).arrays), batch, None)
    if objective == "bpr":
        expected = naive_pairs(user, item, batch, model.l2, raw_user, raw_item)
    else:
        expected = 0.0
        for u, i in zip(batch["user"], batch["item"], strict=True):
            scores = item[:61] @ user[u]
            squares = raw_user[u] @ raw_user[u] + raw_item[i] @ raw_item[i]
            expected += np.log(np.exp(scores).sum()) - scores[i] + model.l2 * 0.5 * squares
        expected /= size
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rate", "features"), [(0.1, 128), (0.3, 127), (0.5, 128), (0.77, 128), (0.77, 50), (0.99, 128)]
)
def test_dropout_keeps_the_mean(rate, features):
    x = np.random.default_rng(0).normal(size=(500, features)).astype(np.float32) + 2
    out = np.asarray(dropout(x, rate, jax.random.key(3)))
    kept = out != 0
    share = kept.mean()
    sigma = math.sqrt(rate * (1 - rate) / x.size)
    assert abs((1 - share) - rate) < 1 / 512 + 5 * sigma
    # What stays is scaled by one over the true chance to stay, a whole number of 256ths.
    scale = out[kept] / x[kept]
    chance = 1 / scale.mean(dtype=np.float64)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)
    assert abs(chance * 256 - round(chance * 256)) < 1e-3 and abs(chance - (1 - rate)) <= 1 / 512
    assert abs(share - chance) < 5 * sigma
    # Neighbours, which share a random word, fall independently.
    both = (kept[:, 1:] & kept[:, :-1]).mean()
    assert abs(both - chance**2) < 6 * sigma
    assert abs(kept.mean(0) - chance).max() < 5 * math.sqrt(rate * (1 - rate) / 500)
    slope = jax.grad(lambda x: dropout(x, rate, jax.random.key(3)).sum())(x)
    np.testing.assert_allclose(slope, kept * scale[0], rtol=1e-6)


def test_dropout_switched_off():
    x = np.ones((3, 8), np.float32)
    for rate, key in ((0.5, None), (0.0, jax.random.key(0)), (0.0005, jax.random.key(0))):
        np.testing.assert_array_equal(dropout(x, rate, key), x)
    low = dropout(jnp.ones((3, 8), jnp.bfloat16), 0.5, jax.random.key(0))
    assert low.dtype == jnp.bfloat16 and set(np.asarray(low, np.float32).flat) == {0.0, 2.0}


def test_popularity_counts_events():
    model = make("popularity")
    user, item = events_with_repeats(model)
    frozen = model.frozen(user, item)
    tables = model.tables({}, frozen.arrays)
    state = model.user_state({}, tables, {"user": np.arange(3)})
    expected = np.zeros(64)
    for i in item:
        expected[i] += 1
    np.testing.assert_array_equal(model.scores(state, tables.item), np.tile(expected, (3, 1)))
    assert model.init(jax.random.key(0)) == {} and model.batches == "none"


@pytest.mark.parametrize(
    ("name", "hparams", "message"),
    [
        ("bpr", dict(dim=0), "dim=0"),
        ("bpr", dict(l2=-0.1), "l2=-0.1"),
        ("lightgcn", dict(objective="sofmax"), "did you mean 'softmax'"),
        ("lightgcn", dict(layers=-1), "layers=-1"),
        ("sasrec", dict(heads=5), "heads"),
        ("sasrec", dict(inner=0), "inner=0"),
        ("sasrec", dict(context=9), "context=9"),
        ("sasrec", dict(dropout=1.0), "dropout"),
        ("sasrec", dict(dtype="float23"), "float32"),
    ],
)
def test_values_that_are_refused(name, hparams, message):
    with pytest.raises(UserError, match=message):
        make(name, **hparams)
