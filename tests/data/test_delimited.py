"""Delimited text: which quotes, line ends and bytes are right, and that no record is lost."""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import os
import random
import tempfile
import threading
import types

import polars as pl
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory, quiet
from xrec_jax.data.load import load
from xrec_jax.data.readers import delimited, records
from xrec_jax.data.readers import events as readers

HEADER = "user_id,item_id,timestamp,title\n"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(read, *arguments):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def events_of(path, **config):
    dataset = load({"format": "csv", "path": path, **config})
    events = dataset.interactions
    return list(zip(dataset.user_ids[events.user], dataset.item_ids[events.item], strict=True))


# Name of the fault, text of the file, line to look at, part of the message.
FAULTS = {
    "an inch mark": (HEADER + 'u,a,1,x\nu,b,2,7" one\nu,c,3,LP 12" disc\n', 3, "not quoted"),
    "an inch mark in an id": (HEADER + 'u,12" disc,1,x\n', 2, "not quoted"),
    "a blank before a quote": (HEADER + 'u,a,1,x\nu,b,2, "y, z"\n', 3, "not quoted"),
    "text after a quote": (HEADER + 'u,a,1,"x" y\n', 2, "goes on after its closing quote"),
    "one quote in a quoted field": (HEADER + 'u,a,1,"a 7" single"\n', 2, "goes on after"),
    "an open quote": (HEADER + 'u,a,1,x\nu,b,2,"y\nu,c,3,z\n', 3, "never closed"),
    "a quote closed too late": (HEADER + 'u,a,1,"x\nu,b,2,y\nu,c,3,"z"\n', 2, "goes on after"),
    "a quote in the header": ('user_id,item_id,12" disc\nu,a,1\n', 1, "not quoted"),
    "line ends of old Macintoshes": ("user_id,item_id\ru,a\ru,b\r", 1, "carriage return"),
    "mixed line ends": ("user_id,item_id\nu,a\r\nu,b\ru,c\n", 3, "carriage return"),
    "two returns": ("user_id,item_id\r\nu,a\r\r\n", 2, "carriage return"),
    "a NUL": (HEADER + "u,a\0b,1,x\n", 2, "NUL"),
    "UTF-16": ((HEADER + "u,a,1,x\n").encode("utf-16"), 1, "UTF-16"),
    "UTF-16 without a mark": ((HEADER + "u,a,1,x\n").encode("utf-16-le"), 1, "UTF-16"),
    "a workbook": (b"PK\x03\x04 and more", 1, "a zip archive (or a workbook); unpack it"),
    "a Parquet file": (b"PAR1\x15 and more", 1, "a Parquet file"),
    "bzip2": (bz2.compress(HEADER.encode()), 1, "a bzip2 file; unpack it"),
    "xz": (lzma.compress(HEADER.encode()), 1, "an xz file; unpack it"),
    "Latin-1": (HEADER.encode() + "u,a,1,x\né,b,2,y\n".encode("latin-1"), 3, "not UTF-8"),
    "Latin-1 in the header": ("user_id,item_id,größe\nu,a,1\n".encode("latin-1"), 1, "not UTF-8"),
    "a blank line": ("user_id,item_id\nu,a\n\nv,b\n", 3, "is blank"),
    "the first of two faults": (HEADER + 'u,a,1\nu,b,2,7" x\n', 2, "has 3 fields"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_fault_is_named_by_file_and_line(tmp_path, case, zipped):
    text, line, fragment = FAULTS[case]
    data = text if isinstance(text, bytes) else text.encode()
    path = write(tmp_path / "e.csv", gzip.compress(data) if zipped else data)
    message = refusal(load, {"format": "csv", "path": path})
    assert message.startswith(f"{path}: line {line}") and fragment in message


@pytest.mark.parametrize("kind", ["users", "items"])
def test_tables_are_refused_like_events(tmp_path, kind):
    events = write(tmp_path / "e.csv", HEADER + "u,a,1,x\n")
    table = write(tmp_path / "t.csv", f'{kind[:-1]}_id,title\nu,x\na,LP 12" disc\n')
    message = refusal(load, {"format": "csv", "path": events, kind: table})
    assert message.startswith(f"{table}: line 3: a quote inside a field")
    table.write_bytes(b"user_id,item_id\r1,2\r")
    assert "carriage return" in refusal(load, {"format": "csv", "path": events, kind: table})


def test_atomic_files_take_quotes_literally_but_no_lone_returns(tmp_path):
    path = write(tmp_path / "d.inter", 'user_id:token\titem_id:token\nu\t12" disc\nu\t"b\n')
    dataset = load({"format": "atomic", "path": tmp_path})
    assert dataset.item_ids.tolist() == ['"b', '12" disc']
    write(path, "user_id:token\titem_id:token\nu\ta\ru\tb\n")
    message = refusal(load, {"format": "atomic", "path": tmp_path})
    assert message.startswith(f"{path}: line 2: a carriage return")


def test_well_formed_quotes_are_read_as_the_csv_module_reads_them(tmp_path, monkeypatch):
    generator = random.Random(0)
    alphabet = ['"', ",", "\n", "\r\n", "\r", "x", " ", "é", "ab"]
    rows = [
        [f"u{n}", "".join(generator.choices(alphabet, k=generator.randrange(5))), f"i{n % 40}"]
        for n in range(1500)
    ]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["user_id", "note", "item_id"], *rows])
    path = write(tmp_path / "e.csv", text.getvalue())
    for chunk in (1 << 22, 100):  # records that reach over the border of two chunks
        monkeypatch.setattr(records, "_CHUNK", chunk)
        file = readers.open_csv(path)
        assert file.records == len(rows)
        frame = delimited.read_columns(file, dict.fromkeys(file.names, pl.String))
        assert frame.rows() == [tuple(row) for row in rows]
        for row in (0, 700, len(rows) - 1):
            start = text.getvalue().encode().index(f"\nu{row},".encode()) + 1
            assert delimited.line_of(file, row) == path.read_bytes()[:start].count(b"\n") + 1


def test_line_ends_marks_and_missing_ends_are_all_right(tmp_path):
    for text in (
        b'\xef\xbb\xbf"user_id",item_id\r\nu,"a"\r\n',
        b"user_id,item_id\nu,a",
        b"user_id,item_id\r\nu,a\r\n",
        b"user_id,item_id\nu,a\r\n",
        b"user_id,item_id\r\nu,a\r",
        gzip.compress(b"user_id,item_id\n") + gzip.compress(b"u,a\n"),
    ):
        path = write(tmp_path / "e.csv", text)
        assert events_of(path) == [("u", "a")]


@pytest.mark.parametrize("kind", ["path", "items"])
def test_pipes_and_devices_are_no_tables(tmp_path, kind):
    config = {"format": "csv", "path": write(tmp_path / "e.csv", HEADER + "u,a,1,x\n")}
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert f"{path} is a pipe or a device" in refusal(load, {**config, kind: path})


@pytest.mark.parametrize("header", ["user_id,item_id", "user_id,item_id,timestamp"])
def test_bytes_after_the_gzip_data(tmp_path, header):
    text = header.encode() + b"\n" + header.replace("_id", "").encode() + b"\n"
    for rest, fragment in ((b"x", "corrupt gzip file"), (bytes(100), "gzip header")):
        path = write(tmp_path / "e.csv.gz", gzip.compress(text) + rest)
        message = refusal(load, {"format": "csv", "path": path})
        assert message.startswith(f"{path}: ") and fragment in message


def test_a_panic_of_the_reader_is_one_line(tmp_path, monkeypatch, capfd):
    path = write(tmp_path / "e.csv", HEADER + "u,a,1,x\n")

    def panic(*args, **kwargs):
        os.write(2, b"thread 'main' panicked at a long place\n")
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(pl, "scan_csv", panic)
    message = refusal(load, {"format": "csv", "path": path})
    assert message == f"{path}: cannot be read as a table (index out of bounds)"
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(pl, "scan_parquet", panic)
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(tmp_path / "e.parquet")
    message = refusal(load, {"format": "parquet", "path": tmp_path / "e.parquet"})
    assert "e.parquet: not a readable Parquet file" in message
    assert capfd.readouterr().err == ""


def test_what_is_printed_without_a_panic_is_printed_at_the_end(capfd):
    with quiet.standard_error(unless=ValueError):
        os.write(2, b"a warning\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "a warning\n"
    with pytest.raises(KeyError), quiet.standard_error(unless=ValueError):
        os.write(2, b"another\n")
        raise KeyError
    assert capfd.readouterr().err == "another\n"


def test_reading_needs_no_temporary_file(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "e.csv", "user_id,item_id\nu,a\n")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert events_of(path) == [("u", "a")]


def test_threads_hand_standard_error_back(capfd):
    def work():
        for _ in range(20):
            with quiet.standard_error(unless=ValueError):
                os.write(2, b".")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after")
    assert capfd.readouterr().err == "." * 80 + "after"


def test_records_read_are_compared_with_records_counted(tmp_path, monkeypatch):
    path = write(tmp_path / "e.csv", HEADER + "u,a,1,x\nu,b,2,y\n")
    scan = pl.scan_csv
    monkeypatch.setattr(pl, "scan_csv", lambda *args, **kwargs: scan(*args, **kwargs).head(1))
    message = refusal(load, {"format": "csv", "path": path})
    assert message.startswith(f"{path}: 2 records follow the header, but 1 were read")


@pytest.mark.parametrize(
    "text, line",
    [
        ("user_id," * 10_000, 1),
        (HEADER + 'u,a,1,"' + "x\n" * 50_000, 2),
        (HEADER + "u,a,1," + "x" * 100_000, 2),
    ],
)
def test_endless_records_are_read_in_bounded_memory(tmp_path, monkeypatch, text, line):
    sizes = []

    @contextlib.contextmanager
    def watched(path):
        with gzip.open(path) as stream:

            def read(size):
                sizes.append(size)
                return stream.read(size)

            yield types.SimpleNamespace(read=read)

    monkeypatch.setattr(records, "_CHUNK", 1000)
    monkeypatch.setattr(records, "LONGEST", 5000)
    monkeypatch.setattr(records, "open_bytes", watched)
    path = write(tmp_path / "e.csv.gz", gzip.compress(text.encode()))
    message = refusal(load, {"format": "csv", "path": path})
    assert f"line {line}: a record of more than" in message and "never closed" in message
    assert sum(sizes) < 20_000


def test_too_many_columns(tmp_path):
    path = write(tmp_path / "e.csv", "a," * 70_000 + "b\n")
    assert "line 1: 70,001 columns" in refusal(load, {"format": "csv", "path": path})


def test_a_table_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "e.csv", HEADER + "u,a,1,x\n" * 1000)
    frame = pl.DataFrame({"user_id": ["u"] * 1000, "item_id": ["a"] * 1000})
    frame.write_parquet(tmp_path / "e.parquet")
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    message = refusal(load, {"format": "csv", "path": path})
    assert message.startswith(f"{path}: 1,000 records need at least 46.9 KiB of memory, 9.8 KiB")
    message = refusal(load, {"format": "parquet", "path": tmp_path / "e.parquet"})
    assert "e.parquet: 1,000 rows need at least 15.6 KiB of memory" in message


def test_one_long_id_among_many_does_not_exhaust_memory(tmp_path, monkeypatch):
    text = "user_id,item_id\n" + "".join(f"u{n},a\n" for n in range(1000)) + "x" * 50_000 + ",a\n"
    path = write(tmp_path / "e.csv", text)
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    message = refusal(load, {"format": "csv", "path": path})
    assert message.startswith(
        f"{path}: 1,001 ids of up to 50,000 characters need at least 190.9 MiB"
    )


def test_faults_of_the_text_are_shown_without_control_characters(tmp_path):
    path = write(tmp_path / "e.csv", 'user_id,"a\n\x1b[2J"\nu,a,b\n')
    assert r"a\n\x1b[2J" in refusal(load, {"format": "csv", "path": path})
