"""A run on check-ins: split at one moment, every held-out event ranked by itself."""

import collections
import csv
import math

import jax
import numpy as np
import pytest

from tests import runs, tiny
from xrec_jax import defaults
from xrec_jax.api import run
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import prepare
from xrec_jax.inference.recommendations import recommend_records
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.training.recommender import RecommenderTask

START, CUT, END = 1_350_000_000, 1_350_800_000, 1_351_000_000
PLACES, PEOPLE = 23, 14


def events(changed=False):
    """Visits of people with favourite places; `changed` after the cut."""
    rng = np.random.default_rng(3)
    # Every place is visited early, so that the catalogue does not depend on what comes later.
    rows = [["u00", f"p{place:02}", START + 60 * place] for place in range(PLACES)]
    for user in range(PEOPLE):
        favourites = rng.integers(0, PLACES, 3)
        for _ in range(rng.integers(12, 30)):
            place = rng.choice(favourites) if rng.random() < 0.7 else rng.integers(0, PLACES)
            rows.append([f"u{user:02}", f"p{place:02}", int(rng.integers(START, END))])
    if changed:
        for row in rows:
            if row[2] >= CUT:
                row[1] = f"p{(int(row[1][1:]) * 7 + 5) % PLACES:02}"
    return rows


def write(folder, rows):
    with (folder / "events.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user", "item", "timestamp"], *rows])
    with (folder / "places.csv").open("w", newline="") as file:
        places = [
            [
                f"p{n:02}",
                f"Place {n}",
                ["cafe", "gym", "park"][n % 3],
                40.7 + n / 500,
                -74 + n / 300,
            ]
            for n in range(PLACES)
        ]
        csv.writer(file).writerows([["item", "name", "category", "latitude", "longitude"], *places])


def config(folder):
    made = defaults.base()
    made.name, made.stages = "check_ins", ("recommend", "report")
    made.data.update(
        dict(format="csv", path=str(folder / "events.csv"), items=str(folder / "places.csv"))
    )
    made.data.filters.duplicates = "keep"
    made.data.split.update(dict(kind="time", at=str(CUT), valid_at="0.85"))
    made.ranking.update(dict(ks=(1, 3, 10), resamples=20, rows="event", mask_seen=False))
    made.recommend.frequency = defaults.system("frequency")
    made.recommend.next_place = defaults.system(
        "next_place",
        dim=8,
        layers=1,
        inner=16,
        length=12,
        category="category",
        latitude="latitude",
        longitude="longitude",
        train=dict(batch_size=8, epochs=2, learning_rate=1e-2),
    )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, whose events differ after the cut only."""

    def make(folder):
        for name, changed in (("first", False), ("other", True)):
            (folder / name).mkdir()
            write(folder / name, events(changed))
            with runs.one_device():
                run.run(config(folder / name), folder / name / "run")

    return runs.once(tmp_path_factory, "check_ins", make)


def naive_frequency():
    """NDCG@10 and the first hit of the user's own most frequent place, event by event."""
    rows = sorted(enumerate(events()), key=lambda row: (row[1][0], row[1][2], row[0]))
    known = [row for _, row in rows if row[2] < CUT]
    cut = sorted(row[2] for row in known)[round(0.85 * len(known))]
    popular = collections.Counter(row[1] for row in known if row[2] < cut)
    history, found = collections.defaultdict(list), []
    for _, (user, place, time) in rows:
        past = history[user]
        if time >= CUT:

            def key(candidate, past=past):
                latest = max((n for n, p in enumerate(past) if p == candidate), default=-1)
                return past.count(candidate), latest, popular[candidate]

            own = key(place)
            rank = sum(key(f"p{n:02}") >= own for n in range(PLACES))
            found.append((user, place in past, rank))
        past.append(place)
    return found


def test_figures_of_the_frequency_baseline(folder):
    figures = files.read_json(folder / "first" / "run" / "evaluation.json")["recommend"]
    rows = naive_frequency()
    assert len({user for user, _, _ in rows}) < len(rows) and sum(r for _, r, _ in rows) > 0
    kinds = {
        "test": rows,
        "test_repeat": [r for r in rows if r[1]],
        "test_new": [r for r in rows if not r[1]],
    }
    for group, some in kinds.items():
        gains = [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for _, _, rank in some]
        found = figures["frequency"][f"{group}/ndcg@10"]
        assert found["value"] == pytest.approx(np.mean(gains), rel=1e-9)
        assert found["count"] == len({user for user, _, _ in some})
        first = np.mean([rank == 1 for _, _, rank in some])
        assert figures["frequency"][f"{group}/hit@1"]["value"] == pytest.approx(first)
    assert not any("unmasked" in name for name in figures["frequency"])
    page = (folder / "first" / "run" / "report.html").read_text(encoding="utf-8")
    assert "NDCG@10, repeats" in page and "NDCG@10, new items" in page
    # What the page says of the protocol is this one's, and repeats are no leak.
    assert "is ranked by itself" in page and "those that the user knows included" in page
    assert f"time at {CUT}" in page
    found = {
        finding["code"]: finding
        for finding in files.read_json(folder / "first" / "run" / "audit.json")["findings"]
    }
    for code in ("pairs_in_training", "pairs_in_valid_and_test"):
        assert found[code]["severity"] == "info" and found[code]["count"] > 0
        assert "chose the item again" in found[code]["message"]


def test_repeats_are_misses_where_they_are_masked(folder, tmp_path):
    made = config(folder / "first")
    made.ranking.mask_seen = True
    del made.recommend.next_place
    with runs.one_device():
        run.run(made, tmp_path / "run")
    figures = files.read_json(tmp_path / "run" / "evaluation.json")["recommend"]["frequency"]
    share = np.mean([not repeat for _, repeat, _ in naive_frequency()])
    new = figures["test_new/ndcg@10"]["value"]
    assert 0 < share < 1 and new > 0
    assert figures["test/ndcg@10"]["value"] == pytest.approx(share * new, rel=1e-9)
    assert not any("_repeat" in name for name in figures)


def test_nothing_after_the_cut_is_learned_from(folder):
    """Other events after the cut: the same parameters and validation figures, to the last bit."""
    restored = []
    for name in ("first", "other"):
        made, rundir = config(folder / name), RunDir(folder / name / "run")
        with runs.one_device():
            mesh = tiny.mesh(1)
            with use_mesh(mesh):
                task = RecommenderTask(
                    made, "next_place", data=prepare(made.data), mesh=mesh, rundir=rundir
                )
                restored.append(jax.device_get(task.restore(0)))
    jax.tree.map(np.testing.assert_array_equal, *restored)
    tables = [files.read_json(folder / n / "run" / "evaluation.json") for n in ("first", "other")]
    for system in ("frequency", "next_place"):
        one, other = (table["recommend"][system] for table in tables)
        valid = [name for name in one if name.startswith("valid")]
        assert valid and all(one[name] == other[name] for name in valid)
        assert one["test/ndcg@10"] != other["test/ndcg@10"]


def test_recommendations_hold_known_places(folder):
    made = config(folder / "first")
    data = prepare(made.data)
    with runs.one_device():
        records = list(
            recommend_records(
                made,
                data,
                RunDir(folder / "first" / "run"),
                tiny.mesh(1),
                users=np.arange(PEOPLE),
                top_k=1,
                system="frequency",
            )
        )
    visits = collections.defaultdict(collections.Counter)
    for user, place, _ in events():
        visits[user][place] += 1
    assert len(records) == PEOPLE
    for record in records:
        counts = visits[record["user"]]
        assert counts[record["item"]] == max(counts.values())


def test_one_user_is_one_draw(folder):
    """Intervals draw users, not events."""
    values = files.read_json(folder / "first" / "run" / "evaluation.json")["recommend"]
    estimate = values["frequency"]["test/hit@1"]
    assert estimate["count"] <= PEOPLE and estimate["low"] < estimate["value"] < estimate["high"]
