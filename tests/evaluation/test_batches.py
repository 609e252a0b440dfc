"""Which rows are ranked together, and that the widths of a batch change no figure."""

import functools

import jax
import numpy as np
import pytest

from tests import tiny
from tests.evaluation import test_ranks
from tests.recommenders import test_next_place
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking import batches
from xrec_jax.evaluation.ranking.evaluator import user_batch
from xrec_jax.evaluation.ranking.protocol import RankingProtocol, rows_of
from xrec_jax.parallel.mesh import use_mesh

LENGTH = 10


@functools.cache
def ranked():
    """Rows of users with 0 to 13 known events, and one or several held-out items."""
    known = np.repeat(np.arange(40), np.arange(40) % 14).astype(np.int32)
    held_out = np.repeat(np.arange(40), 1 + np.arange(40) % 3).astype(np.int32)
    events = [
        Interactions(user, np.arange(len(user), dtype=np.int32) % 97) for user in (known, held_out)
    ]
    return rows_of(RankingProtocol(), events[:1], events[1], 40)


def plan(history_length=LENGTH, limit=4096):
    return list(
        batches.plan(
            ranked(), num_items=97, history_length=history_length, mask_seen=True, limit=limit
        )
    )


@pytest.mark.parametrize("limit", [3, 4096])
def test_widths(monkeypatch, limit):
    monkeypatch.setattr(batches, "HISTORY_CELLS", 0)
    made = plan(limit=limit)
    rows = np.concatenate([batch.rows for batch in made])
    assert sorted(rows.tolist()) == list(range(40))
    assert max(len(batch.rows) for batch in made) <= limit
    # Quarters of 10, rounded up: 3, 6, 9 and 10; a width is the least that holds all that is read.
    width = {int(row): batch.history for batch in made for row in batch.rows}
    least = [0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 10, 10, 10, 10]
    assert [width[user] for user in range(40)] == [max(3, least[user % 14]) for user in range(40)]
    for batch in made:
        assert (ranked().targets.lengths[batch.rows] <= batch.targets).all()
        assert (np.arange(40)[batch.rows] % 14 <= batch.seen).all()


def test_little_work_has_one_width():
    assert {batch.history for batch in plan()} == {LENGTH}
    assert {batch.history for batch in plan(history_length=0)} == {0}


def test_fewer_rows_on_a_cpu(monkeypatch):
    monkeypatch.setattr(batches, "CPU_CELLS", 97 * 8)
    assert max(len(batch.rows) for batch in plan()) == 8
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert max(len(batch.rows) for batch in plan()) > 8


def test_figures_do_not_depend_on_widths(monkeypatch):
    whole = test_ranks.evaluated("sasrec")
    monkeypatch.setattr(batches, "HISTORY_CELLS", 0)
    parts = test_ranks.evaluated.__wrapped__("sasrec")
    for metric, values in whole.masked.items():
        np.testing.assert_array_equal(parts.masked[metric], values)


def test_times_do_not_depend_on_widths():
    """A narrow batch has the latest events, with their times, and the same scores."""
    model, params, _, frozen = test_next_place.case()
    rng = np.random.default_rng(4)
    start = np.array([0, 2, 3, 12, 12])
    when = 1.7e9 + np.cumsum(rng.exponential(20_000.0, 12))
    history = Histories(rng.integers(0, model.num_items, 12).astype(np.int32), start, when)
    mesh, users = tiny.mesh(), np.array([0, 1, 3], np.int32)
    tables = model.tables(params, frozen)
    with use_mesh(mesh):
        whole, narrow = (
            user_batch(model, history, users, 64, mesh, length=length) for length in (None, 2)
        )
        assert narrow["days"].shape == narrow["hour"].shape == narrow["history"].shape == (3, 2)
        np.testing.assert_array_equal(narrow["length"], [2, 1, 0])
        scores = [np.asarray(model.user_state(params, tables, b))[:, :11] for b in (whole, narrow)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)
