"""Packing: every example once, none above a row, fullest bin first; what a row's arrays hold."""

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.packing import Example, PackedRows, pack, windows

RANDOM = [
    np.random.default_rng(seed).integers(1, high + 1, size=count).tolist()
    for seed, (count, high) in enumerate([(1, 30), (40, 30), (200, 30), (60, 7), (50, 16)])
]


def example(*ids, trained=None):
    """An example, all of it trained by default."""
    mask = np.ones(len(ids), bool) if trained is None else np.array(trained, bool)
    return Example(np.array(ids, np.int32), mask)


def examples(lengths, seed=0):
    """Random examples with prompts that are not trained."""
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(1, 50, size=n).astype(np.int32), np.arange(n) >= rng.integers(0, n))
        for n in lengths
    ]


def naive_bins(lengths, room):
    """Tokens of each bin by the rule, read off all bins at every step."""
    filled = []
    for need in sorted(lengths, reverse=True):
        fitting = [k for k, used in enumerate(filled) if used + need <= room]
        if fitting:
            filled[max(fitting, key=filled.__getitem__)] += need
        else:
            filled.append(need)
    return sorted(filled)


# Bins


@pytest.mark.parametrize("lengths", RANDOM, ids=len)
@pytest.mark.parametrize("room", [30, 37])
def test_bins_are_those_of_the_rule(lengths, room):
    bins = pack(lengths, room)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in members) for members in bins)
    assert filled == naive_bins(lengths, room) and filled[-1] <= room


def test_the_fullest_bin_is_chosen_not_the_first():
    """7 opens a bin, 6 another; 3 fits both and goes to the fuller one, 4 still fits the other."""
    bins = pack([7, 6, 3, 4], 10)
    assert sorted(map(sorted, bins)) == [[0, 2], [1, 3]]
    assert sorted(map(sorted, pack([6, 7, 3], 10))) == [[0], [1, 2]]


def test_bins_do_not_depend_on_anything_but_the_lengths():
    assert pack(RANDOM[2], 30) == pack(list(RANDOM[2]), 30)
    assert pack([], 8) == []
    assert pack([8, 8], 8) == [[0], [1]]


# Rows


def test_a_row_by_hand():
    """Targets never reach into the next example, and the last token of each has none."""
    first = example(5, 6, 7, trained=[False, False, True])
    second = example(8, 9, trained=[True, True])  # the first token has nothing before it
    rows = PackedRows([first, second], length=7)
    assert rows.num_rows == 1 and rows.fill == pytest.approx(5 / 7)
    found = rows.rows(0, np.array([0]))
    expected = {
        "ids": [5, 6, 7, 8, 9, 0, 0],
        "targets": [6, 7, 0, 9, 0, 0, 0],
        "weights": [0, 1, 0, 1, 0, 0, 0],
        "segments": [1, 1, 1, 2, 2, 0, 0],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == (1, 7) and found[name][0].tolist() == values, name
    assert {found[name].dtype for name in ("ids", "targets", "segments")} == {np.dtype(np.int32)}
    assert found["weights"].dtype == np.float32


@pytest.mark.parametrize("together", [True, False])
def test_every_example_stands_in_the_rows_once(together):
    made = examples(RANDOM[1])
    rows = PackedRows(made, length=32, together=together)
    batch = rows.rows(0, np.arange(rows.num_rows))
    found = []
    for row in range(rows.num_rows):
        segments = batch["segments"][row]
        assert np.all(np.diff(segments[segments > 0]) >= 0)
        for segment in range(1, segments.max() + 1):
            place = segments == segment
            trained = np.zeros(place.sum(), bool)
            trained[1:] = batch["weights"][row][place][:-1] > 0
            assert batch["weights"][row][place][-1] == 0
            np.testing.assert_array_equal(
                batch["targets"][row][place][:-1], batch["ids"][row][place][1:]
            )
            found.append((batch["ids"][row][place].tolist(), trained.tolist()))
        padding = segments == 0
        for name in ("ids", "targets", "weights"):
            assert not batch[name][row][padding].any()
    expected = [(e.ids.tolist(), [False, *e.trained[1:].tolist()]) for e in made]
    assert sorted(found) == sorted(expected)
    if not together:
        assert rows.num_rows == len(made) and batch["segments"].max() == 1
    else:
        assert rows.num_rows < len(made) and rows.fill > 0.9


def test_rows_are_asked_for_in_any_order_and_are_the_same_in_every_epoch():
    rows = PackedRows(examples(RANDOM[1]), length=32)
    everything = rows.rows(0, np.arange(rows.num_rows))
    some = rows.rows(7, np.array([3, 0, 3]))
    for name, values in some.items():
        np.testing.assert_array_equal(values, everything[name][[3, 0, 3]])


def test_an_example_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"example 1 has 5 tokens, more than the 4 of a row"):
        PackedRows([example(1, 2), example(1, 2, 3, 4, 5)], length=4)
    assert PackedRows([example(1, 2, 3, 4)], length=4).num_rows == 1


@pytest.mark.parametrize(
    "made",
    [[], [example(1, 2, trained=[False, False])], [example(1)]],
    ids=["no example", "nothing trained", "one token"],
)
def test_nothing_to_train_on_is_refused(made):
    with pytest.raises(UserError, match="no example has a token to train on"):
        PackedRows(made, length=8)


# Running text


@pytest.mark.parametrize("length", [2, 3, 8, 100])
@pytest.mark.parametrize("sizes", [[5, 1, 9, 20], [8], [2], [15], [22]], ids=str)
def test_windows_predict_every_token_once(sizes, length):
    text = np.arange(sum(sizes), dtype=np.int32)
    parts = np.split(text, np.cumsum(sizes)[:-1])
    made = windows(parts, length)
    assert all(2 <= len(one.ids) <= length and one.trained.all() for one in made)
    assert all(len(one.ids) == length for one in made[:-1])
    batch = PackedRows(made, length=length).rows(
        0, np.arange(len(pack([*map(len_, made)], length)))
    )
    predicted = batch["targets"][batch["weights"] > 0]
    assert sorted(predicted.tolist()) == list(range(1, len(text)))
    read = batch["ids"][batch["weights"] > 0]
    np.testing.assert_array_equal(read + 1, predicted)


def len_(one):
    return len(one.ids)


def test_windows_of_nothing():
    assert windows([], 8) == [] and windows([np.array([3])], 8) == []
