"""Filters against loops over single events."""

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data import filters
from xrec_jax.data.dataset import Interactions


def random_events(seed, *, size=257, users=23, items=19, times=11):
    """Events with repeated pairs, tied fractional times and fractional ratings."""
    rng = np.random.default_rng(seed)
    return Interactions(
        user=rng.integers(0, users, size).astype(np.int32),
        item=rng.integers(0, items, size).astype(np.int32),
        timestamp=rng.integers(-times, times, size) / 4,
        rating=(rng.integers(0, 50, size) / 10).astype(np.float32),
    )


def kept_of_each_pair(events, part, keep):
    """Returns the rows of the first or last occurrence of each pair of each part."""
    best = {}
    for row in range(len(events)):
        key = (part[row], events.user[row], events.item[row])
        time = row if events.timestamp is None else events.timestamp[row]
        rank = (time, row)
        if key not in best or (rank < best[key] if keep == "first" else rank > best[key]):
            best[key] = rank
    return sorted(row for _, row in best.values())


def core_by_removal(user, item, user_core, item_core):
    """Removes one user or item at a time."""
    rows = set(range(len(user)))
    changed = True
    while changed:
        changed = False
        for of, least in ((user, user_core), (item, item_core)):
            for name in {of[row] for row in rows}:
                mine = {row for row in rows if of[row] == name}
                if len(mine) < least:
                    rows -= mine
                    changed = True
                    break
    return sorted(rows)


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_duplicates(keep, timed, num_parts):
    for seed in range(4):
        events = random_events(seed)
        if not timed:
            events = Interactions(events.user, events.item, None, events.rating)
        part = np.sort(np.random.default_rng(seed).integers(0, num_parts, len(events)))
        expected = kept_of_each_pair(events, part, keep)
        rows, notes = filters.select(events, part, {"duplicates": keep})
        assert rows.tolist() == expected
        assert notes == {"duplicates_dropped": len(events) - len(expected)}
        assert notes["duplicates_dropped"] > 10


def test_duplicates_kept_and_default():
    events = random_events(0)
    part = np.zeros(len(events), np.int8)
    first = kept_of_each_pair(events, part, "first")
    rows, notes = filters.select(events, part, {"duplicates": "keep"})
    assert rows.tolist() == list(range(len(events)))
    assert notes == {"duplicates_kept": len(events) - len(first)}
    assert filters.select(events, part, None)[0].tolist() == first


@pytest.mark.parametrize("cores", [(3, 2), (1, 5), (6, 0), (4, 9), (0, 0)])
def test_k_core(cores):
    cascades = 0
    for seed in range(6):
        events = random_events(seed, size=150, users=31, items=29)
        expected = core_by_removal(events.user, events.item, *cores)
        mask = filters.k_core(events.user, events.item, user_core=cores[0], item_core=cores[1])
        assert np.flatnonzero(mask).tolist() == expected
        once = np.bincount(events.user)[events.user] >= cores[0]
        once &= np.bincount(events.item)[events.item] >= cores[1]
        cascades += bool((mask != once).any())
    # The comparison means something only if one pass is not enough.
    assert cascades > 0 or min(cores) <= 1


def test_all_filters_in_order():
    for seed in range(5):
        events = random_events(seed, size=401)
        assert events.rating is not None
        part = np.zeros(len(events), np.int8)
        config = {"min_rating": 1.3, "user_core": 4, "item_core": 5}
        rows, notes = filters.select(events, part, config)
        first = kept_of_each_pair(events, part, "first")
        high = [row for row in first if round(float(events.rating[row]) * 10) >= 13]
        core = core_by_removal(events.user[high], events.item[high], 4, 5)
        assert rows.tolist() == [high[row] for row in core]
        assert notes == {
            "duplicates_dropped": len(events) - len(first),
            "min_rating_dropped": len(first) - len(high),
            "core_dropped": len(high) - len(core),
        }
        assert any(abs(float(rating) - 1.3) < 1e-6 for rating in events.rating[rows])


def test_errors():
    events = random_events(0)
    part = np.zeros(len(events), np.int8)
    without = Interactions(events.user, events.item)
    for given, config, pattern in (
        (events, {"duplicates": "frist"}, "duplicates='frist' is unknown; did you mean 'first'"),
        (events, {"user_core": 2.5}, "user_core=2.5 must be an integer"),
        (events, {"min_rating": "4"}, "min_rating='4' must be a number"),
        (without, {"min_rating": 4}, "needs ratings"),
        (events, {"min_rating": 9, "duplicates": "keep"}, "min_rating_dropped 257.*min_rating=9"),
        (events, {"item_core": 999}, r"none of the 257 events.*core_dropped \d+.*item_core=999"),
    ):
        with pytest.raises(UserError, match=pattern):
            filters.select(given, part, config)
