"""Baselines of counts against loops over histories."""

import math

import numpy as np
import pytest

from tests import tiny
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import use_mesh

USERS, ITEMS = 12, 11
# On the equator, where a degree of longitude is as long as one of latitude.
POINTS = np.random.default_rng(8).uniform(-0.02, 0.02, (ITEMS, 2))
PLACES = {
    "latitude": [None if item == 3 else point[0] for item, point in enumerate(POINTS)],
    "longitude": [point[1] for point in POINTS],
}


def events():
    """Training events by user and time; item 10 has none, users 10 and 11 have none."""
    rng = np.random.default_rng(4)
    user = np.sort(rng.integers(0, USERS - 2, 90))
    return user, rng.integers(0, ITEMS - 1, 90) * rng.integers(0, 2, 90)


def histories():
    rng = np.random.default_rng(9)
    return [rng.integers(0, ITEMS - 1, size).tolist() for size in (5, 1, 7, 3)] + [[]]


def naive_order(name, history, length):
    """Items best first: by count, place or successors, then popularity."""
    user, item = events()
    popular = np.bincount(item, minlength=ITEMS)
    history = history[-length:]

    def key(candidate):
        places = [n for n, other in enumerate(history) if other == candidate]
        if name == "frequency":
            first = (len(places), places[-1] if places else -1)
        elif name == "recency":
            first = (places[-1] if places else -1,)
        elif name == "distance":
            ends = (history[-1], candidate) if history else (3,)
            known = 3 not in ends  # nobody knows where item 3 is
            first = (-math.dist(*(POINTS[end] for end in ends)) if known else -math.inf,)
        else:
            pairs = zip(zip(user, item, strict=True), zip(user[1:], item[1:], strict=True))  # noqa: B905
            first = (
                sum(u == v and a == history[-1] and b == candidate for (u, a), (v, b) in pairs)
                if history
                else 0,
            )
        return (*first, popular[candidate])

    return {candidate: key(candidate) for candidate in range(ITEMS)}


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 2, 2)])
@pytest.mark.parametrize(
    ("name", "length"),
    [("frequency", 4), ("frequency", 9), ("recency", 9), ("transitions", 1), ("distance", 1)],
)
def test_order(name, length, shape):
    model = recommenders.create(name, dict(length=length), num_users=USERS, num_items=ITEMS)
    padded = np.zeros((5, length), np.int32)
    for row, history in enumerate(histories()):
        known = history[-length:]
        padded[row, : len(known)] = known
    size = np.array([min(len(h), length) for h in histories()], np.int32)
    mesh = tiny.mesh(*shape)
    with use_mesh(mesh):
        frozen = {**model.frozen(*events()).arrays, **model.describe_items(PLACES).arrays}
        tables = model.tables({}, frozen)
        batch = {"user": np.arange(5, dtype=np.int32), "history": padded, "length": size}
        scores = np.asarray(model.scores(model.user_state({}, tables, batch), tables.item))
    assert model.init(None) == {} and model.batches == "none"
    for row, history in enumerate(histories()):
        keys = naive_order(name, history, length)
        for a in range(ITEMS):
            for b in range(ITEMS):
                assert (scores[row, a] > scores[row, b]) == (keys[a] > keys[b]), (row, a, b)


def test_only_the_most_frequent_successors_are_kept():
    model = recommenders.create("transitions", dict(successors=1), num_users=USERS, num_items=ITEMS)
    user, item = np.zeros(7, int), np.array([3, 5, 3, 6, 3, 5, 3])
    arrays = model.frozen(user, item).arrays
    assert arrays["after"].shape == (64, 1)
    assert arrays["after"][3, 0] == 5 and arrays["count"][3, 0] == 2
    assert arrays["after"][5, 0] == 3 and arrays["count"][5, 0] == 2


def test_values_that_are_refused():
    with pytest.raises(UserError, match="length=0"):
        recommenders.create("recency", dict(length=0), num_users=3, num_items=3)
    with pytest.raises(UserError, match="latitude and longitude must both"):
        recommenders.create("distance", dict(latitude=""), num_users=3, num_items=3)
    near = recommenders.create("distance", {}, num_users=3, num_items=3)
    with pytest.raises(UserError, match="latitude='latitude', but the item table has no column"):
        near.describe_items(None)
    with pytest.raises(UserError, match="successors=0"):
        recommenders.create("transitions", dict(successors=0), num_users=3, num_items=3)
