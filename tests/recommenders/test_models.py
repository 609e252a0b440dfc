"""Recommenders against NumPy loops, and the same on one device and on eight."""

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
from xrec_jax.data.pipeline import BatchSource, Negatives, PairRows, WindowRows
from xrec_jax.parallel.mesh import gather, put_batch, put_sharded, sharding, use_mesh
from xrec_jax.recommenders import sasrec
from xrec_jax.training.loop import compile_step
from xrec_jax.training.state import initializer
from xrec_jax.training.steps import recommend_step

VARIANTS = {
    "bpr": ("bpr", {}),
    "lightgcn": ("lightgcn", dict(propagation="dense", l2=0.02, negatives=3)),
    "lightgcn-sparse": ("lightgcn", dict(propagation="sparse", l2=0.02)),
    "lightgcn-softmax": ("lightgcn", dict(propagation="sparse", objective="softmax")),
    "sasrec": ("sasrec", {}),
    "sasrec-sampled": ("sasrec", dict(objective="sampled_softmax", negatives=5)),
    "sasrec-bce": ("sasrec", dict(objective="bce", negatives=2, context=4)),
}
MESHES = {"8": (8, 1, 1), "4x2": (8, 2, 1), "2x2x2": (8, 2, 2)}
BATCH = 64


def make(variant, num_users=75, num_items=61, **hparams):
    name, changes = VARIANTS.get(variant, (variant, {}))
    merged = {**tiny.MODELS[name], **changes, **hparams}
    return recommenders.create(name, merged, num_users=num_users, num_items=num_items)


@functools.cache
def train_events():
    train = tiny.data().split.train
    dataset = tiny.data().dataset
    assert (dataset.num_users, dataset.num_items) == (75, 61)
    return train


def source(model):
    histories = Histories.of([train_events()], model.num_users)
    negatives = Negatives(
        histories, model.num_items, per_row=model.negatives_per_row, sampling=model.sampling, seed=3
    )
    if model.batches == "sequences":
        rows = WindowRows.of(
            histories, negatives, length=model.history_length, context=model.min_context, seed=3
        )
    else:
        rows = PairRows.of(histories, negatives)
    return BatchSource(rows, batch_size=BATCH, seed=3)


@functools.cache
def three_steps(variant, *shape):
    """Initial parameters, losses of three steps, last parameters and bytes on each device."""
    model, mesh = make(variant), tiny.mesh(*shape)
    rule = optax.adam(0.02)
    frozen = model.frozen(train_events().user, train_events().item)
    batches = source(model)
    with use_mesh(mesh):
        state = initializer(
            model.init, rule, mesh=mesh, frozen=frozen.arrays, frozen_axes=frozen.axes
        )(5)
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


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("variant", VARIANTS)
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


def naive_transformer(model, params, history):
    """States after every item of one history, head by head and position by position."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, w):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w["scale"] + w["bias"]
        )

    x = norm(p["item"]["embedding"][history] + p["position"][: len(history)], p["norm"])
    for layer in range(model.layers):
        w, mixed = p[f"blocks_{layer}"], np.zeros_like(x)
        for h in range(model.heads):
            q, k, v = (x @ w[name][:, h] for name in "qkv")
            for t in range(len(history)):
                e = np.exp([q[t] @ k[s] / math.sqrt(model.dim / model.heads) for s in range(t + 1)])
                mixed[t] += (e / e.sum()) @ v[: t + 1] @ w["out"][h]
        x = norm(x + mixed, w["attention_norm"])
        z = x @ w["up"]
        z = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = norm(x + z @ w["down"], w["mlp_norm"])
    return x


@functools.cache
def sequence_case():
    model = make("sasrec", dropout=0.0)
    history = np.random.default_rng(4).integers(0, 61, (5, model.length)).astype(np.int32)
    states = jax.jit(lambda p, h: model.net.apply({"params": p}, h, None))
    last = jax.jit(lambda p, h, n: model.user_state(p, None, {"history": h, "length": n}))
    return model, random_params(model), history, states, last


def test_sasrec_states():
    model, params, history, states, _ = sequence_case()
    expected = [naive_transformer(model, params, row) for row in history]
    np.testing.assert_allclose(states(params, history), expected, atol=2e-5)


def test_sasrec_is_causal():
    _, params, history, states, _ = sequence_case()
    before = np.asarray(states(params, history))
    for position in range(9):
        changed = history.copy()
        changed[:, position] = (changed[:, position] + 7) % 61
        after = np.asarray(states(params, changed))
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (np.abs(after[:, position:] - before[:, position:]).max(-1) > 1e-4).all()


def test_sasrec_last_state_ignores_padding():
    model, params, history, states, last = sequence_case()
    length = np.array([9, 1, 4, 8, 2], np.int32)
    found = np.asarray(last(params, history, length))
    full = np.asarray(states(params, history))
    np.testing.assert_allclose(found, full[np.arange(5), length - 1], atol=2e-6)
    padded = np.where(np.arange(9) < length[:, None], history, (history + 13) % 61)
    np.testing.assert_array_equal(last(params, padded, length), found)
    short = [
        naive_transformer(model, params, row[:n])[-1]
        for row, n in zip(history, length, strict=True)
    ]
    np.testing.assert_allclose(found, short, atol=2e-5)


@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize("objective", ["full_softmax", "sampled_softmax", "bce"])
def test_sasrec_losses(objective, context):
    _, params, _, states, _ = sequence_case()
    model = make("sasrec", dropout=0.0, objective=objective, negatives=3, context=context)
    # Windows of the tiny world, some with fewer targets than a piece; collisions are made sure of.
    batch = {name: values[:11] for name, values in source(model)[0].items()}
    target, weight = batch["target"], batch["weight"]
    assert set(weight.sum(1).tolist()) - {0.0, float(9 - context)} and weight.sum(1).max() > 3
    if objective == "sampled_softmax":
        batch["negative"][:, 0] = target[np.arange(11), weight.argmax(1)]
    events = np.append(np.arange(61), np.random.default_rng(6).integers(0, 61, 90))
    found, _ = jax.jit(model.loss)(
        params, dict(model.frozen(np.zeros(151, int), events).arrays), batch, jax.random.key(0)
    )
    q = np.bincount(events, minlength=61) / 151
    table = np.asarray(params["item"]["embedding"])[:61]
    scores = np.asarray(states(params, batch["history"])) @ table.T
    total = 0.0
    for b, t in zip(*np.nonzero(weight), strict=True):
        s, y = scores[b, t].astype(np.float64), target[b, t]
        if objective == "full_softmax":
            total += np.log(np.exp(s).sum()) - s[y]
        elif objective == "bce":  # each target of a window has negatives of its own
            piece = batch["negative"][b].reshape(9 - context, 3)
            drawn = piece[t - min(weight[b].argmax(), context)]
            total += np.log1p(np.exp(-s[y])) + np.mean(np.log1p(np.exp(s[drawn])))
        else:
            drawn = batch["negative"][b]
            drawn, count = drawn[drawn != y], len(drawn)
            others = (np.exp(s[drawn]) / (q[drawn] * count)).sum()
            total += np.log(np.exp(s[y]) + others) - s[y]
    np.testing.assert_allclose(found, total / weight.sum(), rtol=2e-5)


def test_sasrec_in_bfloat16_is_close():
    model, params, history, _, last = sequence_case()
    half = make("sasrec", dropout=0.0, dtype="bfloat16")
    batch = {"history": history, "length": np.full(5, 9, np.int32)}
    found = jax.jit(lambda p, b: half.user_state(p, None, b))(params, batch).astype(np.float32)
    expected = last(params, history, batch["length"])
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    batch = {"history": history, "target": history[::-1], "weight": np.ones((5, 9), np.float32)}
    losses = [jax.jit(m.loss)(params, {}, batch, jax.random.key(0))[0] for m in (model, half)]
    assert losses[1].dtype == jnp.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_sasrec_multiplies_in_bfloat16():
    model = make("sasrec", dtype="bfloat16", dropout=0.0)
    params = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(
        lambda p: model.net.apply({"params": p}, np.zeros((2, 9), np.int32), None)
    )(params)
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 8 * model.layers
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}


def test_sasrec_drops_in_training_only():
    model, params, history, _, last = sequence_case()
    dropping = make("sasrec", dropout=0.4)
    length = np.array([9, 1, 4, 8, 2], np.int32)
    found = dropping.user_state(params, None, {"history": history, "length": length})
    np.testing.assert_allclose(found, last(params, history, length), atol=2e-6)
    batch = {"history": history, "target": history[::-1], "weight": np.ones((5, 9), np.float32)}
    losses = [
        float(loss(params, {}, batch, jax.random.key(key))[0])
        for loss in (jax.jit(model.loss), jax.jit(dropping.loss))
        for key in (0, 0, 1)
    ]
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == losses[4] != losses[5]


@pytest.mark.parametrize("length", [8, 9, 50])
def test_sasrec_drops_attention_weights_at_every_length(monkeypatch, length):
    shapes = []
    monkeypatch.setattr(
        sasrec, "dropout", lambda x, rate, key: shapes.append((x.shape, rate, key is None)) or x
    )
    model = make("sasrec", length=length, dropout=0.3)
    batch = {
        "history": np.zeros((2, length), np.int32),
        "target": np.zeros((2, length), np.int32),
        "weight": np.ones((2, length), np.float32),
    }
    params = jax.eval_shape(lambda k: nn.unbox(model.init(k)), jax.random.key(0))
    shapes.clear()
    jax.eval_shape(lambda p: model.loss(p, {}, batch, jax.random.key(0)), params)
    assert all(rate == 0.3 and not off for _, rate, off in shapes)
    attention = [shape for shape, _, _ in shapes if len(shape) == 4]
    assert attention == [(2, 2, length, length)] * 2
    assert len(shapes) - len(attention) == 1 + 2 * 2  # embedding, and two branches a layer


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
