"""Splits against loops over users."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Dataset, Interactions
from xrec_jax.data.load import load, split

PARTS = ("train", "valid", "test")


def dataset_of(user, timestamp=None, parts=None):
    """A data set whose rating is the event's row in the file, so that events can be told apart."""
    user = np.asarray(user, np.int32)
    events = Interactions(
        user=user,
        item=np.arange(len(user), dtype=np.int32) % 7,
        timestamp=None if timestamp is None else np.asarray(timestamp),
        rating=np.arange(len(user), dtype=np.float32),
    )
    names = np.arange(int(user.max()) + 1).astype(str)
    if parts is not None:
        parts = {name: events.take(np.asarray(rows, int)) for name, rows in parts.items()}
    return Dataset("toy", events, names, np.arange(7).astype(str), splits=parts)


def random_dataset(seed, timed=True):
    rng = np.random.default_rng(seed)
    # A user has from 0 to a good many events; fractional times with many ties.
    user = rng.zipf(1.4, 700)
    user = user[user < 60]
    time = rng.integers(-9, 9, len(user)) / 4
    return dataset_of(user, time if timed else None)


def rows_of(events):
    return events.rating.astype(int).tolist()


def history(dataset, user):
    """Returns the user's rows by time; Python's sort keeps file order in ties."""
    rows = [row for row, of in enumerate(dataset.interactions.user) if of == user]
    time = dataset.interactions.timestamp
    return rows if time is None else sorted(rows, key=lambda row: time[row])


@pytest.mark.parametrize("timed", [True, False])
def test_leave_one_out(timed):
    for seed in range(3):
        dataset = random_dataset(seed, timed)
        expected = {part: [] for part in PARTS}
        ties, short = 0, 0
        for user in range(dataset.num_users):
            rows = history(dataset, user)
            short += 0 < len(rows) < 3
            if len(rows) < 3:
                expected["train"] += rows
                continue
            expected["train"] += rows[:-2]
            expected["valid"].append(rows[-2])
            expected["test"].append(rows[-1])
            time = dataset.interactions.timestamp
            ties += time is not None and time[rows[-1]] == time[rows[-2]]
        result = split(dataset, ConfigDict({"kind": "leave_one_out"}))
        assert {part: rows_of(getattr(result, part)) for part in PARTS} == expected
        assert result.tied_users == ties
        assert short > 0 and (ties > 0) == timed


def test_exact_timestamps_decide():
    # As float64 these are one value; as float32 so are times of seconds.
    late = 2**60
    dataset = dataset_of([0, 0, 0, 0], [late + 2, late, late + 1, late + 3])
    result = split(dataset, {})
    assert rows_of(result.test) == [3] and rows_of(result.valid) == [0]
    assert rows_of(result.train) == [1, 2]
    assert result.tied_users == 0


def test_tie_is_that_of_validation_and_test():
    dataset = dataset_of([0, 0, 0, 1, 1, 1, 2, 2], [1, 1, 2, 1, 2, 2, 5, 5])
    result = split(dataset, {"kind": "leave_one_out"})
    assert result.tied_users == 1
    assert rows_of(result.test) == [2, 5] and rows_of(result.train) == [0, 3, 6, 7]


def held_out_sizes(count, ratios):
    """Returns the sizes of train, valid and test, moving events one at a time."""
    sizes = [count, 0, 0]
    for part in (2, 1):
        share = ratios[part] * count
        wanted = 1 if 0 < share < 1 else math.floor(share + 1e-9)
        while sizes[part] < wanted and sizes[0] > 1:
            sizes[part] += 1
            sizes[0] -= 1
    return sizes


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.1), (0.3, 0.4, 0.3), (0.05, 0.15, 0.8)])
@pytest.mark.parametrize("timed", [True, False])
def test_ratio_by_time(ratios, timed):
    for seed in range(3):
        dataset = random_dataset(seed, timed)
        expected = {part: [] for part in PARTS}
        ties = 0
        for user in range(dataset.num_users):
            rows = history(dataset, user)
            num_train, num_valid, num_test = held_out_sizes(len(rows), ratios)
            cut = num_train + num_valid
            expected["train"] += rows[:num_train]
            expected["valid"] += rows[num_train:cut]
            expected["test"] += rows[cut:]
            time = dataset.interactions.timestamp
            ties += time is not None and num_test > 0 and time[rows[cut]] == time[rows[cut - 1]]
        result = split(dataset, ConfigDict({"kind": "ratio", "ratios": ratios}))
        assert {part: rows_of(getattr(result, part)) for part in PARTS} == expected
        assert result.tied_users == ties
        assert (ties > 0) == timed


def test_ratio_sizes_at_exact_products():
    """0.29 * 100 is 28.999... in binary and stands for 29."""
    result = split(dataset_of([0] * 100), {"kind": "ratio", "ratios": (0.42, 0.29, 0.29)})
    assert [len(getattr(result, part)) for part in PARTS] == [42, 29, 29]


def test_ratio_at_random():
    dataset = random_dataset(0)
    config = {"kind": "ratio", "order": "random", "seed": 3}
    result = split(dataset, config)
    again, other = split(dataset, config), split(dataset, config | {"seed": 4})
    parts = {part: rows_of(getattr(result, part)) for part in PARTS}
    assert parts == {part: rows_of(getattr(again, part)) for part in PARTS}
    assert parts["test"] != rows_of(other.test)
    assert parts["test"] != rows_of(split(dataset, {"kind": "ratio"}).test)
    assert sorted(itertools.chain(*parts.values())) == list(range(len(dataset.interactions)))
    assert result.tied_users == 0
    for user in range(dataset.num_users):
        rows = history(dataset, user)
        mine = {part: [row for row in parts[part] if row in rows] for part in PARTS}
        sizes = [len(mine[part]) for part in PARTS]
        assert sizes == held_out_sizes(len(rows), (0.8, 0.1, 0.1))
        for part in PARTS:
            assert mine[part] == [row for row in rows if row in mine[part]]


def test_ratio_at_random_is_uniform():
    """Every event of a user is held out for the test about equally often."""
    dataset = dataset_of([0] * 10 + [1] * 5)
    hits = np.zeros(15)
    for seed in range(600):
        config = {"kind": "ratio", "order": "random", "seed": seed, "ratios": (0.6, 0.2, 0.2)}
        hits[rows_of(split(dataset, config).test)] += 1
    assert (np.abs(hits / 600 - 0.2) < 0.07).all()


def test_given_is_sorted_by_user_and_time():
    user, time = [1, 0, 1, 0, 0, 2], [5, 4, 3, 3, 4, 1]
    parts = {"train": [0, 1, 2, 3, 4], "valid": [5, 0], "test": [2]}
    dataset = dataset_of(user, time, parts)
    for config in ({}, {"kind": "given"}):
        result = split(dataset, config)
        assert rows_of(result.train) == [3, 1, 4, 2, 0]
        assert rows_of(result.valid) == [0, 5] and rows_of(result.test) == [2]
        assert result.tied_users == 0


def test_an_unset_kind_is_what_the_files_are():
    parts = {"train": [0, 1, 2], "valid": [3], "test": [4]}
    for config in ({}, {"kind": ""}, {"kind": "", "validation": "part"}):
        assert split(dataset_of([0] * 5), config).kind == "leave_one_out"
        result = split(dataset_of([0] * 5, parts=parts), config)
        assert result.kind == "given" and rows_of(result.train) == [0, 1, 2]
    # Only who asks for it has published parts split anew.
    result = split(dataset_of([0] * 5, [1, 2, 5, 4, 3], parts), {"kind": "leave_one_out"})
    assert result.kind == "leave_one_out" and rows_of(result.test) == [2]


@pytest.mark.parametrize("timed", [True, False])
def test_given_without_validation_holds_out_the_last_training_event(timed):
    for seed in range(3):
        whole = random_dataset(seed, timed)
        every = np.arange(len(whole.interactions))
        parts = {"train": every[every % 4 > 0], "test": every[every % 4 == 0]}
        dataset = dataclasses.replace(
            whole, splits={name: whole.interactions.take(rows) for name, rows in parts.items()}
        )
        expected = {"train": [], "valid": []}
        for user in range(whole.num_users):
            rows = [row for row in history(whole, user) if row % 4]
            cut = len(rows) - 1 if len(rows) > 1 else len(rows)
            expected["train"] += rows[:cut]
            expected["valid"] += rows[cut:]
        result = split(dataset, {"validation": "last"})
        assert {name: rows_of(getattr(result, name)) for name in expected} == expected
        assert sorted(rows_of(result.test)) == parts["test"].tolist()


def test_errors():
    plain = dataset_of([0, 0, 0, 1])
    full = {"train": [0, 1], "valid": [2], "test": [3]}
    for dataset, config, pattern in (
        (plain, {"kind": "leave_one"}, "kind='leave_one' is unknown; did you mean"),
        (plain, {"kind": "given"}, "toy: kind='given' needs files for train, valid, test"),
        (
            dataset_of([0] * 4, parts={"train": [0], "test": [1]}),
            {},
            "no 'valid' part.*train, test.*split.validation='last' holds out",
        ),
        (
            dataset_of([0] * 4, parts={"train": [0], "valid": [1]}),
            {},
            "no 'test' part.*train, valid .split.kind='leave_one_out'",
        ),
        (
            dataset_of([0] * 4, parts=full),
            {"validation": "last"},
            "'last' is for files without a 'valid' part",
        ),
        (plain, {"validation": "lats"}, "validation='lats' is unknown; did you mean 'last'"),
        (dataset_of([0] * 4, parts=full | {"test": []}), {}, "'test' empty"),
        (dataset_of([0, 0, 1, 1]), {}, "'valid' empty .no user has 3 events"),
        (plain, {"kind": "ratio", "ratios": (0.8, 0, 0.2)}, "'valid' empty"),
        (plain, {"kind": "ratio", "ratios": (0.8, 0.1)}, "must be three numbers"),
        (plain, {"kind": "ratio", "ratios": (0.8, 0.2, 0.2)}, "shares of 1"),
        (plain, {"kind": "ratio", "ratios": (1.2, -0.1, -0.1)}, "shares of 1"),
        (plain, {"kind": "ratio", "order": "tim"}, "order='tim' is unknown; did you mean 'time'"),
        (plain, {"kind": "ratio", "seed": "a"}, "seed='a' must be an integer"),
    ):
        with pytest.raises(UserError, match=pattern):
            split(dataset, config)


@needs_shared_data
def test_movielens():
    """The published count of tied users; `test_leave_one_out` is the twin on generated data."""
    dataset = load({"format": "atomic", "path": SHARED / "ml-100k"})
    result = split(dataset, {"kind": "leave_one_out"})
    assert [len(getattr(result, part)) for part in PARTS] == [98114, 943, 943]
    assert result.tied_users == 415


@needs_shared_data
def test_google_maps():
    """Sizes as in the files; `test_given_is_sorted_by_user_and_time` is the twin."""
    result = split(load({"format": "csv", "path": SHARED / "google-maps"}), {"kind": "given"})
    assert [len(getattr(result, part)) for part in PARTS] == [329472, 41184, 41184]
    assert result.tied_users == 0 and (np.diff(result.train.user) >= 0).all()


def time_config(**values):
    return ConfigDict({"kind": "time", **values})


@pytest.mark.parametrize("unseen", ["keep", "drop"])
@pytest.mark.parametrize(("at", "valid_at"), [("1", "0.8"), ("0.7", "0.25"), ("1.25", "-1")])
def test_time_split(at, valid_at, unseen):
    """Event by event: before the first moment, between the two, from the second on."""
    for seed in range(3):
        dataset = random_dataset(seed)
        time = dataset.interactions.timestamp
        shares = [0 < float(text) < 1 for text in (at, valid_at)]
        test_from = sorted(time)[round(float(at) * len(time))] if shares[0] else float(at)
        before = sorted(t for t in time if t < test_from)
        valid_from = before[round(float(valid_at) * len(before))] if shares[1] else float(valid_at)
        trained = {
            u for u, t in zip(dataset.interactions.user, time, strict=True) if t < valid_from
        }
        expected, dropped = {part: [] for part in PARTS}, set()
        for user in range(dataset.num_users):
            for row in history(dataset, user):
                late = 2 if time[row] >= test_from else int(time[row] >= valid_from)
                if late and unseen == "drop" and user not in trained:
                    dropped.add(user)
                else:
                    expected[PARTS[late]].append(row)
        result = split(dataset, time_config(at=at, valid_at=valid_at, unseen_users=unseen))
        assert {part: rows_of(getattr(result, part)) for part in PARTS} == expected
        assert result.dropped_users == len(dropped) and result.kind == "time"
        assert bool(dropped) == (unseen == "drop")
        # Nothing that is learned from, or read as history, comes after what is tested.
        assert result.train.timestamp.max() < result.valid.timestamp.min()
        assert result.valid.timestamp.max() < result.test.timestamp.min()


def test_a_date_is_one_of_seconds_in_utc():
    cut = 1352498087  # 2012-11-09 21:54:47 UTC
    dataset = dataset_of([0, 0, 0, 0, 1], [cut - 90_000, cut - 1, cut - 2, cut, cut + 7])
    for at in ("2012-11-09 21:54:47", "2012-11-09T22:54:47+01:00", str(cut)):
        result = split(dataset, time_config(at=at, valid_at="2012-11-09"))
        assert [rows_of(getattr(result, part)) for part in PARTS] == [[0], [2, 1], [3, 4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "needs split.at: a share"),
        (dict(at="soon"), "split.at='soon' is neither a share"),
        (dict(at="2012-13-01"), "split.at='2012-13-01' is neither"),
        (dict(at="inf"), "split.at=inf must be a share"),
        (dict(at="-50"), "split.at=-50: no event is earlier"),
        (dict(at="0.5", valid_at="70"), "split.valid_at=70 lies behind split.at=0.5"),
        (dict(at="0.5", unseen_users="hide"), "unseen_users='hide' is unknown"),
        (dict(at="60"), "leaves 'test' empty .move split.at"),
    ],
)
def test_moments_that_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        split(random_dataset(0), time_config(**values))


def test_a_time_split_needs_times():
    with pytest.raises(UserError, match="needs a column of times"):
        split(random_dataset(0, timed=False), time_config(at="0.5"))


@pytest.mark.parametrize("ticks", [1, 10**3, 10**6, 10**9])
def test_a_date_in_the_unit_of_the_times(ticks):
    """Readers turn dates into micro- or nanoseconds."""
    cut = 1352498087  # 2012-11-09 21:54:47 UTC
    times = np.array([cut - 90_000, cut - 1, cut - 2, cut, cut + 7]) * ticks
    result = split(
        dataset_of([0, 0, 0, 0, 1], times),
        time_config(at="2012-11-09 21:54:47", valid_at="2012-11-09"),
    )
    assert [rows_of(getattr(result, part)) for part in PARTS] == [[0], [2, 1], [3, 4]]
