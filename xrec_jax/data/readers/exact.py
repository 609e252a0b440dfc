"""Numbers and times as their types hold them: kept to the last digit, or null as a fault.

Rounding would turn two values into one, and then file order decides what came first.
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
_SAFE_DIGITS = 15  # any decimal of so many digits survives a float64


def parse_numbers(texts: pl.Series) -> pl.Series:
    """Reads numbers as Float64; null where not a number, infinite, or where digits would be lost.

    A text of many digits is kept if it is what the float64 prints with as many digits, as programs
    write it ("0.1000000000000000055"), and lost if it is not ("1234567890123456789").
    """
    texts = texts.str.strip_chars_start(" ")
    numbers = texts.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    digits = texts.str.replace("[eE].*$", "").str.replace_all("[^0-9]", "").str.strip_chars("0")
    long = (digits.str.len_bytes() > _SAFE_DIGITS) | (
        (numbers.abs() < _SMALLEST_NORMAL) & (digits != "")
    )
    # Most long ones are the shortest text of their float64: nothing is lost, and that is quick.
    long &= numbers.is_not_null() & (numbers.cast(pl.String) != texts)
    rows = long.fill_null(False).arg_true()
    lost = [row for row, text in zip(rows, texts.gather(rows), strict=True) if _loses_digits(text)]
    return numbers.scatter(lost, None) if lost else numbers


def as_rating(numbers: pl.Series) -> pl.Series:
    """Returns Float64 numbers as Float32.

    Null where one overflows, vanishes, or is a whole number that becomes another one.
    """
    ratings = numbers.cast(pl.Float32, strict=False)
    back = ratings.cast(pl.Float64)
    whole = numbers.floor() == numbers
    other = whole & ((back != numbers) | (numbers.abs() > _LARGEST_EXACT_FLOAT))
    other |= ((back == 0) & (numbers != 0)) | ~back.is_finite()
    return ratings.set(other.fill_null(False), None)


def parse_datetimes(texts: pl.Series) -> pl.Series:
    """Reads ISO 8601 dates and times, with or without an offset from UTC.

    Returns:
      Datetime without a zone, in UTC: in nanoseconds if one of them needs it, else in microseconds.
      Null where a text is not one, finer than a nanosecond, or beyond what the unit reaches.
    """
    texts = texts.str.replace("T", " ", literal=True)
    fraction = texts.str.extract(FRACTION, 2).fill_null("")
    texts = texts.str.replace(FRACTION, "${1}")
    seconds = pl.Series(texts.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(texts))
    for form in _DATETIME_FORMATS:
        for offset in ("", "%#z") if "%H" in form else ("",):
            if not seconds.null_count():
                break
            zone = "UTC" if offset else None
            found = texts.str.strptime(pl.Datetime("us", zone), form + offset, strict=False)
            seconds = seconds.fill_null(found.dt.replace_time_zone(None))
    # A leap second has no place of its own.
    seconds = seconds.set(texts.str.contains(":60", literal=True).fill_null(False), None)
    fraction = fraction.str.strip_chars_end("0")
    seconds = seconds.set(fraction.str.len_bytes() > 9, None)
    nanoseconds = fraction.str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int64)
    if not (nanoseconds % 1000 != 0).any():
        return (seconds.to_physical() + nanoseconds // 1000).cast(pl.Datetime("us"))
    return to_nanoseconds(seconds, nanoseconds)


def to_nanoseconds(moments: pl.Series, extra: pl.Series | int = 0) -> pl.Series:
    """Returns Datetime in microseconds, `extra` nanoseconds added, as Datetime in nanoseconds.

    Null where int64 has no room for it: before 1678 and after 2261.
    """
    micros = moments.to_physical()
    reach = np.iinfo(np.int64).max // 1000 - 10**6
    micros = micros.set((micros.abs() > reach).fill_null(False), None)
    return (micros * 1000 + extra).cast(pl.Datetime("ns"))


def finest_unit(moments: pl.Series) -> pl.Series:
    """Returns dates or times of any unit and zone as Datetime in UTC and without a zone.

    In nanoseconds if one of them needs it, else in microseconds; null beyond what int64 reaches.
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


def one_type(parts: Sequence[pl.Series]) -> list[pl.Series]:
    """Brings timestamps of several files to one type; null where a value would become another.

    Args:
      parts: all of Datetime in micro- or nanoseconds, or all of numbers.
    """
    if len({part.dtype for part in parts}) == 1:
        return list(parts)
    if parts[0].dtype.is_temporal():
        fine = pl.Datetime("ns")
        return [part if part.dtype == fine else to_nanoseconds(part) for part in parts]
    arrays = [exact_timestamps(part) for part in parts]
    name = parts[0].name
    if all(array.dtype == np.int64 for array in arrays):
        return [pl.Series(name, array) for array in arrays]
    numbers = [pl.Series(name, array.astype(np.float64)) for array in arrays]
    return [
        number.set(pl.Series(number.to_numpy().astype(array.dtype) != array), None)
        for number, array in zip(numbers, arrays, strict=True)
    ]


def exact_timestamps(values: pl.Series) -> np.ndarray:
    """Returns numbers or datetimes without loss: int64 if every one is an integer, else float64.

    Datetimes become micro- or nanoseconds since 1970, in their unit (UTC, also for those without a
    zone).

    Raises:
      pl.exceptions.PolarsError: an unsigned value exceeds int64.
    """
    if values.dtype.is_temporal():
        return values.to_physical().to_numpy()
    if values.dtype.is_integer():
        return values.cast(pl.Int64).to_numpy()
    numbers = values.cast(pl.Float64).to_numpy()
    exact = (np.trunc(numbers) == numbers) & (np.abs(numbers) <= _LARGEST_EXACT_FLOAT)
    return numbers.astype(np.int64) if exact.all() else numbers


def _loses_digits(text: str) -> bool:
    """Whether a finite number is another one once it is a float64 and printed again."""
    try:
        wanted = decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent beyond all bounds
        return True
    printed = f"{float(text):.{max(len(wanted.as_tuple().digits) - 1, 0)}e}"
    return decimal.Decimal(printed) != wanted
