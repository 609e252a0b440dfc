"""Reading atomic files, CSV and Parquet: values, rows, descriptions and parts."""

import datetime
import gzip
import re

import numpy as np
import polars as pl
import pytest
from ml_collections import ConfigDict

from tests.tiny import SHARED, needs_shared_data
from xrec_jax.data.load import load
from xrec_jax.data.readers.columns import order_ids

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def atomic(tmp_path, inter, **others):
    """Writes a data set `d` and returns its config."""
    for kind, text in {"inter": inter, **others}.items():
        write(tmp_path / "d" / f"d.{kind}", text)
    return ConfigDict({"format": "atomic", "path": str(tmp_path / "d")})


def decoded(dataset):
    """Returns the events as tuples of the file's own ids."""
    events = dataset.interactions
    return list(zip(dataset.user_ids[events.user], dataset.item_ids[events.item], strict=True))


def test_atomic_values_and_rows_in_file_order(tmp_path):
    config = atomic(
        tmp_path, INTER + '10\tb"\t3.5\t1700000000000000001\n9\t"a"\t-1\t-5\n10\tä c\t+2e0\t7\n'
    )
    dataset = load(config)
    assert dataset.name == "d" and dataset.splits is None
    assert dataset.user_ids.tolist() == ["9", "10"]
    assert dataset.item_ids.tolist() == ['"a"', 'b"', "ä c"]
    events = dataset.interactions
    assert events.user.dtype == events.item.dtype == np.int32
    assert events.user.tolist() == [1, 0, 1]
    assert events.item.tolist() == [1, 0, 2]
    assert events.timestamp is not None and events.rating is not None
    assert events.timestamp.dtype == np.int64
    # float64 has no room for this value.
    assert events.timestamp.tolist() == [1700000000000000001, -5, 7]
    assert events.rating.dtype == np.float32
    assert events.rating.tolist() == [3.5, -1.0, 2.0]
    assert dataset.notes == {"duplicates_dropped": 0}


def test_ids_are_text(tmp_path):
    dataset = load(atomic(tmp_path, INTER + "007\t1\t1\t1\n7\t1\t1\t2\n07\t01\t1\t3\n"))
    assert dataset.user_ids.tolist() == ["007", "07", "7"]
    assert dataset.item_ids.tolist() == ["01", "1"]


@pytest.mark.parametrize(
    "ids, expected",
    [
        (["10", "9", "-2", "-10", "0"], ["-10", "-2", "0", "9", "10"]),
        (["1" + "0" * 40, "9" * 40, "3"], ["3", "9" * 40, "1" + "0" * 40]),
        (["10", "9", "+1"], ["+1", "10", "9"]),
        (["10", "9", "-0"], ["-0", "10", "9"]),
        (["10", "9", "1.0"], ["1.0", "10", "9"]),
        (["b", "a", "é", "Z"], ["Z", "a", "b", "é"]),
    ],
)
def test_order_of_ids(ids, expected):
    assert order_ids(pl.Series(ids)).to_list() == expected


def test_rows_do_not_depend_on_the_order_of_events(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{u}\t{i}\t1\t{t}" for t, (u, i) in enumerate(rng.integers(-40, 40, (301, 2)))]
    tables = []
    for seed in range(2):
        shuffled = np.random.default_rng(seed).permutation(lines)
        config = atomic(tmp_path / str(seed), INTER + "\n".join(shuffled))
        config.filters = {"duplicates": "keep"}
        dataset = load(config)
        assert decoded(dataset) == [tuple(line.split("\t")[:2]) for line in shuffled]
        tables.append(dataset)
    assert tables[0].user_ids.tolist() == tables[1].user_ids.tolist()
    assert tables[0].user_ids.tolist() == sorted(tables[0].user_ids.tolist(), key=int)


@pytest.mark.parametrize(
    "texts, expected, dtype",
    [
        (["1", "2"], [1, 2], np.int64),
        (["1.0", "2e1"], [1, 20], np.int64),
        (["1", "2.5"], [1.0, 2.5], np.float64),
        (["2.5", "1"], [2.5, 1.0], np.float64),
        (["1970-01-02", "1970-01-01"], [86400_000_000, 0], np.int64),
        (["1970-01-01T00:00:01.000002", "1970-01-01 00:01"], [1_000_002, 60_000_000], np.int64),
        (["1970-01-01T02:00:00+02:00", "1970-01-01T00:00:00Z"], [0, 0], np.int64),
    ],
)
def test_timestamps(tmp_path, texts, expected, dtype):
    path = write(tmp_path / "a.csv", "user,item,timestamp\n" + f"1,2,{texts[0]}\n1,3,{texts[1]}\n")
    timestamp = load({"format": "csv", "path": path}).interactions.timestamp
    assert timestamp is not None
    assert timestamp.dtype == dtype
    assert timestamp.tolist() == expected


def test_descriptions_follow_the_ids(tmp_path):
    dataset = load(
        atomic(
            tmp_path,
            INTER + "2\tx\t1\t1\n1\ty\t1\t2\n3\ty\t1\t3\n",
            user="user_id:token\tage:float\tzip:token\n3\t30.5\t01002\n9\t1\t2\n2\t\t\n",
            item="title:token_seq\titem_id:token\tprice:float_seq\n"
            'The "y"  one\ty\t1.5 -2\n\tx\t\nz\tz\t3\n',
        )
    )
    users, items = dataset.users, dataset.items
    assert users is not None and items is not None
    assert dataset.user_ids.tolist() == ["1", "2", "3"]
    assert users.schema == {"age": pl.Float64, "zip": pl.String}
    assert users.rows() == [(None, None), (None, None), (30.5, "01002")]
    assert items.schema == {"title": pl.List(pl.String), "price": pl.List(pl.Float64)}
    assert items.rows() == [([], []), (["The", '"y"', "one"], [1.5, -2.0])]
    assert dataset.notes == {
        "duplicates_dropped": 0,
        "users_without_interactions": 1,
        "users_without_description": 1,
        "items_without_interactions": 1,
        "items_without_description": 0,
    }


def test_descriptions_are_counted_after_filtering(tmp_path):
    config = atomic(
        tmp_path, INTER + "1\ta\t5\t1\n2\tb\t1\t2\n", item="item_id:token\tt:token\nb\tB\na\tA\n"
    )
    config.filters = {"min_rating": 2}
    dataset = load(config)
    assert dataset.item_ids.tolist() == ["a"] and dataset.user_ids.tolist() == ["1"]
    assert dataset.items is not None and dataset.items.rows() == [("A",)]
    assert dataset.notes["items_without_interactions"] == 1
    assert dataset.notes["items_without_description"] == 0


def test_csv_quotes_lines_columns_and_tables(tmp_path):
    path = write(
        tmp_path / "e.csv.gz",
        '\ufeffwho,"what, then",review,stars\r\n"a","x","two\nlines, ""quoted""",4\r\nb,y,,5\r\n',
    )
    users = write(tmp_path / "u.csv", "zip,who,n,price,name\n01002,b,3,1.50,\n7,a,-4,2,N\n")
    columns = {"user": "who", "item": "what, then", "rating": "stars", "timestamp": ""}
    dataset = load(
        ConfigDict({"format": "csv", "path": str(path), "columns": columns, "users": str(users)})
    )
    assert dataset.name == "e"
    assert decoded(dataset) == [("a", "x"), ("b", "y")]
    assert dataset.interactions.timestamp is None
    assert dataset.interactions.rating is not None
    assert dataset.interactions.rating.tolist() == [4.0, 5.0]
    assert dataset.users is not None
    assert dataset.users.schema == {
        "zip": pl.String,
        "n": pl.Int64,
        "price": pl.String,
        "name": pl.String,
    }
    assert dataset.users.rows() == [("7", -4, "2", "N"), ("01002", 3, "1.50", None)]


def test_tab_separated_csv_and_name(tmp_path):
    path = write(tmp_path / "e.tsv", "item\tuser\n1\t2\n3\t4")
    dataset = load({"format": "csv", "path": path, "name": "mine"})
    assert dataset.name == "mine"
    assert decoded(dataset) == [("2", "1"), ("4", "3")]


def test_parquet_types(tmp_path):
    path = tmp_path / "e.parquet"
    moments = [datetime.datetime(1970, 1, 1, 0, 0, 1), datetime.datetime(1970, 1, 1)]
    frame = pl.DataFrame({"user_id": [10, 9], "item_id": ["a", "b"], "timestamp": moments})
    frame.with_columns(
        rating=pl.Series([1, 2], dtype=pl.UInt8),
        timestamp=pl.col("timestamp").cast(pl.Datetime("ns")),
    ).write_parquet(path)
    items = tmp_path / "i.parquet"
    pl.DataFrame({"item_id": ["b"], "tags": [["x", "y"]]}).write_parquet(items)
    dataset = load({"format": "parquet", "path": path, "items": items})
    assert decoded(dataset) == [("10", "a"), ("9", "b")]
    assert dataset.interactions.timestamp is not None
    assert dataset.interactions.timestamp.tolist() == [1_000_000, 0]
    assert dataset.interactions.rating is not None
    assert dataset.interactions.rating.dtype == np.float32
    assert dataset.items is not None
    assert dataset.items["tags"].to_list() == [None, ["x", "y"]]

    zoned = frame.with_columns(pl.col("timestamp").dt.replace_time_zone("Europe/Berlin"))
    zoned.write_parquet(path)
    timestamp = load({"format": "parquet", "path": path}).interactions.timestamp
    assert timestamp is not None
    assert timestamp.tolist() == [-3_599_000_000, -3_600_000_000]


@pytest.mark.parametrize("form", ["atomic", "csv", "parquet"])
def test_given_parts(tmp_path, form):
    rows = {
        "train": [("2", "x"), ("1", "y")],
        "valid": [("1", "x")],
        "test": [("3", "y"), ("2", "x")],
    }
    for part, pairs in rows.items():
        if form == "atomic":
            lines = "".join(f"{u}\t{i}\n" for u, i in pairs)
            write(tmp_path / "g" / f"g.{part}.inter", "user_id:token\titem_id:token\n" + lines)
        elif form == "csv":
            lines = "".join(f"{u},{i}\n" for u, i in pairs)
            write(tmp_path / "g" / f"{part}.csv.gz", "user,item\n" + lines)
        else:
            (tmp_path / "g").mkdir(exist_ok=True)
            frame = pl.DataFrame(pairs, schema=["user", "item"], orient="row")
            frame.write_parquet(tmp_path / "g" / f"{part}.parquet")
    dataset = load({"format": form, "path": tmp_path / "g"})
    assert dataset.name == "g"
    assert decoded(dataset) == [pair for pairs in rows.values() for pair in pairs]
    assert dataset.splits is not None and list(dataset.splits) == ["train", "valid", "test"]
    for part, events in dataset.splits.items():
        ids = zip(dataset.user_ids[events.user], dataset.item_ids[events.item], strict=True)
        assert list(ids) == rows[part]
    assert dataset.notes["pairs_in_several_parts"] == 1
    # The same pair in two parts is an overlap to report, not a duplicate to drop.
    assert dataset.notes["duplicates_dropped"] == 0


def test_filters_renumber_rows_and_keep_parts(tmp_path):
    rng = np.random.default_rng(5)
    kept = {}
    for part, size in (("train", 203), ("valid", 57), ("test", 61)):
        rows = [tuple(map(str, row)) for row in rng.integers(0, [40, 30, 6], (size, 3))]
        lines = "".join(f"{u},{i},{r}\n" for u, i, r in rows)
        write(tmp_path / f"{part}.csv", "user,item,rating\n" + lines)
        kept[part] = [(u, i) for u, i, r in rows if int(r) >= 4]
    filters = {"min_rating": 4, "duplicates": "keep"}
    dataset = load({"format": "csv", "path": tmp_path, "filters": filters})
    assert decoded(dataset) == [pair for pairs in kept.values() for pair in pairs]
    users = {user for user, _ in decoded(dataset)}
    items = {item for _, item in decoded(dataset)}
    assert dataset.user_ids.tolist() == sorted(users, key=int) and len(users) < 40
    assert dataset.item_ids.tolist() == sorted(items, key=int)
    assert dataset.splits is not None
    for part, events in dataset.splits.items():
        ids = zip(dataset.user_ids[events.user], dataset.item_ids[events.item], strict=True)
        assert list(ids) == kept[part]
        assert events.rating is not None and (events.rating >= 4).all()
    overlap = [set(pairs) for pairs in kept.values()]
    several = (overlap[0] & overlap[1]) | (overlap[0] & overlap[2]) | (overlap[1] & overlap[2])
    assert dataset.notes["pairs_in_several_parts"] == len(several) > 0


def test_parquet_parts_of_several_clocks(tmp_path):
    """Dates, naive and zoned times of any unit are microseconds of one clock."""
    moment = pl.Series([datetime.datetime(1970, 1, 1, 1)])
    for part, times in (
        ("train", moment.cast(pl.Datetime("ns"))),
        (
            "valid",
            moment.dt.replace_time_zone("Europe/Berlin").cast(pl.Datetime("ms", "Europe/Berlin")),
        ),
        ("test", moment.cast(pl.Date)),
    ):
        frame = pl.DataFrame({"user": [1], "item": [2], "timestamp": times})
        frame.write_parquet(tmp_path / f"{part}.parquet")
    timestamp = load({"format": "parquet", "path": tmp_path}).interactions.timestamp
    assert timestamp is not None and timestamp.tolist() == [3_600_000_000, 0, 0]


def movielens_like(path):
    """Writes a set shaped like MovieLens-100K, the twin of the test on the real one."""
    rng = np.random.default_rng(1)
    rows = [f"{u}\t{i}\t{r}\t{881250949 + t}" for u, i, r, t in rng.integers(1, 90, (997, 4))]
    write(path / "ml.inter", INTER + "\n".join(rows) + "\n")
    users = [f"{u}\t{u % 60}\tM" for u in range(1, 90)]
    write(path / "ml.user", "user_id:token\tage:token\tgender:token\n" + "\n".join(users) + "\n")
    items = [f"{i}\tTitle {i}\t1995\tDrama War" for i in range(1, 90)]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    write(path / "ml.item", header + "\n".join(items) + "\n")


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=needs_shared_data)])
def test_movielens_equals_a_line_by_line_reading(tmp_path, real):
    directory = SHARED / "ml-100k" if real else tmp_path
    if not real:
        movielens_like(tmp_path)
    dataset = load({"format": "atomic", "path": directory, "filters": {"duplicates": "keep"}})
    if real:
        assert (len(dataset.interactions), dataset.num_users, dataset.num_items) == (
            100000,
            943,
            1682,
        )

    lines = (directory / f"{dataset.name}.inter").read_text().splitlines()[1:]
    expected = [re.split("\t", line) for line in lines]
    events = dataset.interactions
    assert decoded(dataset) == [(user, item) for user, item, _, _ in expected]
    assert events.rating is not None and events.timestamp is not None
    assert events.rating.tolist() == [float(rating) for _, _, rating, _ in expected]
    assert events.timestamp.tolist() == [int(time) for _, _, _, time in expected]
    lines = (directory / f"{dataset.name}.item").read_text().splitlines()[1:]
    titles = {line.split("\t")[0]: line.split("\t")[1].split() for line in lines}
    assert dataset.items is not None
    assert dataset.items["movie_title"].to_list() == [titles[item] for item in dataset.item_ids]


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=needs_shared_data)])
def test_google_maps_parts(tmp_path, real):
    directory = SHARED / "google-maps" if real else tmp_path
    if not real:
        rng = np.random.default_rng(2)
        for part, size in (("train", 301), ("valid", 41), ("test", 43)):
            rows = "".join(f"{u},{i}\n" for u, i in rng.integers(0, 50, (size, 2)))
            write(tmp_path / f"{part}.csv.gz", "user,item\n" + rows)
    dataset = load({"format": "csv", "path": directory, "filters": {"duplicates": "keep"}})
    if real:
        assert (dataset.num_users, dataset.num_items) == (22582, 16557)
    assert dataset.splits is not None
    for part, events in dataset.splits.items():
        lines = gzip.decompress((directory / f"{part}.csv.gz").read_bytes()).decode().split()[1:]
        users, items = dataset.user_ids[events.user], dataset.item_ids[events.item]
        assert [f"{u},{i}" for u, i in zip(users, items, strict=True)] == lines
    assert len(dataset.interactions) == sum(map(len, dataset.splits.values()))
