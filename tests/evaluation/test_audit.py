"""Audit findings by hand, against loops, on real data and on the generated world."""

import dataclasses
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.load import load, split
from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.data import duplicate_pairs, gini
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, largest
from xrec_jax.pipelines import audit as pipeline
from xrec_jax.pipelines import datasets, defaults

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
LEAVE_ONE_OUT = audit.Protocol("leave_one_out")
RATIO = audit.Protocol("ratio")
RANDOM = audit.Protocol("ratio", "random")
GIVEN = audit.Protocol("given")
TITLES = ["Alien", "Brazil", None, "Drive", "Emma", "Fargo", "Gilda"]


def events_of(rows, timed=True):
    """Interactions from (user, item, time) rows."""
    user, item, time = zip(*rows, strict=True) if rows else ((), (), ())
    return Interactions(
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        timestamp=np.array(time, np.float64) if timed else None,
    )


def dataset_of(events, num_users=5, num_items=7, **fields):
    names = [f"u{row}" for row in range(num_users)]
    items = pl.DataFrame({"movie_title": TITLES[:num_items], "year": [1990] * num_items})
    fields = {"items": items, "users": pl.DataFrame({"age": [30] * num_users})} | fields
    return Dataset(
        "toy", events, np.array(names), np.array([f"i{row}" for row in range(num_items)]), **fields
    )


def by_code(outcomes):
    outcomes = [outcome for outcome in outcomes if outcome is not None]
    assert len({outcome.code for outcome in outcomes}) == len(outcomes)
    return {outcome.code: outcome for outcome in outcomes}


def check(dataset, parts, protocol=GIVEN):
    return by_code(
        [
            *audit.check_split(dataset, parts, protocol),
            *audit.check_times(dataset, parts, protocol),
            *audit.check_dataset(dataset),
        ]
    )


def check_rows(train, valid, test, protocol=GIVEN, timed=True, **fields):
    parts = Split(*(events_of(rows, timed) for rows in (train, valid, test)))
    dataset = dataset_of(events_of(train + valid + test, timed), **fields)
    return check(dataset, parts, protocol)


# Two users in time order, no event shared, no tie.
TRAIN = [(0, 0, 1.5), (0, 1, 2.5), (1, 2, 1.25), (1, 0, 2.75), (1, 3, 3.0)]
VALID = [(0, 2, 3.5), (1, 1, 3.25)]
TEST = [(0, 3, 4.5), (1, 4, 4.75)]
PROPERTIES = {"popularity_concentration", "sparsity"}


def test_sound_data_has_properties_only():
    train = [*TRAIN, (0, 4, 1.0)]
    found = check_rows(train, VALID, TEST, LEAVE_ONE_OUT, num_users=2, num_items=5)
    assert found.pop("items_without_description").count == 0  # the year is there, if not the title
    assert {code for code, finding in found.items() if finding.count} == PROPERTIES
    assert found["sparsity"].count == 10 and found["sparsity"].total == 10


def test_duplicates_kept_and_dropped():
    rows = [*TRAIN, (0, 1, 2.25), (1, 2, 9.5), (1, 2, 0.5)]
    dataset = dataset_of(events_of(rows))
    kept = duplicate_pairs(dataset)
    assert (kept.count, kept.total, kept.severity) == (3, 8, "warning")
    assert kept.examples == ("user u1, item i2: 3 times", "user u0, item 'Brazil' (i1): 2 times")
    clean = dataset_of(
        events_of(TRAIN), notes={"duplicates_dropped": 3, "core_dropped": 4, "users_other": 9}
    )
    dropped = duplicate_pairs(clean)
    assert (dropped.count, dropped.total, dropped.severity) == (3, 12, "info")
    assert dropped.examples == ()
    assert duplicate_pairs(clean, dataset).examples == kept.examples
    assert duplicate_pairs(clean, dataset).count == 3
    # Repeats of the file that another filter removed later are still the file's.
    other = dataset_of(events_of(TRAIN), notes={"duplicates_kept": 2, "min_rating_dropped": 2})
    assert (duplicate_pairs(other).count, duplicate_pairs(other).total) == (2, 7)
    assert duplicate_pairs(dataset_of(events_of(TRAIN))).count == 0


def test_duplicates_are_those_within_a_part():
    parts = {"train": events_of(TRAIN), "test": events_of([*TEST, TEST[0], TRAIN[0]])}
    dataset = dataset_of(events_of([*TRAIN, *TEST, TEST[0], TRAIN[0]]), parts=parts)
    assert duplicate_pairs(dataset).count == 1


def test_ties_at_borders():
    train = [(0, 0, 1.5), (1, 0, 2.5), (2, 0, 0.5), (3, 0, 0.5), (3, 1, 0.5), (4, 6, 1.0)]
    valid = [(0, 1, 2.5), (1, 1, 2.5), (2, 1, 1.5), (3, 2, 1.25)]
    test = [(0, 2, 2.5), (1, 2, 2.5), (2, 2, 2.25), (3, 3, 1.5)]
    found = check_rows(train, valid, test, LEAVE_ONE_OUT)
    at_test, at_any = found["tied_test_event"], found["tied_held_out_border"]
    assert (at_test.count, at_test.total, at_test.severity) == (2, 4, "warning")
    assert at_test.examples[0] == "user u0: item 'Brazil' (i1) or item i2 at 2.5"
    assert (at_any.count, at_any.total) == (2, 4)
    assert at_any.examples == ("user u0: test", "user u1: both")
    ties = found["tied_timestamps"]
    assert (ties.count, ties.total, ties.severity) == (4, 14, "info")
    assert ties.examples[0] == "user u1: 2 of 3 events"
    moved = [(2, 0, 1.5) if row[0] == 2 else row for row in train]
    at_any = check_rows(moved, valid, test, LEAVE_ONE_OUT)["tied_held_out_border"]
    assert at_any.count == 3 and at_any.examples[2] == "user u2: validation"
    # File order decides nothing in parts that were given or drawn.
    for protocol in (GIVEN, RANDOM):
        assert not {"tied_test_event", "tied_held_out_border"} & set(
            check_rows(train, valid, test, protocol)
        )


def test_exact_timestamps_do_not_tie():
    time = np.array([2**60, 2**60 + 1, 2**60 + 2])  # as float64 one value
    events = Interactions(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), time)
    dataset = dataset_of(events, num_users=1)
    found = check(dataset, split(dataset, {}), LEAVE_ONE_OUT)
    assert found["tied_held_out_border"].count == found["tied_timestamps"].count == 0
    assert found["held_out_before_training"].count == 0


def test_short_histories():
    rows = [(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 2), (2, 2, 3), (3, 0, 5)]
    for protocol, severity in ((LEAVE_ONE_OUT, "warning"), (RATIO, "warning"), (GIVEN, "info")):
        found = check_rows(rows[:4] + rows[6:], rows[4:5], rows[5:6], protocol, num_users=4)
        short = found["short_histories"]
        assert (short.count, short.total, short.severity) == (3, 4, severity)
        assert short.examples == ("user u0: 1 event", "user u1: 2 events", "user u3: 1 event")
        single = found["single_event_users"]
        assert (single.count, single.total, single.severity) == (2, 4, "info")
        assert single.examples == ("user u0", "user u3")
        assert ("users_without_test_event" in found) == (protocol is GIVEN)
    untested = found["users_without_test_event"]
    assert (untested.count, untested.total) == (3, 4)


def test_cold_items_and_users():
    found = check_rows([*TRAIN, (3, 0, 1.0)], [*VALID, (2, 0, 4.0)], [*TEST, (2, 5, 5.5)])
    items, users = found["cold_items"], found["cold_users"]
    assert (items.count, items.total, items.severity) == (2, 6, "warning")
    assert "2 of 3 test events" in items.message
    assert items.examples[0] == "item 'Emma' (i4): 1 held-out event"
    assert (users.count, users.total, users.severity) == (1, 3, "warning")
    assert "1 of 3 test events" in users.message
    assert users.examples == ("user u2: 2 held-out events",)


@pytest.mark.parametrize(("cold_events", "severity"), [(1, "info"), (2, "warning")])
def test_few_cold_events_are_no_warning(cold_events, severity):
    test = [(0, 0, 4.5)] * (150 - cold_events) + [(0, 4, 4.5)] * cold_events
    assert check_rows(TRAIN, [(0, 0, 4.0)] * 50, test)["cold_items"].severity == (
        "info" if (cold_events / 200) < 0.01 else "warning"
    ) == (severity == severity)
