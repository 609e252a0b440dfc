"""Histories against lists of each user."""

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories


def events(user, item):
    return Interactions(np.asarray(user, np.int32), np.asarray(item, np.int32))


def random_parts(seed, count, num_users, *, by_user):
    """Parts with users of no, one and many events."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        user = np.minimum(rng.zipf(1.5, 60) - 1, num_users - 1)
        user[user == 2] = 3
        yield events(np.sort(user) if by_user else user, rng.integers(0, 500, 60))


def lists(parts, num_users):
    found = [[] for _ in range(num_users)]
    for part in parts:
        for user, item in zip(part.user, part.item, strict=True):
            found[user].append(int(item))
    return found


@pytest.mark.parametrize(
    ("count", "by_user"), [(1, True), (1, False), (2, True), (2, False), (3, True)]
)
def test_groups_events_by_user(count, by_user):
    parts = list(random_parts(count, count, 9, by_user=by_user))
    histories = Histories.of(parts, 9)
    expected = lists(parts, 9)
    assert histories.num_users == 9
    assert histories.items.dtype == np.int32
    assert histories.lengths.tolist() == [len(items) for items in expected]
    for user, items in enumerate(expected):
        first, last = histories.start[user : user + 2]
        assert histories.items[first:last].tolist() == items


def test_hand_worked():
    first = events([0, 0, 2], [5, 4, 6])
    second = events([2, 0], [1, 9])
    histories = Histories.of([first, second], 4)
    assert histories.items.tolist() == [5, 4, 9, 6, 1]
    assert histories.start.tolist() == [0, 3, 3, 5, 5]
    padded = histories.padded(np.array([2, 0, 1, 3, 0]), 2, fill=-1)
    assert padded.tolist() == [[6, 1], [4, 9], [-1, -1], [-1, -1], [4, 9]]
    assert padded.dtype == np.int32


@pytest.mark.parametrize("width", [1, 2, 5, 70])
def test_padded_keeps_the_last_items(width):
    parts = list(random_parts(7, 2, 11, by_user=False))
    histories = Histories.of(parts, 11)
    expected = lists(parts, 11)
    users = np.array([10, 0, 2, 3, 3, 1])
    for fill in (0, -1):
        rows = [(expected[u][-width:] + [fill] * width)[:width] for u in users]
        assert histories.padded(users, width, fill).tolist() == rows


def test_no_events():
    histories = Histories.of([events([], [])], 3)
    assert histories.lengths.tolist() == [0, 0, 0]
    assert histories.padded(np.array([0, 2]), 3, fill=-1).tolist() == [[-1] * 3] * 2
    assert histories.padded(np.array([], int), 3).shape == (0, 3)


@pytest.mark.parametrize("ticks", [1, 10**3, 10**6, 10**9])
def test_clocks_in_every_unit(ticks):
    start = 1352498087  # a Friday, 21:54:47 UTC: hour 45 of a week that begins on Thursday
    seconds = np.array([start, start + 400, start + 90_000, start])
    events = Interactions(
        np.array([0, 0, 0, 2], np.int32), np.array([5, 6, 7, 8], np.int32), seconds * ticks
    )
    found = Histories.of([events], 3).clocks(np.array([0, 1, 2]), 2)
    assert found["hour"].tolist() == [[46, 70], [0, 0], [45, 0]]
    np.testing.assert_allclose(found["days"], [[0, 89_600 / 86_400], [0, 0], [0, 0]], rtol=1e-6)


def test_histories_without_times_have_no_clocks():
    events = Interactions(np.zeros(2, np.int32), np.zeros(2, np.int32))
    with pytest.raises(UserError, match="reads the times of events, and these have none"):
        Histories.of([events], 1).clocks(np.array([0]), 2)
