"""Digests: equal for equal values, different after any change."""

import datetime
import decimal

import numpy as np
import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data import digests
from xrec_jax.data.dataset import Interactions

TABLE = {
    "text": ["ab", "c", None, ""],
    "number": [1, 2, None, 2**60 + 1],
    "share": [0.1, None, 2.0, 3.0],
    "sure": [True, False, None, True],
    "day": [datetime.date(2020, 1, 1), None, datetime.date(2020, 1, 2), datetime.date(1, 1, 1)],
    "price": [decimal.Decimal("1.10"), decimal.Decimal("2.00"), None, decimal.Decimal("0.01")],
    "bytes": [b"\xff", b"\xfe", None, b""],
    "list": [["a", "b"], ["c"], [], None],
    "nested": [[[1], [2]], [[1, 2]], [], None],
    "struct": [{"a": 1}, {"a": 2}, {"a": None}, {"a": 4}],
}
CHANGES = {
    "text": ["abc", "", None, ""],
    "number": [1, 2, None, 2**60],
    "share": [0.1, None, 2.0, np.nextafter(3.0, 4.0)],
    "sure": [True, None, None, True],
    "day": [datetime.date(2020, 1, 1), None, datetime.date(2020, 1, 3), datetime.date(1, 1, 1)],
    "price": [decimal.Decimal("1.11"), decimal.Decimal("2.00"), None, decimal.Decimal("0.01")],
    "bytes": [b"\xfd", b"\xfe", None, b""],
    "list": [["a"], ["b", "c"], [], None],
    "nested": [[[1, 2]], [[1], [2]], [], None],
    "struct": [{"a": 1}, {"a": 2}, {"a": 0}, {"a": 4}],
}


@pytest.mark.parametrize("column", TABLE)
def test_a_value_a_name_or_an_order_changes_a_tables_digest(column):
    whole = digests.of_table(pl.DataFrame(TABLE))
    assert digests.of_table(pl.DataFrame(TABLE).rechunk().slice(0)) == whole
    assert digests.of_table(pl.DataFrame(TABLE | {column: CHANGES[column]})) != whole
    assert digests.of_table(pl.DataFrame(TABLE).rename({column: "x"})) != whole
    assert digests.of_table(pl.DataFrame(TABLE).reverse()) != whole


def test_how_a_column_is_stored_is_no_difference():
    plain = pl.DataFrame({"c": ["x", "y", "x"], "n": [1, 2, 3]})
    other = plain.with_columns(pl.col("c").cast(pl.Categorical))
    assert digests.of_table(other) == digests.of_table(plain)


def test_null_and_empty_differ():
    first = ([], None, [None], [""])
    tables = [pl.DataFrame({"c": [one, ["a"]]}, schema={"c": pl.List(pl.String)}) for one in first]
    assert len({digests.of_table(table) for table in tables}) == 4


def test_events_pairs_and_values_apart():
    user, item, time = np.array([0, 1], np.int32), np.array([2, 3], np.int32), np.array([5, 6])
    plain = digests.of_events(Interactions(user, item, time))
    later = digests.of_events(Interactions(user, item, time + 1))
    other = digests.of_events(Interactions(item, user, time))
    assert plain["events"] == 2
    assert later["pairs"] == plain["pairs"] and later["values"] != plain["values"]
    assert other["pairs"] != plain["pairs"] and other["values"] == plain["values"]
    assert digests.of_events(Interactions(user, item))["values"] != plain["values"]


def test_ids_in_order():
    lists = (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab"], ["ab", "c", ""])
    assert len({digests.of_ids(np.array(ids), None)["sha256"] for ids in lists}) == 5


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"gone.csv: cannot be read .No such file"):
        digests.of_file(tmp_path / "gone.csv")
