"""Which rows are ranked together, and figures that do not depend on it (in float32)."""

import functools

import numpy as np
import pytest

from tests import tiny
from tests.evaluation import test_ranks
from tests.recommenders import test_next_place
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking import evaluator, planning
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


def plan(history_length=LENGTH, limit=4096, narrow=True, cpu=True):
    options = dict(history_length=history_length, narrow=narrow, limit=limit, cpu=cpu)
    return list(planning.plan(ranked(), num_items=97, mask_seen=True, **options))


@pytest.mark.parametrize("limit", [3, 5, 4096])
def test_widths(monkeypatch, limit):
    monkeypatch.setattr(planning, "HISTORY_CELLS", 0)
    made = plan(limit=limit)
    rows = np.concatenate([batch.rows for batch in made])
    assert sorted(rows.tolist()) == list(range(40))
    # Quarters of 10, rounded up: 3, 6, 9 and 10.
    assert {batch.history_width for batch in made} <= {3, 6, 9, 10}
    known = np.arange(40) % 14
    for batch in made:
        assert (ranked().targets.lengths[batch.rows] <= batch.target_width).all()
        assert (known[batch.rows] <= batch.seen_width).all()
        assert (np.minimum(known[batch.rows], LENGTH) <= batch.history_width).all()
    # A shape is compiled: every width has batches of one size, and only the last one another.
    for targets in (1, 4):
        sizes = [len(batch.rows) for batch in made if batch.target_width == targets]
        assert set(sizes[:-1]) <= {limit} and 0 < sizes[-1] <= limit
    if limit == 3:
        short = [batch for batch in made if batch.history_width == 3]
        assert len(short) > 2 and (known[np.concatenate([b.rows for b in short])] <= 3).all()


def test_one_width():
    assert {batch.history_width for batch in plan()} == {LENGTH}  # little work
    assert {batch.history_width for batch in plan(history_length=0)} == {0}


def test_one_width_for_what_reads_no_other(monkeypatch):
    monkeypatch.setattr(planning, "HISTORY_CELLS", 0)
    assert {batch.history_width for batch in plan(limit=3, narrow=False)} == {LENGTH}


def test_rows_on_a_cpu(monkeypatch):
    def most(**options):
        return max(len(batch.rows) for batch in plan(**options))

    monkeypatch.setattr(planning, "CPU_CELLS", 97 * 8)
    monkeypatch.setattr(planning, "CPU_ROWS", 2)
    assert most() == 8 and most(cpu=False) == 26
    monkeypatch.setattr(planning, "CPU_CELLS", 97)
    assert most() == 2
    monkeypatch.setattr(planning, "CELLS", 97)
    assert most() == most(cpu=False) == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_figures_do_not_depend_on_widths(monkeypatch, devices):
    whole = test_ranks.evaluated("sasrec")
    monkeypatch.setattr(planning, "HISTORY_CELLS", 0)
    widths = []
    build = evaluator.user_batch

    def watched(*args, length=None, **kwargs):
        batch = build(*args, length=length, **kwargs)
        widths.append(batch["history"].shape[1])
        return batch

    monkeypatch.setattr(evaluator, "user_batch", watched)
    parts = test_ranks.evaluated.__wrapped__("sasrec", 1, devices)
    assert {*widths} == {3, 6, 9}
    for first, second in ((parts.masked, whole.masked), (parts.unmasked, whole.unmasked)):
        for metric, values in first.items():
            np.testing.assert_array_equal(values, second[metric])


def test_times_do_not_depend_on_widths():
    """A narrow batch has the events with their times, and the same scores."""
    model, params, _, frozen = test_next_place.case()
    rng = np.random.default_rng(4)
    start = np.array([0, 2, 3, 12, 12])
    when = 1.7e9 + np.cumsum(rng.exponential(20_000.0, 12))
    history = Histories(rng.integers(0, model.num_items, 12).astype(np.int32), start, when)
    mesh, users = tiny.mesh(), np.array([0, 1, 3], np.int32)
    tables = model.tables(params, frozen)
    with use_mesh(mesh):
        whole, narrow = (
            evaluator.user_batch(model, history, users, 64, mesh, length=length)
            for length in (None, 2)
        )
        assert narrow["days"].shape == narrow["hour"].shape == narrow["history"].shape == (3, 2)
        np.testing.assert_array_equal(narrow["length"], [2, 1, 0])
        scores = [np.asarray(model.user_state(params, tables, b))[:, :11] for b in (whole, narrow)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)
