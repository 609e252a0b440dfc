"""Packed windows hold exactly what the windows hold, each in one place."""

import dataclasses

import numpy as np
import pytest

from tests.data.test_pipeline import LENGTHS, histories_of, negatives_of, windows_of
from xrec_jax.core.errors import UserError
from xrec_jax.data.packed_windows import PackedWindows
from xrec_jax.data.pipeline import WindowRows


def windows_with_times(length, context, latest=False):
    """Windows of users whose events have times, so that batches have all arrays there are."""
    plain = histories_of(LENGTHS)
    when = 1_350_000_000 + 5_000 * np.arange(len(plain.items))
    histories = dataclasses.replace(plain, when=when)
    options = dict(length=length, context=context, seed=5, clocks=True, latest=latest)
    return WindowRows.of(histories, negatives_of(histories), **options)


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize(
    ("length", "context", "width"), [(1, 0, 1), (5, 0, 5), (5, 2, 8), (7, 0, 23), (40, 0, 64)]
)
def test_windows_lie_side_by_side(length, context, width, latest):
    windows = windows_with_times(length, context, latest)
    packed = PackedWindows.of(windows, width)
    assert sorted(packed.member.tolist()) == list(range(windows.num_rows))
    for epoch in range(4):
        # Another order than that of the rows, not all of them, and some twice.
        order = np.random.default_rng(epoch).permutation(packed.num_rows)[: packed.num_rows - 1]
        order = np.concatenate([order, order[:2]])
        batch = packed.rows(epoch, order)
        assert {array.shape for array in batch.values()} == {(len(order), width)}
        for row, number in enumerate(order):
            expected = {name: np.zeros(width) for name in batch}
            start = 0
            members = packed.member[packed.start[number] : packed.start[number + 1]]
            for segment, member in enumerate(members, start=1):
                alone = {k: v[0] for k, v in windows.rows(epoch, np.array([member])).items()}
                assert {*alone} == {"history", "target", "weight", "hour", "days"}
                size = np.flatnonzero(alone["weight"])[-1] + 1
                here = slice(start, start + size)
                for name, values in alone.items():
                    assert batch[name].dtype == values.dtype
                    expected[name][here] = values[:size]
                expected["segment"][here] = segment
                expected["place"][here] = np.arange(size)
                start += size
            for name, values in expected.items():
                np.testing.assert_array_equal(batch[name][row], values, name)


@pytest.mark.parametrize(("length", "context"), [(10, 0), (10, 5), (10, 9), (3, 1)])
def test_most_read(length, context):
    windows = windows_of(histories_of(LENGTHS), length, context)
    every = np.arange(windows.num_rows)
    read = [windows.windows(epoch, every)[1] for epoch in range(60)]
    np.testing.assert_array_equal(np.max(read, axis=0), windows.most_read)


def test_rows_are_full():
    lengths = np.random.default_rng(0).integers(2, 12, 3_000)
    packed = PackedWindows.of(windows_of(histories_of(lengths), 20, 0), 64)
    weight = packed.rows(0, np.arange(packed.num_rows))["weight"]
    assert weight.sum() == (lengths - 1).sum()
    assert weight.mean() > 0.99
    # Users who follow each other in the file do not share rows for that.
    order = packed.windows.user[packed.member]
    assert np.abs(np.diff(order)).mean() > 500


def test_nothing_to_pack():
    assert PackedWindows.of(windows_of(histories_of([0, 1]), 4, 0), 8).num_rows == 0


def test_what_cannot_be_packed():
    windows = windows_of(histories_of([5, 6]), 4, 0)
    with pytest.raises(UserError, match="rows of 3 positions cannot hold windows of 4"):
        PackedWindows.of(windows, 3)
    with pytest.raises(UserError, match="cannot have negatives of their own"):
        PackedWindows.of(windows_of(histories_of([5, 6]), 4, 0, per_row=2), 8)
