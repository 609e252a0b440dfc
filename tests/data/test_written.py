"""Columns of user and item tables reach texts as people write them, or are refused at the start."""

import datetime
import decimal
import json

import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.load import load
from xrec_jax.data.readers import tables, written
from xrec_jax.text.prompts.layout import text_value

PARIS = pl.Series([datetime.datetime(2024, 7, 1, 8, 30)]).dt.replace_time_zone("UTC")
MOMENTS = [datetime.datetime(2024, 1, 31, 10, 30), datetime.datetime(2024, 2, 1)]
NANO = pl.Series([1]).cast(pl.Datetime("ns"))
# Name of the type, values, their texts in a prompt.
VALUES = {
    "text": (["The A", ""], ["The A", None]),
    "date": ([datetime.date(2024, 1, 31), datetime.date(1, 1, 1)], ["2024-01-31", "0001-01-01"]),
    "time": (MOMENTS, ["2024-01-31 10:30", "2024-02-01 00:00"]),
    "seconds": ([datetime.datetime(2024, 1, 31, 10, 30, 5)], ["2024-01-31 10:30:05"]),
    "nanoseconds": (NANO, ["1970-01-01 00:00:00.000000001"]),
    "midnights": ([datetime.datetime(2024, 1, 31)], ["2024-01-31"]),
    "a zone": (PARIS.dt.convert_time_zone("Europe/Paris"), ["2024-07-01 10:30"]),
    "hours": ([datetime.time(10, 30), datetime.time(9)], ["10:30", "09:00"]),
    "duration": ([datetime.timedelta(hours=1, minutes=30)], ["1h 30m"]),
    "decimal": ([decimal.Decimal("1.50"), decimal.Decimal("-20.00")], ["1.50", "-20.00"]),
    "digits": ([decimal.Decimal("12345678901234567890")], ["12345678901234567890"]),
    "float": ([2001.0, 0.1, 1e-7, float("nan")], ["2001", "0.1", "1e-07", None]),
    "float32": (pl.Series([0.1, 2001.0], dtype=pl.Float32), ["0.1", "2001"]),
    "integers": (pl.Series([1234567890123456789, -1]), ["1234567890123456789", "-1"]),
    "unsigned": (pl.Series([2**64 - 1], dtype=pl.UInt64), ["18446744073709551615"]),
    "128 bits": (pl.Series([2**100], dtype=pl.Int128), [str(2**100)]),
    "bool": ([True, False], ["yes", "no"]),
    "bytes": (["Café".encode(), b""], ["Café", None]),
    "categories": (pl.Series(["x", "y"], dtype=pl.Categorical), ["x", "y"]),
    "enum": (pl.Series(["x"], dtype=pl.Enum(["y", "x"])), ["x"]),
    "texts": ([["x", "y"], [], [None], ["z", None]], ["x, y", None, None, "z"]),
    "dates": ([[datetime.date(2024, 1, 31), None], []], ["2024-01-31", None]),
    "decimals": ([[decimal.Decimal("1.50")]], ["1.50"]),
    "floats": ([[1.0, 0.5]], ["1, 0.5"]),
    "float32s": (pl.Series([[0.1]], dtype=pl.List(pl.Float32)), ["0.1"]),
    "bytes in lists": ([[b"x", b"y"]], ["x, y"]),
    "array": (pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)), ["1, 2"]),
    "nothing": ([None, None], [None, None]),
    "no lists": (pl.Series([[], []], dtype=pl.List(pl.Null)), [None, None]),
}


def described(tmp_path, values, kind):
    """A data set whose items (or users) have the column `about`, and the path of the table."""
    series = pl.Series("about", [*values, None] if isinstance(values, list) else values)
    if len(series) == len(values):
        series = series.append(pl.Series("about", [None], dtype=series.dtype))
    ids = [f"x{n}" for n in range(len(series))]
    table = tmp_path / "t.parquet"
    pl.DataFrame({f"{kind}_id": ids}).with_columns(series).write_parquet(table)
    events = tmp_path / "e.parquet"
    pl.DataFrame({"user_id": ids, "item_id": ids}).write_parquet(events)
    return {"format": "parquet", "path": events, f"{kind}s": table}, table


@pytest.mark.parametrize("case", VALUES)
def test_values_of_every_type_become_texts(tmp_path, case):
    values, expected = VALUES[case]
    kind = "user" if len(expected) % 2 else "item"
    config, _ = described(tmp_path, values, kind)
    rows = getattr(load(config), f"{kind}s").to_dicts()
    assert [text_value(row, "about") for row in rows] == [*expected, None]
    assert not any(None in row["about"] for row in rows if isinstance(row["about"], list))
    json.dumps(rows)  # as records, reports and training sets write them


FAULTS = {
    "struct": ([{"a": 1}], "'about' holds Struct"),
    "nested lists": ([[["x"]]], "'about' holds List(List(String))"),
    "structs in lists": ([[{"a": 1}]], "'about' holds List(Struct"),
    "bytes": ([b"x", b"\xff"], "row 2, column 'about': bytes that are not UTF-8"),
    "bytes in lists": ([[b"x"], [b"x", b"\xff"]], "row 2, column 'about': bytes that are not"),
    "date": (
        pl.Series([0, 2**31 - 1], dtype=pl.Int32).cast(pl.Date),
        "row 2, column 'about': a date",
    ),
    "time": (
        pl.Series([0, 2**62]).cast(pl.Datetime("us")),
        "row 2, column 'about': a date outside",
    ),
    "times": (
        pl.Series([[0], [1, 2**62]]).cast(pl.List(pl.Datetime("ms"))),
        "row 2, column 'about'",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_has_no_text_is_refused_when_it_is_read(tmp_path, case, capfd):
    values, fragment = FAULTS[case]
    config, path = described(tmp_path, values, "item")
    with pytest.raises(UserError) as caught:
        load(config)
    assert str(caught.value).startswith(f"{path}: ") and fragment in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1.5", "20", "2001.0", ""], [1.5, 20.0, 2001.0, None]),
        (
            ["1234567890123456789", "1234567890123456788"],
            [1234567890123456789, 1234567890123456788],
        ),
        (["12345678901234567890", "1"], None),
        (["0.1234567890123456789", "1"], None),
        (["1.5", "1234567890123456789"], None),
        (["1.50", "2.25"], None),
        (["1.10", "1.1"], None),
        (["007", "7"], None),
        (["1e3", "7"], None),
        (["2024-01-31", "2024-02-01"], None),
        (["true", "False"], None),
        (["NaN", "1"], None),
        (["", ""], [None, None]),
    ],
)
def test_csv_columns_are_numbers_only_where_every_value_stays_the_same(texts, expected):
    """None: the column stays as it is spelt."""
    values = written.infer(pl.Series("about", texts)).to_list()
    assert values == ([text or None for text in texts] if expected is None else expected)
    if expected is None:
        assert [text_value({"about": value}, "about") for value in values] == texts


def test_a_float_column_of_an_atomic_file_is_exact_or_refused(tmp_path):
    (tmp_path / "d.inter").write_text("user_id:token\titem_id:token\nu\ta\n")
    for kind, value in (("float", "1234567890123456789"), ("float_seq", "1 1234567890123456789")):
        (tmp_path / "d.item").write_text(f"item_id:token\tlabel:{kind}\na\t{value}\n")
        with pytest.raises(
            UserError, match=r"d\.item: line 2, column 'label': '1234567890123456789'"
        ):
            load({"format": "atomic", "path": tmp_path})
    (tmp_path / "d.item").write_text("item_id:token\tlabel:token\na\t1234567890123456789\n")
    items = load({"format": "atomic", "path": tmp_path}).items
    assert items.rows() == [("1234567890123456789",)]


def test_ids_of_tables_are_ids(tmp_path):
    for ids, fragment in ((["a", "b\0"], "holds a NUL"), (["a", None], "the id is empty")):
        pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(UserError, match=f"row 2, column 'item_id': .*{fragment}"):
            tables.read_table(tmp_path / "t.parquet", "parquet", ("item_id",), "columns.item")
