"""Numbers and times are kept to the last digit, or refused by file, line and value."""

import datetime
import decimal

import numpy as np
import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.load import load, split
from xrec_jax.data.readers import exact

NANO = "2024-01-01T10:00:00.00000000"


def csv(path, times, name="timestamp"):
    rows = "".join(f"u,i{n},{time}\n" for n, time in enumerate(times))
    path.write_text(f"user,item,{name}\n{rows}")
    return {"format": "csv", "path": path}


def parquet(path, values, name="timestamp"):
    items = [f"i{n}" for n in range(len(values))]
    pl.DataFrame({"user": "u", "item": items, name: values}).write_parquet(path)
    return {"format": "parquet", "path": path}


def refusal(config):
    with pytest.raises(UserError) as caught:
        load(config)
    return str(caught.value)


@pytest.mark.parametrize("offset", ["", "Z", "+02:00"])
def test_nanoseconds_decide_the_order(tmp_path, offset):
    times = [f"{NANO}{n}{offset}" for n in (3, 1, 2)]
    moments = pl.Series([3, 1, 2]).cast(pl.Datetime("ns"))
    configs = (
        csv(tmp_path / "e.csv", times),
        parquet(tmp_path / "t.parquet", times),
        parquet(tmp_path / "e.parquet", moments),
        parquet(tmp_path / "z.parquet", moments.dt.replace_time_zone("Europe/Paris")),
    )
    for config in configs:
        dataset = load(config)
        parts = split(dataset, {"kind": "leave_one_out"})
        last_two = [dataset.item_ids[part.item[0]] for part in (parts.valid, parts.test)]
        assert last_two == ["i2", "i0"]
        assert parts.tied_users == 0


@pytest.mark.parametrize(
    "times, expected",
    [
        (["1970-01-01T00:00:01", "1970-01-01"], [1_000_000, 0]),
        (["1970-01-01 00:00:01.5", "1970-01-01 00:00"], [1_500_000, 0]),
        (["1970-01-01 00:00:00.123456000", "1970-01-01"], [123_456, 0]),
        (["1970-01-01 00:00:00.0000001", "1970-01-01 00:00:01"], [100, 10**9]),
        (["1969-12-31 23:59:59.999999999", "1970-01-01"], [-1, 0]),
        (["1677-09-22 00:00:00.000000001", "2262-04-11 00:00"], None),
        (["0001-01-01", "9999-12-31T23:59:59.999999"], None),
    ],
)
def test_times_of_mixed_precision(tmp_path, times, expected):
    found = load(csv(tmp_path / "e.csv", times)).interactions.timestamp
    assert found.dtype == np.int64
    if expected is not None:
        assert found.tolist() == expected
    assert (np.argsort(found) == np.argsort(times)).all()


@pytest.mark.parametrize(
    "times, line, fragment",
    [
        ([NANO + "1", NANO + "11"], 3, "cannot be kept to the nanosecond"),
        ([NANO + "1", "9999-12-31"], 3, "'9999-12-31' cannot be kept to the nanosecond"),
        (["2024-01-01", "2016-12-31T23:59:60"], 3, "not an ISO date and time"),
        (["2024-01-01", "2024-01-01 10:00.5"], 3, "not an ISO date and time"),
        (["1700000000.123456789", "1700000000.123456788"], 2, "would become another number"),
        (["1.5", "1700000000000000001"], 3, "would become another number"),
        (["1700000000000000001", "1.5"], 2, "would become another number"),
        (["5", "9223372036854775809"], 3, "would become another number"),
        (["0.5", "1e-400"], 3, "would become another number"),
        (["0.5", "1e400"], 3, "not a finite number"),
        (["0.5", "1_000"], 3, "not a finite number"),
    ],
)
def test_times_that_would_become_others_are_refused(tmp_path, times, line, fragment):
    message = refusal(csv(tmp_path / "e.csv", times))
    assert f"e.csv: line {line}, column 'timestamp': " in message and fragment in message


def test_numbers_as_programs_print_them_are_kept(tmp_path):
    values = [1700000000.1234567, 0.1, 1e22, 5e-324, 2 / 3, 123456.789]
    for form in (repr, "{:.18e}".format, "{:.25f}".format, str):
        texts = [form(value) for value in values if form(value).strip("0.") != ""]
        kept = exact.parse_numbers(pl.Series(texts))
        assert kept.to_list() == [float(text) for text in texts]
    same = exact.parse_numbers(pl.Series(["1.50", "100000000000000000000", " 7", "+2e0", "-0"]))
    assert same.to_list() == [1.5, 1e20, 7.0, 2.0, 0.0]


def test_19_digits_are_kept(tmp_path):
    digits = [1234567890123456789, 1234567890123456788]
    for config in (
        csv(tmp_path / "e.csv", digits),
        parquet(tmp_path / "e.parquet", digits),
        parquet(tmp_path / "d.parquet", [decimal.Decimal(number) for number in digits]),
    ):
        assert load(config).interactions.timestamp.tolist() == digits


FINE = [decimal.Decimal("1.5"), decimal.Decimal("1700000000.123456789")]
PARQUET_TIMES = {
    "unsigned": (pl.Series([1, 2**63], dtype=pl.UInt64), "row 2, 9223372036854775808 does not fit"),
    "milliseconds": (pl.Series([0, 2**62]).cast(pl.Datetime("ms")), "row 2, the time is beyond"),
    "days": (pl.Series([0, 2**31 - 1], dtype=pl.Int32).cast(pl.Date), "row 2, the time is beyond"),
    "decimals": (FINE, "row 2, '1700000000.123456789' would become another number"),
    "durations": ([datetime.timedelta(1), None], "column 'timestamp' holds Duration"),
    "bytes": ([b"1", b"2"], "column 'timestamp' holds Binary, not numbers"),
    "nothing": (pl.Series([None, None], dtype=pl.Null), "column 'timestamp' holds Null"),
}


@pytest.mark.parametrize("case", PARQUET_TIMES)
def test_parquet_times_that_would_become_others_are_refused(tmp_path, case):
    values, fragment = PARQUET_TIMES[case]
    message = refusal(parquet(tmp_path / "e.parquet", values))
    assert fragment in message.replace("column 'timestamp': ", "")


@pytest.mark.parametrize("value", ["16777217", "1152921504606846977", "1e-60"])
def test_ratings_that_would_become_others_are_refused(tmp_path, value):
    message = refusal(csv(tmp_path / "e.csv", ["3.1", value], "rating"))
    assert "line 3, column 'rating'" in message and "32-bit float" in message
    number = float(value) if "e" in value else int(value)
    message = refusal(parquet(tmp_path / "e.parquet", [3 if number > 1 else 3.1, number], "rating"))
    assert "row 2, column 'rating'" in message and "32-bit float" in message


def test_ratings_keep_the_nearest_float(tmp_path):
    ratings = load(csv(tmp_path / "e.csv", ["3.1", "16777216", "0"], "rating")).interactions.rating
    assert ratings.dtype == np.float32 and (ratings == np.float32([3.1, 16777216, 0])).all()


@pytest.mark.parametrize(
    "train, test, expected",
    [
        (["5", "6"], ["7.0"], [5, 6, 7]),
        (["5", "6"], ["7.5"], [5.0, 6.0, 7.5]),
        (["1700000000000000001"], ["7.0"], [1700000000000000001, 7]),
        (["2024-01-01"], [NANO + "1"], [1704067200 * 10**9, 1704103200 * 10**9 + 1]),
        (["1700000000000000001"], ["7.5"], "train.csv: timestamps that cannot be kept exactly"),
        ([NANO + "1"], ["9999-01-01"], "test.csv: timestamps that cannot be kept exactly"),
    ],
)
def test_parts_share_one_type(tmp_path, train, test, expected):
    csv(tmp_path / "train.csv", train)
    csv(tmp_path / "test.csv", test)
    config = {"format": "csv", "path": tmp_path}
    if isinstance(expected, str):
        assert expected in refusal(config)
    else:
        assert load(config).interactions.timestamp.tolist() == expected
