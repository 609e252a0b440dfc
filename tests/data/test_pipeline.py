"""Training batches against loops over users, and their order across processes and resumes."""

import json

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.data.pipeline import BatchSource, Negatives, PairRows, WindowRows, iterate


def histories_of(lengths, num_items=None, seed=0):
    """Users with these numbers of events; the items are the events' own numbers, or random."""
    user = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    item = np.arange(len(user), dtype=np.int32)
    if num_items:
        item = np.random.default_rng(seed).integers(0, num_items, len(user)).astype(np.int32)
    return Histories.of([Interactions(user, item)], len(lengths))


def negatives_of(histories, num_items=10_000, per_row=0, sampling="uniform", seed=5):
    return Negatives(histories, num_items, per_row=per_row, sampling=sampling, seed=seed)


def windows_of(histories, length, context, seed=5, latest=False, **kwargs):
    negatives = negatives_of(histories, seed=seed, **kwargs)
    options = dict(length=length, context=context, seed=seed, latest=latest)
    return WindowRows.of(histories, negatives, **options)


LENGTHS = [0, 1, 2, 3, 0, 4, 5, 6, 7, 9, 1, 13, 22, 37]


@pytest.mark.parametrize(
    ("length", "context"),
    [(1, 0), (2, 0), (2, 1), (3, 2), (5, 0), (5, 3), (7, 2), (8, 7), (40, 0), (40, 39), (50, 20)],
)
def test_windows_predict_every_event_once(length, context):
    histories = histories_of(LENGTHS)
    windows = windows_of(histories, length, context)
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    expected = [e for e in range(len(owner)) if e > histories.start[owner[e]]]
    for epoch in range(5):
        batch = windows.rows(epoch, np.arange(windows.num_rows))
        assert {a.shape for a in batch.values()} == {(windows.num_rows, length)}
        predicted = []
        for row in range(windows.num_rows):
            history, target, weight = (batch[k][row] for k in ("history", "target", "weight"))
            first_event = histories.start[windows.user[row]]
            (columns,) = np.nonzero(weight)
            assert len(columns) and set(weight.tolist()) <= {0.0, 1.0}
            last = columns[-1]
            # Events in a row, each predicting the next one of the same user.
            np.testing.assert_array_equal(history[: last + 1], history[0] + np.arange(last + 1))
            np.testing.assert_array_equal(target[: last + 1], history[: last + 1] + 1)
            assert history[0] >= first_event and (owner[target[columns]] == windows.user[row]).all()
            # Nothing is read behind the last target, and all that fits before it.
            assert not weight[last + 1 :].any() and not history[last + 1 :].any()
            assert last + 1 == min(length, target[last] - first_event)
            for column in columns:
                assert column >= min(history[column] - first_event, context)
            predicted += target[columns].tolist()
        assert sorted(predicted) == expected


@pytest.mark.parametrize(
    ("length", "context"), [(1, 0), (3, 2), (5, 0), (7, 2), (8, 7), (40, 0), (50, 20)]
)
def test_latest_windows(length, context):
    histories = histories_of(LENGTHS)
    windows = windows_of(histories, length, context, latest=True)
    assert windows.user.tolist() == [user for user, n in enumerate(LENGTHS) if n > 1]
    for epoch in range(3):
        batch, read = windows.windows(epoch, np.arange(windows.num_rows))
        np.testing.assert_array_equal(read, windows.most_read)
        for row, user in enumerate(windows.user):
            events = np.arange(histories.start[user], histories.start[user + 1])
            kept = events[-1 - length :]  # as many are read as fit, and the last is a target only
            assert batch["history"][row, : read[row]].tolist() == kept[:-1].tolist()
            targets = batch["target"][row][batch["weight"][row] > 0]
            assert targets.tolist() == kept[1:][-(length - context) :].tolist()


def test_windows_shift_by_epoch():
    # 1 + 10 events in pieces of 4: 10 targets need 3 windows, whose cuts may shift by 0, 1 or 2.
    windows = windows_of(histories_of([11, 9, 1]), 6, 2)
    assert windows.user.tolist() == [0, 0, 0, 1, 1]
    firsts = set()
    for epoch in range(40):
        weight = windows.rows(epoch, np.arange(5))["weight"].sum(1)
        assert weight[:3].sum() == 10 and weight[3:].tolist() == [4, 4]
        firsts.add(int(weight[0]))
    assert firsts == {2, 3, 4}
    other = windows_of(histories_of([11, 9, 1]), 6, 2, seed=6)
    counts = [
        [w.rows(e, np.arange(3))["weight"].sum(1)[0] for e in range(9)] for w in (windows, other)
    ]
    assert counts[0] != counts[1]


def test_rows_do_not_depend_on_their_batch():
    histories = histories_of([9, 2, 23, 1, 14], num_items=31)
    negatives = negatives_of(histories, 31, per_row=3)
    for rows in (
        windows_of(histories, 5, 1, per_row=3, num_items=31),
        PairRows.of(histories, negatives),
    ):
        whole = rows.rows(3, np.arange(rows.num_rows))
        order = np.random.default_rng(1).permutation(rows.num_rows)[:5]
        for name, values in rows.rows(3, order).items():
            np.testing.assert_array_equal(values, whole[name][order])
        again = rows.rows(4, order)["negative"]
        assert (again != whole["negative"][order]).any()


def test_pairs_are_the_events():
    histories = histories_of([3, 0, 5, 1], num_items=17)
    rows = PairRows.of(histories, negatives_of(histories, 17, per_row=2))
    batch = rows.rows(0, np.array([8, 0, 3]))
    assert rows.num_rows == 9
    assert batch["user"].tolist() == [3, 0, 2]
    assert batch["item"].tolist() == histories.items[[8, 0, 3]].tolist()
    assert batch["negative"].shape == (3, 2)
    assert {a.dtype for a in batch.values()} == {np.dtype(np.int32)}
    assert "negative" not in PairRows.of(histories, negatives_of(histories)).rows(0, np.arange(2))


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniform_negatives_are_uniform_over_the_unseen():
    num_items = 23
    # User 2 has seen all items but one; user 0 half of them, some twice.
    items = [[*range(0, 22, 2), 4, 4], [7], list(range(22)), []]
    user = np.repeat(np.arange(4), [len(i) for i in items]).astype(np.int32)
    flat = np.concatenate(items).astype(np.int32)
    histories = Histories.of([Interactions(user, flat)], 4)
    negatives = negatives_of(histories, num_items, per_row=4)
    rows = np.arange(4000)
    for u, seen in enumerate(items):
        drawn = negatives.draw(1, rows, np.full(len(rows), u, np.int32))
        assert drawn.dtype == np.int32 and drawn.shape == (4000, 4)
        counts = np.bincount(drawn.ravel(), minlength=num_items)
        unseen = np.setdiff1d(np.arange(num_items), seen)
        assert counts[unseen].sum() == counts.sum() == 16_000
        freedom = len(unseen) - 1
        assert chi_square(counts[unseen], 16_000 / len(unseen)) <= freedom + 5 * np.sqrt(
            2 * freedom
        )
        for column in range(3):  # columns of a row are independent, seen items or not
            same = (drawn[:, column] == drawn[:, column + 1]).mean()
            chance = 1 / len(unseen)
            assert abs(same - chance) <= 5 * np.sqrt(chance * (1 - chance) / 4000)


def test_popular_negatives_come_as_often_as_in_training():
    histories = histories_of([40, 3, 77], num_items=9, seed=3)
    negatives = negatives_of(histories, 9, per_row=5, sampling="popularity")
    drawn = negatives.draw(2, np.arange(4000), np.zeros(4000, np.int32))
    share = np.bincount(histories.items, minlength=9) / 120
    counts = np.bincount(drawn.ravel(), minlength=9)
    assert chi_square(counts[share > 0], 20_000 * share[share > 0]) < 8 + 5 * 4
    assert drawn.dtype == np.int32 and not counts[share == 0].any()


def test_a_user_who_saw_everything_is_an_error():
    histories = histories_of([4, 3])
    histories = Histories(np.array([0, 1, 2, 0, 1, 1, 0], np.int32), histories.start)
    with pytest.raises(UserError, match="every item"):
        negatives_of(histories, 3, per_row=1)
    negatives_of(histories, 4, per_row=1)
    negatives_of(histories, 3, per_row=0)
    negatives_of(histories, 3, per_row=1, sampling="popularity")


def source_of(batch_size, lengths=(4, 9, 1, 7), seed=5, **kwargs):
    histories = histories_of(lengths, num_items=40)
    rows = PairRows.of(histories, negatives_of(histories, 40, per_row=2))
    return BatchSource(rows, batch_size=batch_size, seed=seed, **kwargs)


def test_processes_share_a_global_batch():
    whole = source_of(6)
    for processes in (2, 3, 6):
        parts = [source_of(6, process=p, processes=processes) for p in range(processes)]
        for step in range(9):
            batches = [part[step] for part in parts]
            for name, values in whole[step].items():
                joined = np.concatenate([batch[name] for batch in batches])
                np.testing.assert_array_equal(joined, values)


@pytest.mark.parametrize("batch_size", [1, 6, 7, 20, 21, 22, 64])
def test_an_epoch_covers_every_row(batch_size):
    source = source_of(batch_size)
    histories = histories_of((4, 9, 1, 7), num_items=40)
    users = np.repeat(np.arange(4), [4, 9, 1, 7])
    events = sorted(zip(users.tolist(), histories.items.tolist(), strict=True))
    assert source.steps_per_epoch == -(-21 // batch_size)
    orders = []
    for epoch in range(3):
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        pairs = [
            pair
            for s in steps
            for pair in zip(source[s]["user"].tolist(), source[s]["item"].tolist(), strict=True)
        ]
        assert len(pairs) == source.steps_per_epoch * batch_size
        assert sorted(pairs[:21]) == events
        # The last batch is filled from the start of the same order.
        assert pairs[21:] == (pairs[:21] * (batch_size // 21 + 1))[: len(pairs) - 21]
        orders.append(pairs[:21])
    assert orders[0] != orders[1] != orders[2]


def test_the_seed_decides_the_order():
    first, same, other = (
        [source_of(6, seed=s)[k]["item"].tolist() for k in range(4)] for s in (5, 5, 6)
    )
    assert first == same and first != other


def assert_equal_batches(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize("read", [0, 3, 4, 10])
def test_iterator_goes_on_where_it_stopped(read):
    source = source_of(6)  # 4 steps an epoch
    iterator = iterate(source)
    for step in range(read):
        assert_equal_batches(next(iterator), source[step])
    state = json.loads(json.dumps(iterator.get_state()))
    fresh = iterate(source_of(6), threads=2, prefetch=1)
    next(fresh)
    fresh.set_state(state)
    halves = [iterate(source_of(6, process=p, processes=2)) for p in range(2)]
    for half in halves:
        half.set_state(state)
    for step in range(read, read + 9):
        batch = next(iterator)
        assert_equal_batches(batch, source[step])
        assert_equal_batches(batch, next(fresh))
        parts = [next(half) for half in halves]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        assert_equal_batches(batch, joined)


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match="fewer than two events"):
        BatchSource(windows_of(histories_of([1, 0, 1]), 5, 0), batch_size=4, seed=0)
    for batch_size, processes in ((7, 2), (0, 1), (-2, 1), (2, 4)):
        with pytest.raises(UserError, match=f"batch_size={batch_size} "):
            source_of(batch_size, processes=processes)
