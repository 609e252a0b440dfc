"""Sizes that a Parquet file states are checked before anything is allocated for them."""

import io

import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory
from xrec_jax.data.load import load
from xrec_jax.data.readers import pages

FRAME = pl.DataFrame(
    {
        "user_id": ["ann", "ben", "ann", "cat"] * 25,
        "item_id": [f"i{n % 7}" for n in range(100)],
        "tags": [["x", "y"], [], None, ["z"]] * 25,
    }
)


def parquet(**options):
    buffer = io.BytesIO()
    FRAME.write_parquet(buffer, **options)
    return buffer.getvalue()


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load({"format": "parquet", "path": path})
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    return message


@pytest.mark.parametrize("compression", ["uncompressed", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("rows", [30, 1000])
def test_whole_files_pass(tmp_path, compression, rows):
    path = tmp_path / "e.parquet"
    path.write_bytes(parquet(compression=compression, row_group_size=rows, data_page_size=64))
    pages.check_pages(path, FRAME.columns)
    assert len(load({"format": "parquet", "path": path}).interactions) == len(
        FRAME.unique(("user_id", "item_id"))
    )


def test_a_page_that_states_too_many_values_is_refused(tmp_path):
    data = parquet()
    # A dictionary page of three users: field 7, a struct whose first field is the number of values.
    assert data.count(b"\x4c\x15\x06") == 1
    message = refusal(tmp_path / "e.parquet", data.replace(b"\x4c\x15\x06", b"\x4c\x15\x7e"))
    assert "a dictionary has more values than bytes" in message


@pytest.mark.parametrize(
    "damage, fragment",
    [
        (lambda data: data[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1", "footer"),
        (lambda data: data[:4] + data[-2000:], "Parquet"),
        (lambda data: data[:-400] + bytes(392) + data[-8:], "Parquet"),
        (lambda data: data[:4] + b"\xff" * 40 + data[44:], "no page starts at byte 4"),
    ],
)
def test_damage_to_the_structure_is_refused(tmp_path, damage, fragment):
    assert fragment in refusal(tmp_path / "e.parquet", damage(parquet()))


def test_no_single_bit_of_the_structure_takes_the_check_by_surprise(tmp_path):
    """Every bit of the first page header and every fifth of the footer."""
    data, path = parquet(), tmp_path / "e.parquet"
    refused = 0
    for bit in [*range(4 * 8, 30 * 8), *range((len(data) - 500) * 8, len(data) * 8, 5)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            pages.check_pages(path, FRAME.columns)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
    assert refused > 100


def test_a_page_that_unpacks_beyond_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "e.parquet").write_bytes(data := parquet())
    monkeypatch.setattr(memory, "available", lambda: 10)
    assert "a page need at least" in refusal(tmp_path / "e.parquet", data)
