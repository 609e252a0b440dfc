"""Packed windows hold exactly what the windows hold, each in one place."""

import numpy as np
import pytest

from tests.data.test_pipeline import LENGTHS, histories_of, windows_of
from xrec_jax.core.errors import UserError
from xrec_jax.data.packed_windows import PackedWindows

NAMES = ("history", "target", "weight")


@pytest.mark.parametrize(
    ("length", "context", "width"), [(1, 0, 1), (5, 0, 5), (5, 2, 8), (7, 0, 23), (40, 0, 64)]
)
def test_windows_lie_side_by_side(length, context, width):
    windows = windows_of(histories_of(LENGTHS), length, context)
    packed = PackedWindows.of(windows, width)
    numbers = packed.members[packed.members >= 0]
    assert sorted(numbers.tolist()) == list(range(windows.num_rows))
    for epoch in range(4):
        # Another order than that of the members, and not all of them.
        order = np.random.default_rng(epoch).permutation(packed.num_rows)[: packed.num_rows - 1]
        batch = packed.rows(epoch, order)
        assert {array.shape for array in batch.values()} == {(len(order), width)}
        for row, number in enumerate(order):
            members = [m for m in packed.members[number] if m >= 0]
            expected = {name: np.zeros(width) for name in (*NAMES, "segment", "place")}
            start = 0
            for segment, member in enumerate(members, start=1):
                alone = {k: v[0] for k, v in windows.rows(epoch, np.array([member])).items()}
                size = np.flatnonzero(alone["weight"])[-1] + 1
                here = slice(start, start + size)
                for name in NAMES:
                    expected[name][here] = alone[name][:size]
                expected["segment"][here] = segment
                expected["place"][here] = np.arange(size)
                start += size
            for name, values in expected.items():
                np.testing.assert_array_equal(batch[name][row], values, name)


def test_rows_are_full():
    lengths = np.random.default_rng(0).integers(2, 12, 3_000)
    packed = PackedWindows.of(windows_of(histories_of(lengths), 20, 0), 64)
    weight = packed.rows(0, np.arange(packed.num_rows))["weight"]
    assert weight.sum() == (lengths - 1).sum()
    assert weight.mean() > 0.99


def test_what_cannot_be_packed():
    windows = windows_of(histories_of([5, 6]), 4, 0)
    with pytest.raises(UserError, match="rows of 3 positions cannot hold windows of 4"):
        PackedWindows.of(windows, 3)
    with pytest.raises(UserError, match="cannot have negatives of their own"):
        PackedWindows.of(windows_of(histories_of([5, 6]), 4, 0, per_row=2), 8)
