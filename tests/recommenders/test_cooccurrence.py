"""Item vectors from co-occurrence: loops, a dense decomposition, and what training starts with."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.rundir import RunDir
from xrec_jax.parallel.mesh import gather, use_mesh
from xrec_jax.recommenders.cooccurrence import cooccurrence, initial_table, spectral_vectors
from xrec_jax.training.recommender import RecommenderTask


def events(users, items, most, seed=0):
    """Random histories of 1 to `most` events, with repeats."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, most + 1, users))
    return user, rng.integers(0, items, len(user)) ** 2 % items


def naive_pairs(user, item):
    histories = collections.defaultdict(list)
    for u, i in zip(user, item, strict=True):
        histories[u].append(i)
    pairs = collections.Counter()
    for history in histories.values():
        for s, first in enumerate(history):
            for t, second in enumerate(history):
                if first != second and 1 <= abs(s - t) <= 3:
                    pairs[first, second] += 1 / abs(s - t)
    return pairs


def test_pairs_are_those_of_a_loop():
    user, item = events(13, 19, 9)
    made = cooccurrence(user, item, 23).toarray()
    expected = np.zeros((23, 23))
    for (first, second), weight in naive_pairs(user, item).items():
        expected[first, second] = weight
    assert expected.any()
    np.testing.assert_allclose(made, expected, rtol=1e-6)


@pytest.mark.parametrize(("items", "dim"), [(31, 9), (31, 40), (211, 7)])
def test_vectors_are_those_of_a_dense_decomposition(items, dim):
    user, item = events(70, items - 2, 12, seed=3)
    pairs = cooccurrence(user, item, items)
    made = spectral_vectors(pairs, dim)
    assert made.shape == (items, dim)
    # Rotations do not matter: products of vectors are compared.
    dense = pairs.toarray().astype(np.float64)
    degree = dense.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    values, vectors = np.linalg.eigh(scale[:, None] * dense * scale)
    expected = vectors[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0))
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.where(degree[:, None] > 0, expected / np.maximum(length, 1e-12), 0)
    assert 0 < (degree == 0).sum() < items
    np.testing.assert_allclose(made @ made.T, expected @ expected.T, atol=5e-3)


def test_initial_tables_have_the_spread_of_drawn_ones():
    user, item = events(40, 29, 9)
    table = initial_table(user, item, num_items=31, rows=40, dim=12, stddev=0.3)
    assert table.shape == (40, 12) and table.dtype == np.float32
    paired = sorted({first for first, _ in naive_pairs(user, item)})
    np.testing.assert_allclose(np.sqrt((table[paired] ** 2).mean(axis=1)), 0.3, rtol=1e-5)
    drawn = np.delete(table, paired, axis=0)
    assert 0.2 < drawn.std() < 0.4 and len(np.unique(drawn)) == drawn.size


def test_no_events_leave_a_drawn_table():
    none = np.zeros(0, np.int64)
    table = initial_table(none, none, num_items=5, rows=8, dim=30, stddev=0.1)
    assert table.shape == (8, 30) and 0.05 < table.std() < 0.2


@pytest.fixture(name="config")
def config_of_one():
    config = tiny.config("sasrec")
    with config.unlocked():
        config.recommend.sasrec.hparams.update(item_init="cooccurrence", stddev=0.3)
    return config


def initial(config, data, folder):
    mesh = tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        task = RecommenderTask(config, "sasrec", data=data, mesh=mesh, rundir=RunDir(folder))
        return task, gather(task.initial_state(3).saved())


def test_training_starts_with_the_events_it_learns_from(config, tmp_path):
    data = tiny.data()
    task, saved = initial(config, data, tmp_path)
    learned = data.learned
    expected = task.model.initial_tables(learned.user, learned.item)[("item", "embedding")]
    np.testing.assert_array_equal(saved["params"]["item"]["embedding"], expected)
    jax.tree.map(np.testing.assert_array_equal, saved["best_params"], saved["params"])
    # Held-out events do not matter.
    moved = {
        part: dataclasses.replace(
            getattr(data.split, part), item=(getattr(data.split, part).item + 1) % 61
        )
        for part in ("valid", "test")
    }
    _, other = initial(
        config, data._replace(split=dataclasses.replace(data.split, **moved)), tmp_path
    )
    jax.tree.map(np.testing.assert_array_equal, other, saved)
    # Nothing but the item table differs from a drawn start.
    with config.unlocked():
        config.recommend.sasrec.hparams.item_init = "normal"
    _, drawn = initial(config, data, tmp_path)
    assert np.abs(drawn["params"]["item"].pop("embedding") - expected).max() > 0.1
    del saved["params"]["item"]["embedding"]
    jax.tree.map(np.testing.assert_array_equal, drawn["params"], saved["params"])
    assert saved["step"] == 0
