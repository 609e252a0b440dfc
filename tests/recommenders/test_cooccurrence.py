"""Item vectors from co-occurrence: loops, a dense decomposition, and what training starts with."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.parallel.mesh import gather, use_mesh
from xrec_jax.recommenders import cooccurrence as cooccurrence_module
from xrec_jax.recommenders.cooccurrence import connected, cooccurrence, spectral_vectors
from xrec_jax.training import recommender
from xrec_jax.training.recommender import RecommenderTask
from xrec_jax.training.state import with_rows


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
    rows, made = spectral_vectors(pairs, dim)
    dense = pairs.toarray().astype(np.float64)
    degree = dense.sum(axis=1)
    np.testing.assert_array_equal(rows, np.flatnonzero(degree))
    assert len(rows) < items and made.shape == (len(rows), dim) and made.dtype == np.float32
    # Rotations do not matter: products of vectors are compared.
    dense = (dense / np.sqrt(np.outer(degree, degree) + (np.outer(degree, degree) == 0)))[rows][
        :, rows
    ]
    values, vectors = np.linalg.eigh(dense)
    expected = vectors[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0))
    expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True) / dim)
    np.testing.assert_allclose(made @ made.T / dim, expected @ expected.T / dim, atol=5e-3)


def test_no_feature_stands_out():
    user, item = events(400, 90, 12, seed=1)
    _, made = spectral_vectors(cooccurrence(user, item, 90), 32)
    # One of 32 features would have 27 times its share without the rotation, others nothing.
    share = (made**2).mean(axis=0)
    assert share.min() > 0.01 and share.max() < 8


def test_small_components_are_left_out():
    # A ring of 60 items with its second neighbours, 30 pairs beside it, and an item alone.
    ring = np.arange(62) % 60
    pairs = 60 + np.arange(60)
    user = np.concatenate([np.zeros(62, int), 1 + np.arange(60) // 2, [31]])
    item = np.concatenate([ring, pairs, [120]])
    matrix = cooccurrence(user, item, 130)
    rows, made = spectral_vectors(matrix, 16)
    np.testing.assert_array_equal(rows, np.arange(60))
    cosine = made @ made.T / 16
    assert cosine[0, 1] > 0.5 > abs(cosine[0, 30])
    # Two halves are both kept.
    halves = cooccurrence(np.repeat([0, 1], 20), np.arange(40), 40)
    np.testing.assert_array_equal(connected(halves), np.arange(40))


def test_the_same_counts_give_the_same_vectors():
    # On a star, which has three eigenvalues, Lanczos breaks down and is restarted.
    star = np.zeros((300, 300), np.float32)
    star[0, 1:100] = star[1:100, 0] = 1
    first, second = (spectral_vectors(sparse.csr_array(star), 16) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("user", [[], range(150), [0, 0, 0]])
def test_items_without_neighbours_have_no_vectors(user):
    user = np.array(user, int)
    item = np.arange(150) if len(user) > 3 else np.zeros(len(user), int)
    rows, vectors = spectral_vectors(cooccurrence(user, item, 200), 16)
    assert rows.shape == (0,) and vectors.shape == (0, 16)


@pytest.fixture(name="data")
def data_with_cold_items():
    """Of the tiny world, half of the users to learn from, and no events with some items."""
    data, split = tiny.data()._replace(train_share=0.5), tiny.data().split
    changed = dataclasses.replace(split.train, item=split.train.item // 2 * 2)
    return data._replace(split=dataclasses.replace(split, train=changed))


@pytest.fixture(name="task")
def task_of_data(data, tmp_path):
    config = tiny.config("sasrec")
    with config.unlocked():
        config.recommend.sasrec.hparams.update(item_init="cooccurrence", stddev=0.3)
    mesh = tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        yield RecommenderTask(config, "sasrec", data=data, mesh=mesh, rundir=RunDir(tmp_path))


def started(task, monkeypatch):
    """The state that training begins with, and the drawn one."""
    seen = []
    monkeypatch.setattr(recommender, "fit", lambda state, *args, **kwargs: seen.append(state))
    task.fit(3, None)
    return gather(seen[0].saved()), gather(task.initial_state(3).saved())


def test_training_begins_with_the_events_it_learns_from(task, data, monkeypatch):
    begun, drawn = started(task, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, begun["best_params"], begun["params"])
    learned = data.learned
    assert 0 < len(learned) < len(data.split.train)
    rows, vectors = spectral_vectors(cooccurrence(learned.user, learned.item, 61), task.model.dim)
    expected = drawn["params"]["item"]["embedding"].copy()
    assert 0 < len(rows) < 61
    expected[rows] = vectors * np.float32(0.3)
    np.testing.assert_allclose(begun["params"]["item"].pop("embedding"), expected, rtol=1e-6)
    # Nothing else differs from a drawn start.
    del drawn["params"]["item"]["embedding"]
    jax.tree.map(np.testing.assert_array_equal, begun["params"], drawn["params"])
    assert begun["step"] == 0


def test_the_log_says_how_many_rows(task, monkeypatch, capsys):
    started(task, monkeypatch)
    (numbers, _), *_ = task._initial_rows.values()
    said = f"recommend.sasrec: {len(numbers)} rows of item/embedding are initialised"
    assert said in " ".join(capsys.readouterr())


def test_eigenvectors_that_do_not_converge_are_one_error(monkeypatch):
    def never(*args, **kwargs):
        raise ArpackNoConvergence("no convergence (3 iterations)", None, None)

    monkeypatch.setattr(cooccurrence_module, "eigsh", never)
    user, item = events(70, 200, 12)
    with pytest.raises(UserError, match=r"no convergence .*set item_init='normal'"):
        spectral_vectors(cooccurrence(user, item, 200), 7)


def test_held_out_events_do_not_matter(task, data, monkeypatch):
    begun, _ = started(task, monkeypatch)
    moved = {
        part: dataclasses.replace(events, item=(events.item + 1) % 61)
        for part, events in (("valid", data.split.valid), ("test", data.split.test))
    }
    task.data = data._replace(split=dataclasses.replace(data.split, **moved))
    del task._initial_rows
    other, _ = started(task, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, other, begun)


def test_a_restored_run_counts_nothing(task, monkeypatch, tmp_path):
    writer = MetricWriter(tmp_path)
    task.fit(3, writer)
    params, _ = task.restore(3)

    def refuse(*args):
        raise AssertionError

    del task._initial_rows
    monkeypatch.setattr(type(task.model), "initial_rows", refuse)
    again, _ = task.restore(3)
    jax.tree.map(np.testing.assert_array_equal, gather(again), gather(params))
    task.fit(3, writer)


def test_a_parameter_that_is_not_there(task):
    with pytest.raises(KeyError, match="embeddings"):
        with_rows(task.initial_state(3), {("item", "embeddings"): (np.arange(2), np.ones((2, 12)))})
