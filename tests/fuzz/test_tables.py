"""Damaged tables: CSV, Parquet and atomic files, of events, users and items."""

import csv
import datetime
import decimal
import gzip
import io

import polars as pl
import pytest

from tests.fuzz.mutate import survives
from xrec_jax.data.load import load

pytestmark = pytest.mark.slow
csv.field_size_limit(1 << 24)

EVENTS = (
    "user_id,item_id,rating,timestamp,note\n"
    'ann,a,3.5,1700000000000000001,"two\nlines, ""quoted"""\n'
    "ben,b,4,5,plain\n007,c,-1e0,7,\nann,b,2,8,x\n"
)
ITEMS = (
    'item_id,title,year,price\na,"The ""A"", part 1",2001,1.5\nb,B,,2\nc,Cé,1234567890123456789,3\n'
)
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    'ann\ta\t3.5\t1700000000000000001\nben\tb"\t4\t5\nann\tb\t1\t8\n'
)
ITEM_COLUMNS = "item_id:token\ttitle:token_seq\tyear:float\tv:float_seq\n"
ITEM = ITEM_COLUMNS + 'a\tThe A\t2001\t1 2\nb"\tB\t\t\nb\tB\t1\t3\n'
FRAME = pl.DataFrame(
    {
        "user_id": ["ann", "ben", "ann", "cat"],
        "item_id": ["a", "b", "b", "c"],
        "rating": [3.5, 4.0, 2.0, 1.0],
        "timestamp": [5, 6, 7, 8],
    }
)


def parquet(frame):
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def whole(dataset):
    """What was read is consistent with itself."""
    events = dataset.interactions
    assert len(events) and len(events.user) == len(events.item)
    assert events.user.max() < len(dataset.user_ids) and events.item.max() < len(dataset.item_ids)
    assert len(set(dataset.user_ids)) == len(dataset.user_ids)
    if dataset.items is not None:
        assert len(dataset.items) == len(dataset.item_ids)


def pairs(path):
    """The pairs of a CSV file as the csv module reads them."""
    with open(path, newline="\n", encoding="utf-8-sig", errors="replace") as file:
        header, *rows = csv.reader(file)
    if len(header) == 1 and "\t" in header[0]:
        with open(path, newline="\n", encoding="utf-8-sig", errors="replace") as file:
            header, *rows = csv.reader(file, delimiter="\t")
    user = next(header.index(name) for name in ("user_id", "user") if name in header)
    item = next(header.index(name) for name in ("item_id", "item") if name in header)
    return {(row[user].rstrip("\r"), row[item].rstrip("\r")) for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_csv_events(tmp_path, seed):
    path = tmp_path / "e.csv"

    def check(dataset):
        whole(dataset)
        events = dataset.interactions
        users, items = dataset.user_ids[events.user], dataset.item_ids[events.item]
        assert pairs(path) == set(zip(users.tolist(), items.tolist(), strict=True))

    survives(
        lambda path: load({"format": "csv", "path": str(path)}),
        EVENTS.encode(),
        path,
        seed=seed,
        check=check,
    )


def test_gzip_events(tmp_path):
    survives(
        lambda path: load({"format": "csv", "path": str(path)}),
        gzip.compress(EVENTS.encode()),
        tmp_path / "e.csv.gz",
        check=whole,
    )


@pytest.mark.parametrize("seed", range(2))
def test_csv_items(tmp_path, seed):
    events = tmp_path / "e.csv"
    events.write_text(EVENTS)
    survives(
        lambda path: load({"format": "csv", "path": str(events), "items": str(path)}),
        ITEMS.encode(),
        tmp_path / "i.csv",
        seed=seed,
        check=whole,
    )


@pytest.mark.parametrize("seed", range(2))
def test_atomic_events(tmp_path, seed):
    survives(
        lambda path: load({"format": "atomic", "path": str(path.parent)}),
        INTER.encode(),
        tmp_path / "d.inter",
        seed=seed,
        check=whole,
    )


def test_atomic_items(tmp_path):
    (tmp_path / "d.inter").write_text(INTER)
    survives(
        lambda path: load({"format": "atomic", "path": str(path.parent)}),
        ITEM.encode(),
        tmp_path / "d.item",
        check=whole,
    )


@pytest.mark.parametrize("seed", range(3))
def test_parquet_events(tmp_path, seed):
    survives(
        lambda path: load({"format": "parquet", "path": str(path)}),
        parquet(FRAME),
        tmp_path / "e.parquet",
        seed=seed,
        check=whole,
    )


ABOUT = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["The A", None, "C"],
        "released": [datetime.date(2020, 1, 1), None, datetime.date(1, 1, 1)],
        "seen": [datetime.datetime(2020, 1, 1, 10), None, datetime.datetime(2020, 1, 2)],
        "price": [decimal.Decimal("1.50"), decimal.Decimal("2.25"), None],
        "tags": [["x", "y"], [], None],
        "raw": [b"x", b"y", None],
    }
)


@pytest.mark.parametrize("seed", range(2))
def test_parquet_items(tmp_path, seed):
    events = tmp_path / "e.parquet"
    FRAME.write_parquet(events)
    survives(
        lambda path: load({"format": "parquet", "path": str(events), "items": str(path)}),
        parquet(ABOUT),
        tmp_path / "i.parquet",
        seed=seed,
        check=whole,
    )
