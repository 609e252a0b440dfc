"""Audit findings by hand, against loops, on real data and on the generated world."""

import dataclasses
import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.tiny import SHARED, needs_shared_data
from xrec_jax import defaults
from xrec_jax.api import audit as audit_command
from xrec_jax.core.errors import UserError
from xrec_jax.data import run_data
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.load import load, split
from xrec_jax.evaluation import audit
from xrec_jax.evaluation.audit.data import duplicate_pairs, gini
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, largest

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
    dataset = dataset_of(events_of([*TRAIN, *TEST, TEST[0], TRAIN[0]]), splits=parts)
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
    found = check_rows(TRAIN, [(0, 0, 4.0)] * 50, test)
    assert found["cold_items"].count == 1 and found["cold_items"].severity == severity


def test_pairs_in_several_parts():
    valid = [*VALID, (0, 1, 3.6), (1, 6, 3.6)]  # (0, 1) is in training
    test = [*TEST, (0, 1, 4.6), (1, 2, 4.6), (1, 6, 4.6), (1, 6, 4.7)]
    found = check_rows(TRAIN, valid, test)
    trained, shared = found["pairs_in_training"], found["pairs_in_valid_and_test"]
    assert (trained.count, trained.total, trained.severity) == (2, 7, "error")
    assert "1 of validation, 2 of the test" in trained.message
    assert trained.examples == ("user u0, item 'Brazil' (i1)", "user u1, item i2")
    assert (shared.count, shared.total, shared.severity) == (2, 5, "error")
    assert shared.examples == ("user u0, item 'Brazil' (i1)", "user u1, item 'Gilda' (i6)")


def test_order_within_a_user():
    # User 0 is held out before training, user 1 at the same time, user 2 has no training.
    valid, test = [(0, 2, 2.25), (1, 1, 3.0)], [(0, 3, 2.75), (1, 4, 3.0), (2, 4, 0.5)]
    for protocol, severity in (
        (LEAVE_ONE_OUT, "error"),
        (RATIO, "error"),
        (GIVEN, "warning"),
        (RANDOM, "info"),
    ):
        found = check_rows(TRAIN, valid, test, protocol)["held_out_before_training"]
        assert (found.count, found.total, found.severity) == (1, 4, severity)
        assert found.examples == ("user u0, item i2 at 2.25, training up to 2.5",)


def test_global_time_leak():
    test = [(0, 3, 2.75), (1, 4, 3.0), (1, 5, 2.5), (1, 6, 9.0)]
    for protocol, severity in ((LEAVE_ONE_OUT, "info"), (RATIO, "warning"), (GIVEN, "warning")):
        found = check_rows(TRAIN, VALID, test, protocol)["global_time_leak"]
        assert (found.count, found.total, found.severity) == (2, 4, severity)
        assert found.examples[0] == "user u1, item 'Fargo' (i5) at 2.5, training up to 3"
        assert ("leave-one-out" in found.message) == (protocol is LEAVE_ONE_OUT)


def test_without_timestamps():
    for protocol, severity in ((LEAVE_ONE_OUT, "warning"), (RANDOM, "info"), (GIVEN, "info")):
        found = check_rows(TRAIN, VALID, TEST, protocol, timed=False)
        missing = found["no_timestamps"]
        assert (missing.count, missing.total, missing.severity) == (9, 9, severity)
        assert not [code for code in found if code.startswith("tied") or "time_leak" in code]
        assert "held_out_before_training" not in found


def test_descriptions():
    items = pl.DataFrame(
        {
            "title": ["Alien", None, "", None, "Emma"],
            "genre": [["horror"], [], None, ["drama"], []],
            "year": [1979, None, None, None, None],
        },
        schema_overrides={"genre": pl.List(pl.String)},
    )
    found = check_rows(TRAIN, VALID, TEST, num_items=5, num_users=2, items=items, users=None)
    rows = found["items_without_description"]
    assert (rows.count, rows.total, rows.severity) == (2, 5, "warning")
    assert rows.examples == ("item i1", "item i2")
    assert "users_without_description" not in found
    missing = found["no_descriptions"]
    assert (missing.count, missing.total) == (1, 2) and "describes the users:" in missing.message
    bare = pl.DataFrame({"id": ["u0", "u1"]}).drop("id")
    notes = {"users_without_description": 1}
    found = check_rows(TRAIN, VALID, TEST, num_users=2, users=bare, notes=notes)
    assert found["users_without_description"].count == 1
    assert found["items_without_description"].count == found["no_descriptions"].count == 0


def test_constant_rating():
    events = events_of(TRAIN)
    parts = Split(*(events_of(rows) for rows in (TRAIN, VALID, TEST)))
    for ratings, count in (([2.5] * 5, 5), ([2.5] * 4 + [3], 0)):
        rated = dataclasses.replace(events, rating=np.array(ratings, np.float32))
        found = check(dataset_of(rated), parts)["constant_rating"]
        assert (found.count, found.total, found.severity) == (count, 5, "info")
        assert "Every rating is 2.5" in found.message
    assert "constant_rating" not in check(dataset_of(events), parts)


def test_concentration_counts_the_top_hundredth():
    # Of 101 items the two most popular make up the top 1 %, rounded up.
    item = np.repeat(np.arange(101), [7, 1, 5, *[1] * 98]).astype(np.int32)
    ids = np.arange(101).astype(str)
    dataset = Dataset("toy", Interactions(np.zeros(len(item), np.int32), item), ids[:1], ids)
    found = by_code(audit.check_dataset(dataset))["popularity_concentration"]
    assert (found.count, found.total, found.severity) == (12, 111, "info")
    assert found.examples == ("item 0: 7 events (6.31 %)", "item 2: 5 events (4.5 %)")


def test_gini():
    assert gini(np.full(7, 3)) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(0.75)
    values = np.array([1, 2, 5])
    differences = np.abs(values[:, None] - values).sum()
    assert gini(values) == pytest.approx(differences / (2 * 3 * values.sum()))
    assert gini(np.zeros(3)) == 0


def test_largest_takes_earlier_ones_in_ties():
    assert largest(np.array([0, 2, 3, 2, 2, 9, 2, 2])) == [5, 2, 1, 3, 4]
    assert largest(np.array([0, 1, 0, 4])) == [3, 1]
    assert largest(np.zeros(9)) == []


def naive_counts(dataset, parts):
    """Every count that depends on the events, by loops over Python lists."""
    train, valid, test = (
        list(zip(e.user.tolist(), e.item.tolist(), e.timestamp.tolist(), strict=True))
        for e in (parts.train, parts.valid, parts.test)
    )
    held_out = valid + test
    of = lambda rows, user: [time for who, _, time in rows if who == user]  # noqa: E731
    every = [of(train + held_out, user) for user in range(dataset.num_users)]
    pairs = lambda rows: {(user, item) for user, item, _ in rows}  # noqa: E731
    at_test, at_any = set(), set()
    for user in range(dataset.num_users):
        before, begin, end = of(train, user), of(valid, user), of(test, user)
        if end and before + begin and max(before + begin) == min(end):
            at_test.add(user)
        if begin and before and max(before) == min(begin):
            at_any.add(user)
    users, items = {u for u, _, _ in train}, {i for _, i, _ in train}
    return {
        "tied_test_event": len(at_test),
        "tied_held_out_border": len(at_any | at_test),
        "tied_timestamps": sum(len(times) - len(set(times)) for times in every),
        "single_event_users": sum(len(times) == 1 for times in every),
        "short_histories": sum(0 < len(times) < 3 for times in every),
        "cold_items": len({i for _, i, _ in held_out} - items),
        "cold_users": len({u for u, _, _ in held_out} - users),
        "pairs_in_training": len(pairs(train) & pairs(held_out)),
        "pairs_in_valid_and_test": len(pairs(valid) & pairs(test)),
        "held_out_before_training": sum(t < max(of(train, u), default=t) for u, _, t in held_out),
        "global_time_leak": sum(t < max(t for _, _, t in train) for _, _, t in test),
        "duplicate_pairs": len(train + held_out) - len(pairs(train + held_out)),
        "sparsity": len(pairs(train + held_out)),
    }


@pytest.mark.parametrize("kind", ["leave_one_out", "ratio", "shuffled"])
def test_counts_against_loops(kind):
    seen: dict[str, int] = {}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = 331
        user = np.minimum(rng.zipf(1.5, n), 61) - 1
        item = rng.integers(0, 7, n) if seed % 2 else np.minimum(rng.zipf(1.4, n), 203) - 1
        time = rng.integers(-9, 40, n) / 4
        if seed == 2:
            time = (time * 4).astype(np.int64)
        events = Interactions(user.astype(np.int32), item.astype(np.int32), time)
        ids = np.arange(203).astype(str)
        dataset = Dataset("random", events, ids[:61], ids)
        if kind == "shuffled":  # parts in no order at all; checked as if they were by time
            cuts = np.split(rng.permutation(n), [200, 260])
            parts = Split(*(events.take(rows) for rows in cuts))
        else:
            parts = split(dataset, {"kind": kind})
        protocol = RATIO if kind == "shuffled" else audit.Protocol(kind)
        found = check(dataset, parts, protocol)
        expected = naive_counts(dataset, parts)
        assert {code: found[code].count for code in expected} == expected
        if kind != "shuffled":
            assert found["tied_test_event"].count == parts.tied_users
        for code, finding in found.items():
            seen[code] = seen.get(code, 0) + finding.count
            assert finding.severity in audit.SEVERITIES and finding.count <= finding.total
            assert len(finding.examples) <= MAX_EXAMPLES
            assert finding.message.endswith(".") and finding.advice.endswith((".", ")"))
    ties = {"tied_test_event", "tied_held_out_border"}
    untried = ties if kind == "shuffled" else {"held_out_before_training", "cold_users"}
    assert {code for code, count in seen.items() if code in expected and not count} == untried


def test_findings_are_sorted_by_severity():
    one = lambda code, severity, count=1: audit.Finding(code, severity, count, 9, "m", "a")  # noqa: E731
    outcomes = [
        one("a", "info"),
        None,
        one("b", "error"),
        one("c", "warning", 0),
        one("d", "error"),
    ]
    found = audit.collect([*outcomes, one("e", "warning")])
    assert [finding.code for finding in found.findings] == ["b", "d", "e", "a"]
    assert found.passed == ("c",)
    assert found.record()["count"] == {"error": 2, "warning": 1, "info": 1}


def config_of(**data) -> Any:
    config = defaults.base()
    for key, value in data.items():
        config.data[key] = value
    return config


def audited(config, path):
    status = audit_command.audit(config, output=str(path))
    record = json.loads(path.read_text())
    assert set(record) == {"data", "count", "findings", "passed"}
    return status, record, {finding["code"]: finding for finding in record["findings"]}


def test_generated_world_is_clean(tmp_path, capsys):
    status, record, found = audited(config_of(), tmp_path / "world.json")
    assert status == 0
    assert record["count"] == {"error": 0, "warning": 0, "info": 3}
    assert set(found) == PROPERTIES | {"global_time_leak"}
    assert record["data"]["split"] == "leave_one_out by time"
    assert record["data"]["parts"]["test"] == record["data"]["users"] == 1000
    out = capsys.readouterr().out
    assert "info: global_time_leak, 998 of 1,000 (99.8 %)" in out
    assert "0 errors, 0 warnings, 3 info" in out


def test_coarse_world_ties():
    config = config_of()
    config.data.world.num_users, config.data.world.time_resolution = 50, 86400 * 30
    data = run_data.prepare(config.data)
    found = check(data.dataset, data.split, LEAVE_ONE_OUT)
    assert found["tied_test_event"].count == data.split.tied_users > 0
    assert found["tied_test_event"].severity == "warning"


def write_csv(path, rows):
    lines = [f"{user},{item},{time}" for user, item, time in rows]
    path.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")


def test_dropped_duplicates_are_shown_by_example(tmp_path, capsys):
    rows = [("ann", f"i{k}", 1.5 * k) for k in range(4)] + [("ann", "i1", 0.25)]
    write_csv(tmp_path / "events.csv", rows)
    config = config_of(format="csv", path=str(tmp_path / "events.csv"))
    status, _, found = audited(config, tmp_path / "audit.json")
    assert status == 0
    assert (found["duplicate_pairs"]["count"], found["duplicate_pairs"]["total"]) == (1, 5)
    assert found["duplicate_pairs"]["examples"] == ["user ann, item i1: 2 times"]
    out = capsys.readouterr().out
    assert "info: duplicate_pairs, 1 of 5 (20 %)\n" in out
    assert "    - user ann, item i1: 2 times\n" in out
    config.data.filters.duplicates = "keep"
    _, _, found = audited(config, tmp_path / "audit.json")
    assert found["duplicate_pairs"]["severity"] == "warning"


def test_leak_is_an_error(tmp_path, capsys):
    for part, rows in (
        ("train", [("ann", "a", 1), ("bob", "b", 2)]),
        ("valid", [("ann", "b", 3)]),
        ("test", [("ann", "a", 4)]),
    ):
        write_csv(tmp_path / f"{part}.csv", rows)
    config = config_of(format="csv", path=str(tmp_path))
    config.data.split.kind = "given"
    status, record, found = audited(config, tmp_path / "out" / "audit.json")
    assert status == 1 and record["count"]["error"] == 1
    assert record["findings"][0]["code"] == "pairs_in_training"
    assert found["pairs_in_training"]["examples"] == ["user ann, item a"]
    out = capsys.readouterr().out
    assert out.index("error: pairs_in_training, 1 of 2 (50 %)") < out.index("info: ")
    assert audit_command.audit(config) == 1


def test_wrong_output_name_stops_before_work(tmp_path):
    config = config_of(format="csv", path="nowhere.csv")
    with pytest.raises(UserError, match=r"--output=.*audit\.txt: the name must end in \.json"):
        audit_command.audit(config, output=str(tmp_path / "audit.txt"))
    assert not list(tmp_path.iterdir())


@needs_shared_data
def test_ml100k(tmp_path):
    config = config_of(format="atomic", path=str(SHARED / "ml-100k"))
    status, record, found = audited(config, tmp_path / "audit.json")
    assert status == 0 and record["count"] == {"error": 0, "warning": 2, "info": 5}
    assert found["tied_test_event"]["count"] == 415 and found["tied_test_event"]["total"] == 943
    # The same counts from the file itself, without the readers.
    lines = (SHARED / "ml-100k" / "ml-100k.inter").read_text().splitlines()[1:]
    times: dict[str, list[float]] = {}
    for user, _, _, time in (line.split("\t") for line in lines):
        times.setdefault(user, []).append(float(time))
    last = [sorted(of_user)[-3:] for of_user in times.values()]
    assert sum(c == b for _, b, c in last) == 415
    assert found["tied_held_out_border"]["count"] == sum(b in (a, c) for a, b, c in last)
    ties = sum(len(of_user) - len(set(of_user)) for of_user in times.values())
    assert found["tied_timestamps"]["count"] == ties
    assert found["popularity_concentration"]["examples"][0].startswith("item 'Star Wars' (50): 583")


@needs_shared_data
def test_google_maps_parts_do_not_overlap():
    dataset = load({"format": "csv", "path": str(SHARED / "google-maps")})
    found = check(dataset, split(dataset, {"kind": "given"}))
    assert found["users_without_test_event"].count == 22582 - 17902
    assert not any(found[code].count for code in ("cold_users", "cold_items", "pairs_in_training"))
