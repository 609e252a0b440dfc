"""The next place: the mixture of generating and copying against loops in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.recommenders.test_models import random_params
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.recommenders import losses
from xrec_jax.recommenders.blocks import Block
from xrec_jax.recommenders.places import geography, next_place

ITEMS, LENGTH, DIM = 11, 7, 8
COLUMNS = {
    "kind": ["cafe", "gym", None, "cafe", "park", "", "bar", "bar", "gym", "park", "cafe"],
    "lat": [40.7, 40.71, 40.6, None, 40.8, 40.75, 40.0, 40.7, 40.65, 40.62, 40.7],
    "lon": [-74.0, -73.9, -74.1, -74.0, -73.95, -74.2, -75.0, -74.0, -73.99, -74.05, -74.0],
}


def make(**hparams):
    sizes = dict(dim=DIM, layers=2, heads=2, inner=12, length=LENGTH, dropout=0.0)
    columns = dict(category="kind", latitude="lat", longitude="lon")
    merged = {**sizes, **columns, **hparams}
    return recommenders.create("next_place", merged, num_users=6, num_items=ITEMS)


@functools.cache
def case():
    model = make()
    rng = np.random.default_rng(2)
    history = rng.integers(0, ITEMS, (3, LENGTH)).astype(np.int32)
    history[0, 5] = history[0, 2] = history[0, 0]  # what is copied several times
    days = np.cumsum(rng.exponential(0.4, (3, LENGTH)), axis=1)
    batch = {
        "history": history,
        "hour": rng.integers(0, 168, (3, LENGTH)).astype(np.int32),
        "days": (days - days[:, :1]).astype(np.float32),
        "target": np.roll(history, -1, axis=1),
        "weight": np.array([[1.0] * LENGTH, [0.5] * 4 + [0.0] * 3, [1.0, 0.0] * 3 + [2.0]]),
    }
    batch["weight"] = batch["weight"].astype(np.float32)
    frozen = dict(model.describe_items(COLUMNS).arrays)
    return model, random_params(model, 1), batch, frozen


def naive(model, params, frozen, history, hour, days):
    """Log-probabilities `[t, items]` after every event of one history."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    places, kinds = frozen["place"].astype(np.float64), frozen["category"]

    def km(a, b):
        (u, v), (x, y) = places[a], places[b]
        east = (v - y) * math.cos(math.radians((u + x) / 2))
        return 111.2 * math.hypot(u - x, east)

    def number(value, first):
        return 0 if value < first else min(15, 1 + int(math.log2(value / first)))

    vectors = p["item"]["embedding"][:ITEMS] + p["category"][kinds[:ITEMS]]
    x = []
    for t, item in enumerate(history):
        waited = days[t] - days[t - 1] if t else 0.0
        both = t and frozen["located"][item] and frozen["located"][history[t - 1]]
        moved = km(item, history[t - 1]) if both else 0.0
        row = vectors[item] + p["hour"][hour[t]]
        x.append(row + p["gap"][number(waited, 1 / 48)] + p["way"][number(moved, 0.1)])
    x = np.stack(x)
    causal = np.tril(np.ones((len(x), len(x)), bool))[None]
    for n in range(model.layers):  # a layer is tested on its own, in test_sasrec
        block = Block(DIM, 2, 12, 0.0, model.block, True)
        places_of = np.arange(len(x))[None]
        x = block.apply(
            {"params": params[f"blocks_{n}"]},
            x[None].astype(np.float32),
            causal,
            None,
            places_of,
            False,
        )[0]
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    before = np.concatenate([np.zeros((1, DIM)), x[:-1]])
    keys = before @ p["key_state"]["kernel"] + vectors[history] @ p["key_item"]["kernel"]
    out = np.zeros((len(x), ITEMS))
    slope = math.log1p(math.exp(p["distance"]))
    for t in range(len(x)):
        scores = vectors @ x[t]
        for i in range(ITEMS):
            if frozen["located"][i] and frozen["located"][history[t]]:
                scores[i] -= slope * math.log1p(km(history[t], i) / 0.1)
        generated = np.exp(scores) / np.exp(scores).sum()
        query = x[t] @ p["query"]["kernel"]
        weights = []
        for s in range(t + 1):
            logit = query @ keys[s] / math.sqrt(DIM) * math.exp(p["sharpness"])
            logit -= p["fading"][0] * math.log1p(t - s)
            logit -= p["fading"][1] * math.log1p(days[t] - days[s])
            logit += p["again"][0] * (history[s] == history[t])
            if s:
                logit += p["again"][1] * (history[s - 1] == history[t])
                logit += p["again"][2] * (kinds[history[s - 1]] == kinds[history[t]])
            for r, end in [(s, "")] + ([(s - 1, "_before")] if s else []):
                logit += p["later" + end][(hour[r] - hour[t]) % 24]
                logit += p["weekday" + end][(hour[r] // 24 - hour[t] // 24) % 7]
                if frozen["located"][history[r]] and frozen["located"][history[t]]:
                    logit += p["away" + end][number(km(history[r], history[t]), 0.1)]
            weights.append(math.exp(logit))
        copied = np.zeros(ITEMS)
        for s, weight in enumerate(weights):
            copied[history[s]] += weight / sum(weights)
        gate = 1 / (1 + math.exp(-(x[t] @ p["gate"]["kernel"] + p["gate"]["bias"])[0]))
        mixed = gate * generated + (1 - gate) * copied
        out[t] = np.log(mixed if model.copy else generated)
    return out


@pytest.mark.parametrize("copy", [True, False])
def test_loss(copy):
    _, params, batch, frozen = case()
    model = make(copy=copy)
    loss, extra = jax.jit(model.loss)(params, frozen, batch, jax.random.key(0))
    total = 0.0
    for row in range(3):
        log_p = naive(
            model, params, frozen, *(batch[key][row] for key in ("history", "hour", "days"))
        )
        picked = log_p[np.arange(LENGTH), batch["target"][row]]
        total -= (picked * batch["weight"][row]).sum()
    np.testing.assert_allclose(loss, total / batch["weight"].sum(), rtol=2e-5)
    assert ("copied" in extra) == copy and 0 < float(extra.get("copied", 0.5)) < 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 2, 2)])
def test_ranking(shape):
    """Whatever lies behind a history changes nothing; without one nothing is copied."""
    model, params, batch, frozen = case()
    length = np.array([LENGTH, 4, 0, 1], np.int32)  # as many as the mesh divides
    rows = [0, 1, 2, 1]
    asked = {key: batch[key][rows] for key in ("history", "hour", "days")}
    asked["history"][1, 4:] = 3
    asked |= {"length": length, "user": np.zeros(4, np.int32)}
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):

        @jax.jit
        def rank(params, frozen, batch):
            tables = model.tables(params, frozen)
            return model.scores(model.user_state(params, tables, batch), tables.item)

        scores = np.asarray(rank(params, frozen, asked))
    for row in (0, 1, 3):
        arrays = (batch[key][rows[row]][: length[row]] for key in ("history", "hour", "days"))
        expected = naive(model, params, frozen, *arrays)[-1]
        np.testing.assert_allclose(scores[row, :ITEMS], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(scores[2, :ITEMS]).sum(), 1.0, rtol=1e-5)


def test_log_probabilities_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(2, 6, 3)), rng.normal(size=(64, 3))
    states, table = states.astype(np.float32), table.astype(np.float32)
    target = rng.integers(0, 9, (2, 6)).astype(np.int32)
    last = rng.integers(0, 9, (2, 6)).astype(np.int32)
    taken = jnp.asarray(rng.uniform(0, 2, (64, 64)), jnp.float32)

    def loss(states, table, taken):
        offset = (lambda item: taken[item], last)
        out = losses.target_log_probs(states, table, target, 9, offset=offset)
        return jnp.sum(out * np.arange(12.0).reshape(2, 6)), out

    def plain(states, table, taken):
        logits = (states @ table.T - taken[last])[..., :9]
        out = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
        return jnp.sum(out * np.arange(12.0).reshape(2, 6)), out

    results = []
    for chunk in (1, 3, 100):
        monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 2 * 64 * chunk)
        results.append(jax.grad(loss, (0, 1, 2), has_aux=True)(states, table, taken))
    expected = jax.grad(plain, (0, 1, 2), has_aux=True)(states, table, taken)
    for found in results:
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, expected)


def test_distances():
    points = jnp.array([[40.7, -74.0], [40.7, -73.0], [41.7, -74.0], [0.0, 179.5], [0.0, -179.5]])
    found = geography.kilometres(points[:, None], points[None])
    np.testing.assert_allclose(found[0, 1], 111.2 * math.cos(math.radians(40.7)), rtol=1e-4)
    np.testing.assert_allclose(found[0, 2], 111.2, rtol=1e-4)
    np.testing.assert_allclose(found[3, 4], 111.2, rtol=1e-3)  # across the date line
    np.testing.assert_allclose(found, found.T, rtol=1e-6)
    assert not np.asarray(jnp.diag(found)).any()


def test_bins():
    values = jnp.array([0.0, 0.09, 0.1, 0.19, 0.2, 0.4, 1e9])
    assert next_place.log_bins(values, 0.1).tolist() == [0, 0, 1, 1, 2, 3, 15]


def test_what_items_are():
    frozen = make().describe_items(COLUMNS).arrays
    kinds = frozen["category"][:ITEMS]
    assert kinds[2] == kinds[5] == 0 and kinds[0] == kinds[3] == kinds[10]
    assert len(set(kinds.tolist())) == 5 and not frozen["category"][ITEMS:].any()
    assert frozen["located"][:ITEMS].tolist() == [1.0] * 3 + [0.0] + [1.0] * 7
    none = make(category="", latitude="", longitude="").describe_items(None).arrays
    assert not any(array.any() for array in none.values())


@pytest.mark.parametrize("value", ["north", 361.0, float("nan"), float("inf")])
def test_what_are_no_degrees(value):
    with pytest.raises(
        UserError, match="column 'lat' of the item table must hold degrees from -90 to 90, but"
    ):
        make().describe_items({**COLUMNS, "lat": [*COLUMNS["lat"][:-1], value]})


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (dict(category="sort"), "category='sort', but the item table has kind, lat, lon"),
        (dict(longitude=""), "latitude and longitude must both be given"),
        (dict(dim=6, heads=2), "dim / heads"),
        (dict(context=7), "context=7"),
    ],
)
def test_values_that_are_refused(hparams, message):
    with pytest.raises(UserError, match=message):
        make(**hparams).describe_items(COLUMNS)


def test_histories_without_times_are_refused():
    model, params, batch, frozen = case()
    tables = model.tables(params, frozen)
    with pytest.raises(UserError, match="reads the times of a history"):
        model.user_state(params, tables, {"history": batch["history"], "length": np.ones(3, int)})
