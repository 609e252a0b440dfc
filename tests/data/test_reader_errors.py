"""Every mistake in a file or a data config ends in one line that names it and the way out."""

import gzip

import numpy as np
import polars as pl
import pytest
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.data.load import load

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


def fails(config, *fragments):
    """Loading must end in one line that holds every fragment."""
    with pytest.raises(UserError) as caught:
        load(config)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


BAD_ATOMIC = {
    "number": (INTER + "1\t2\t3\t4\n1\t3\tbad\t4\n", ["line 3, column 'rating'", "'bad' is not a"]),
    "time": (INTER + "1\t2\t3\t4\n1\t3\t3\t4x\n", ["line 3, column 'timestamp'", "'4x'"]),
    "nan": (
        INTER + "1\t2\t3\tnan\n",
        ["line 2, column 'timestamp'", "'nan' is not a finite number"],
    ),
    "inf": (INTER + "1\t2\t3\t4\n1\t2\t-inf\t4\n", ["line 3, column 'rating'", "'-inf'"]),
    "huge": (INTER + "1\t2\t3\t4\n1\t2\t1e39\t4\n", ["line 3, column 'rating'", "'1e39'"]),
    "no value": (INTER + "1\t2\t\t4\n", ["line 2, column 'rating'", "missing"]),
    "no time": (INTER + "1\t2\t1\t4\n1\t2\t1\t\n", ["line 3, column 'timestamp'", "missing"]),
    "no user": (INTER + "1\t2\t3\t4\n\t2\t3\t4\n", ["line 3, column 'user_id'", "id is empty"]),
    "blank item": (INTER + "1\t  \t3\t4\n", ["line 2, column 'item_id'", "id is empty"]),
    "first fault": (INTER + "1\t2\tx\t4\n\t2\t3\t4\n", ["line 2, column 'rating'"]),
    "short": (INTER + "1\t2\t3\t4\n1\t2\t3\n", ["line 3 has 3 fields, the header has 4"]),
    "long": (INTER + "1\t2\t3\t4\t5\n", ["line 2 has 5 fields"]),
    "shifted": (INTER + "1\t2\t3\n1\t2\t3\t4\t5\n", ["line 2 has 3 fields"]),
    "blank": (INTER + "1\t2\t3\t4\n\n1\t3\t3\t4\n", ["line 3 is blank"]),
    "empty": ("", ["d.inter", "empty"]),
    "header only": (INTER, ["no events"]),
    "no type": (
        "user_id:token\titem_id\n1\t2\n",
        ["line 1", "'item_id'", "name:type", "token_seq"],
    ),
    "type": ("user_id:token\titem_id:tokn\n1\t2\n", ["'item_id'", "did you mean 'token'"]),
    "twice": ("user_id:token\titem_id:token\tuser_id:float\n1\t2\t3\n", ["'user_id'", "twice"]),
    "role type": ("user_id:token_seq\titem_id:token\n1\t2\n", ["'user_id' is token_seq"]),
    "column": (
        "user_idd:token\titem_id:token\n1\t2\n",
        ["columns.user", "did you mean 'user_idd'"],
    ),
    "commas": (INTER.replace("\t", ",") + "1,2,3,4\n", ["line 1: one column", "with tabs"]),
    "utf-8": (INTER.encode() + b"1\t2\t3\t4\n1\t\xff\t3\t4\n", ["line 3", "not UTF-8", "0xff"]),
    "utf-16": (INTER.encode("utf-16"), ["line 1", "not UTF-8"]),
}


@pytest.mark.parametrize("case", BAD_ATOMIC)
def test_atomic_errors(tmp_path, case):
    text, fragments = BAD_ATOMIC[case]
    fails(atomic(tmp_path, text), "d.inter" if case != "header only" else "", *fragments)


BAD_TABLES = {
    "float": ("item_id:token\tp:float\n2\t1\n3\t\n4\tx\n", ["line 4, column 'p'", "'x'"]),
    "sequence": (
        "item_id:token\tp:float_seq\n2\t1 2\n3\t\n4\t1 x\n",
        ["line 4, column 'p'", "'x'"],
    ),
    "twice": (
        "item_id:token\tp:float\n2\t1\n3\t1\n2\t1\n",
        ["line 4", "'2' stands twice", "line 2"],
    ),
    "empty id": ("item_id:token\tp:float\n2\t1\n\t1\n", ["line 3", "id is empty"]),
    "no id": ("item:token\tp:float\n2\t1\n", ["'item_id' (columns.item)", "did you mean 'item'"]),
    "other ids": ("item_id:token\tp:float\n7\t1\n8\t1\n", ["'7'", "'2'", "another data set"]),
    "short": ("item_id:token\tp:token_seq\n2\n", ["line 2 has 1 fields"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_atomic_table_errors(tmp_path, case):
    text, fragments = BAD_TABLES[case]
    fails(atomic(tmp_path, INTER + "1\t2\t3\t4\n", item=text), "d.item", *fragments)


BAD_CSV = {
    "line of a record": (
        'user,item,rating\n"1\n",2,3\n4,5,x\n',
        ["line 4, column 'rating'", "'x'"],
    ),
    "width after quotes": ('user,item\n"1,\n",2\n4\n', ["line 4 has 1 fields"]),
    "open quote": ('user,item\n1,2\n"3,4\n', ["line 3"]),
    "date": ("user,item,timestamp\n1,2,2020-01-01\n1,2,2020-13-01\n", ["line 3", "'2020-13-01'"]),
    "date after number": ("user,item,timestamp\n1,2,5\n1,3,2020-01-01\n", ["line 3", "2020"]),
    "long text": ("user,item,rating\n1,2," + "y" * 99 + "\n", ["'" + "y" * 60 + "...'"]),
    "twice": ("user,item,item\n1,2,3\n", ["'item'", "twice"]),
    "semicolons": ("user;item;rating\n1;2;4,5\n", ["line 1: columns separated by semicolons"]),
    "bars": ("user|item\n1|2\n", ["line 1: columns separated by vertical bars", "commas"]),
    "separator": ("sep=,\nuser,item\n1,2\n", ["line 1: a separator", "delete this line"]),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_csv_errors(tmp_path, case):
    text, fragments = BAD_CSV[case]
    path = write(tmp_path / "a.csv", text)
    fails({"format": "csv", "path": path}, "a.csv", *fragments)


@pytest.mark.parametrize("train", ["2024-01-31", "1.5", "7"])
def test_a_part_without_an_event_has_times_of_no_type(tmp_path, train):
    for part, row in {"train": f"1,2,{train}\n", "valid": "", "test": f"1,3,{train}\n"}.items():
        write(tmp_path / f"{part}.csv", "user,item,timestamp\n" + row)
    found = load({"format": "csv", "path": tmp_path})
    assert [len(part) for part in found.splits.values()] == [1, 0, 1]
    frame = pl.read_csv(tmp_path / "train.csv", try_parse_dates=True)
    for part, rows in {"train": frame, "test": frame}.items():
        rows.write_parquet(tmp_path / f"{part}.parquet")
    untyped = dict.fromkeys(frame.columns, pl.Null)  # as pandas writes a table without a row
    pl.DataFrame(schema=untyped).write_parquet(tmp_path / "valid.parquet")
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    found = load({"format": "parquet", "path": tmp_path})
    assert [len(part) for part in found.splits.values()] == [1, 0, 1]


def test_faults_far_into_a_file(tmp_path):
    """The chunked check and the line numbers hold beyond one chunk of bytes."""
    good = [f"{n},{n % 7},{n / 2}" for n in range(400_000)]
    for row, line, fragment in ((399_999, "7,", "2 fields"), (250_001, "1,2,3,4", "4 fields")):
        lines = good.copy()
        lines[row] = line
        path = write(tmp_path / "a.csv", "user,item,rating\n" + "\n".join(lines))
        fails({"format": "csv", "path": path}, f"line {row + 2}", fragment)
    path = write(tmp_path / "a.csv", "user,item,rating\n" + "\n".join(good))
    assert path.stat().st_size > 1 << 22
    assert len(load({"format": "csv", "path": path}).interactions) == 400_000


def test_corrupt_files(tmp_path):
    whole = gzip.compress(b"user,item\n" + b"1,2\n" * 5000)
    for damaged in (whole[:-9], whole[: len(whole) // 2], whole[:-6] + b"\0" + whole[-5:]):
        path = tmp_path / "a.csv.gz"
        path.write_bytes(damaged)
        fails({"format": "csv", "path": path}, "a.csv.gz", "corrupt gzip")
    path = write(tmp_path / "a.parquet", "PAR1 nothing")
    fails({"format": "parquet", "path": path}, "a.parquet", "Parquet")


def test_parquet_errors(tmp_path):
    path = tmp_path / "a.parquet"
    config = {"format": "parquet", "path": path}
    unsigned = pl.Series([1, 2**63], dtype=pl.UInt64)
    for columns, fragments in (
        ({"user": [1, None], "item": [1, 2]}, ["row 2, column 'user'", "empty"]),
        ({"user": [1.0, 2.0], "item": [1, 2]}, ["'user'", "Float64"]),
        ({"user": [1, 2], "item": [1, 2], "rating": ["1", "2"]}, ["'rating'", "String"]),
        ({"user": [1, 2], "item": [1, 2], "rating": [1, np.nan]}, ["row 2", "'NaN'"]),
        ({"user": [1, 2], "item": [1, 2], "timestamp": [1, None]}, ["row 2", "missing"]),
        ({"user": [1, 2], "item": [1, 2], "timestamp": unsigned}, ["'timestamp'", "int64"]),
        ({"user": [1, 2], "thing": [1, 2]}, ["columns.item"]),
    ):
        frame = pl.DataFrame(columns, strict=False)
        frame.write_parquet(path)
        fails(config, "a.parquet", *fragments)


def test_paths_and_keys(tmp_path):
    config = atomic(tmp_path, INTER + "1\t2\t3\t4\n")
    base = config.to_dict()
    fails(base | {"format": "atomik"}, "did you mean 'atomic'")
    fails({"path": "x"}, "format", "csv")
    fails({"format": "csv"}, "path is not set")
    fails(base | {"path": str(tmp_path / "e" / "f")}, "no such directory")
    fails(base | {"path": str(tmp_path / "dd")}, "no such directory; did you mean 'd'")
    fails(base | {"path": str(tmp_path / "d" / "d.inter")}, "is a file")
    fails(base | {"name": "dd"}, "no file dd.inter; did you mean 'd'")
    fails(base | {"columns": {"usr": "a"}}, "columns.usr", "did you mean 'user'")
    fails(base | {"columns": {"rating": "ratin"}}, "columns.rating", "did you mean 'rating'")
    fails(base | {"columns": {"timestamp": "rating"}}, "columns.timestamp and columns.rating")
    fails(base | {"filters": {"user_cor": 1}}, "filters.user_cor", "did you mean 'user_core'")
    fails({"format": "csv", "path": tmp_path / "d.csv"}, "d.csv: no such file")
    fails({"format": "csv", "path": tmp_path / "d"}, "no train.csv")
    write(tmp_path / "d" / "d.train.inter", INTER + "1\t2\t3\t4\n")
    fails(base, "both d.inter and d.train.inter")
    write(tmp_path / "m" / "a.inter", INTER)
    write(tmp_path / "m" / "b.inter", INTER + "1\t2\t3\t4\n")
    fails(base | {"path": str(tmp_path / "m")}, "several data sets (a, b), set name")
    assert load(base | {"path": str(tmp_path / "m"), "name": "b"}).name == "b"
    users = write(tmp_path / "u.csv", "user,a\n1,2\n")
    events = write(tmp_path / "e.csv", "user,item\n1,2\n")
    csv = {"format": "csv", "path": events, "columns": {"user": "user"}}
    assert load(csv | {"users": users}).users is not None
    fails(csv | {"items": users}, "u.csv", "columns.item")
    fails(csv | {"users": tmp_path / "v.csv"}, "v.csv: no such file", "did you mean 'u.csv'")


@pytest.mark.parametrize(
    ("name", "format", "part"),
    [
        ("val.csv", "csv", "valid"),
        ("Test.CSV", "csv", "test"),
        ("dev.tsv", "csv", "valid"),
        ("test.parquet", "csv", "test"),
        ("d.validation.inter", "atomic", "valid"),
    ],
)
def test_a_part_of_another_name_is_not_left_out(tmp_path, name, format, part):
    if format == "csv":
        write(tmp_path / "d" / "train.csv", "user,item\na,x\n")
    else:
        write(tmp_path / "d" / "d.train.inter", "user_id:token\titem_id:token\na\tx\n")
    write(tmp_path / "d" / name, "user,item\nb,x\n")
    fails({"format": format, "path": tmp_path / "d"}, name, f"must be called {part}")


def test_parts_must_agree(tmp_path):
    write(tmp_path / "train.csv", "user,item,timestamp\n1,2,3\n")
    write(tmp_path / "valid.csv", "user,item\n1,2\n")
    config = {"format": "csv", "path": tmp_path}
    fails(config, "valid.csv: no column 'timestamp', which train.csv has")
    write(tmp_path / "valid.csv", "user,timestamp,item\n1,2020-01-01,2\n")
    fails(config, "valid.csv", "not as in train.csv")
    write(tmp_path / "valid.csv", "user,timestamp,item\n1,2.5,2\n")
    timestamp = load(config).interactions.timestamp
    assert timestamp is not None and timestamp.tolist() == [3.0, 2.5]
    write(tmp_path / "valid.csv.gz", "user,item\n1,2\n")
    fails(config, "both valid.csv and valid.csv.gz")
