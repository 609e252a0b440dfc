"""Lossless parsing of numbers and times: values that their type cannot hold become null.

Rounding could make two times equal, and file order would then decide which came first.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import cast

import numpy as np
import polars as pl

_DATETIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")
FRACTION = r"(:[0-5][0-9]:[0-5][0-9])\.([0-9]+)"  # of a second
_LARGEST_EXACT_FLOAT = 2**53
_SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)
_SAFE_DIGITS = 15  # every decimal of that many digits survives a float64


def parse_numbers(texts: pl.Series) -> pl.Series:
    """Parses numbers as Float64; null if not a number, infinite, or if digits would be lost.

    A text of many digits is kept if the float64 prints as the same digits, as programs write it
    ("0.1000000000000000055"), and is null otherwise ("1234567890123456789").
    """
    texts = texts.str.strip_chars_start(" ")
    numbers = texts.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    digits = texts.str.replace("[eE].*$", "").str.replace_all("[^0-9]", "").str.strip_chars("0")
    long = (digits.str.len_bytes() > _SAFE_DIGITS) | (
        (numbers.abs() < _SMALLEST_NORMAL) & (digits != "")
    )
    # Most long texts are the shortest form of their float64, a quick test; the rest need decimals.
    long &= numbers.is_not_null() & (numbers.cast(pl.String) != texts)
    rows = long.fill_null(False).arg_true()
    lost = [row for row, text in zip(rows, texts.gather(rows), strict=True) if _loses_digits(text)]
    return numbers.scatter(lost, None) if lost else numbers


def as_rating(numbers: pl.Series) -> pl.Series:
    """Converts Float64 numbers to Float32.

    Null if a number overflows, underflows to 0, or is an integer that changes.
    """
    ratings = numbers.cast(pl.Float32, strict=False)
    back = ratings.cast(pl.Float64)
    integral = numbers.floor() == numbers
    changed = integral & ((back != numbers) | (numbers.abs() > _LARGEST_EXACT_FLOAT))
    changed |= ((back == 0) & (numbers != 0)) | ~back.is_finite()
    return ratings.set(changed.fill_null(False), None)


def parse_datetimes(texts: pl.Series) -> pl.Series:
    """Parses ISO 8601 dates and times, with or without an offset from UTC.

    Returns:
      Datetime in UTC without a zone: in nanoseconds if a value needs it, else in microseconds.
      Null if a text is not a time, is finer than a nanosecond, or exceeds the range of the unit.
    """
    # The fraction is parsed apart: Polars would cut digits below its unit.
    texts = texts.str.replace("T", " ", literal=True)
    fraction = texts.str.extract(FRACTION, 2).fill_null("")
    texts = texts.str.replace(FRACTION, "${1}")
    seconds = pl.Series(texts.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(texts))
    for form in _DATETIME_FORMATS:
        for offset in ("", "%#z") if "%H" in form else ("",):
            if not seconds.null_count():
                break
            zone = "UTC" if offset else None
            parsed = texts.str.strptime(pl.Datetime("us", zone), form + offset, strict=False)
            seconds = seconds.fill_null(parsed.dt.replace_time_zone(None))
    # Polars would move a leap second to the next minute, onto another time.
    seconds = seconds.set(texts.str.contains(":60", literal=True).fill_null(False), None)
    fraction = fraction.str.strip_chars_end("0")
    seconds = seconds.set(fraction.str.len_bytes() > 9, None)
    nanoseconds = fraction.str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int64)
    if not (nanoseconds % 1000 != 0).any():
        return (seconds.to_physical() + nanoseconds // 1000).cast(pl.Datetime("us"))
    return to_nanoseconds(seconds, nanoseconds)


def to_nanoseconds(moments: pl.Series, extra: pl.Series | int = 0) -> pl.Series:
    """Converts Datetime from micro- to nanoseconds and adds `extra` nanoseconds.

    Null outside the range of int64: before 1678 and after 2261.
    """
    micros = moments.to_physical()
    limit = np.iinfo(np.int64).max // 1000 - 10**6
    micros = micros.set((micros.abs() > limit).fill_null(False), None)
    return (micros * 1000 + extra).cast(pl.Datetime("ns"))


def finest_unit(moments: pl.Series) -> pl.Series:
    """Converts dates or times of any unit and zone to Datetime in UTC, without a zone.

    In nanoseconds if a value needs it, else in microseconds; null outside the range of int64.
    """
    count = moments.to_physical().cast(pl.Int64)
    unit = "day" if moments.dtype == pl.Date else cast(pl.Datetime, moments.dtype).time_unit
    if unit == "ns":
        if (count % 1000 != 0).any():
            return count.cast(pl.Datetime("ns"))
        return (count // 1000).cast(pl.Datetime("us"))
    factor = {"us": 1, "ms": 1000, "day": 86_400_000_000}[unit]
    count = count.set((count.abs() > np.iinfo(np.int64).max // factor).fill_null(False), None)
    return (count * factor).cast(pl.Datetime("us"))


def one_type(columns: Sequence[pl.Series]) -> list[pl.Series]:
    """Converts timestamps of several files to one type; null if a value would change.

    Args:
      columns: all Datetime in micro- or nanoseconds, or all numbers.
    """
    if len({column.dtype for column in columns}) == 1:
        return list(columns)
    if columns[0].dtype.is_temporal():
        fine = pl.Datetime("ns")
        return [column if column.dtype == fine else to_nanoseconds(column) for column in columns]
    arrays = [exact_timestamps(column) for column in columns]
    name = columns[0].name
    if all(array.dtype == np.int64 for array in arrays):
        return [pl.Series(name, array) for array in arrays]
    numbers = [pl.Series(name, array.astype(np.float64)) for array in arrays]
    return [
        number.set(pl.Series(number.to_numpy().astype(array.dtype) != array), None)
        for number, array in zip(numbers, arrays, strict=True)
    ]


def exact_timestamps(values: pl.Series) -> np.ndarray:
    """Converts numbers or datetimes without loss: int64 if all are integers, else float64.

    Datetimes become micro- or nanoseconds since 1970, in their unit (UTC, also for those without a
    zone).

    Raises:
      pl.exceptions.PolarsError: if an unsigned value exceeds int64.
    """
    if values.dtype.is_temporal():
        return values.to_physical().to_numpy()
    if values.dtype.is_integer():
        return values.cast(pl.Int64).to_numpy()
    numbers = values.cast(pl.Float64).to_numpy()
    exact = (np.trunc(numbers) == numbers) & (np.abs(numbers) <= _LARGEST_EXACT_FLOAT)
    return numbers.astype(np.int64) if exact.all() else numbers


def _loses_digits(text: str) -> bool:
    """True if a finite number changes when stored as float64 and printed with as many digits."""
    try:
        wanted = decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent beyond all bounds
        return True
    printed = f"{float(text):.{max(len(wanted.as_tuple().digits) - 1, 0)}e}"
    return decimal.Decimal(printed) != wanted
