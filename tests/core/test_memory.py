"""What is left of the machine's memory, and the refusal of what does not fit."""

import gzip

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory
from xrec_jax.core.storage import files

GIB = 1 << 30


def machine(tmp_path, monkeypatch, *, free=8 * GIB, group=None):
    """A machine with `free` bytes, and perhaps a control group: limit, usage, file pages of it."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {free >> 10} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    paths = tuple(tmp_path / name for name in ("limit", "usage", "stat"))
    monkeypatch.setattr(memory, "_CGROUPS", (paths,))
    if group:
        limit, usage, pages = group
        for path, text in zip(paths, (limit, usage, f"anon 5\ninactive_file {pages}"), strict=True):
            path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    "group, expected",
    [
        (None, 8 * GIB),
        (("max", 0, 0), 8 * GIB),
        ((2**63 - 4096, GIB, 0), 8 * GIB),
        ((4 * GIB, GIB, 0), 3 * GIB),
        ((4 * GIB, 3 * GIB, 2 * GIB), 3 * GIB),
        ((GIB, 2 * GIB, 0), 0),
    ],
)
def test_the_smaller_of_machine_and_container_counts(tmp_path, monkeypatch, group, expected):
    machine(tmp_path, monkeypatch, group=group)
    assert memory.available() == expected


def test_nothing_is_refused_where_the_system_does_not_tell(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    assert memory.available() is None
    memory.require(1 << 80, "everything")


def test_a_refusal_names_both_sizes(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch, free=3 * GIB // 2)
    memory.require(GIB, "a table")
    with pytest.raises(UserError) as caught:
        memory.require(2048 * GIB, "e.csv: 9 records")
    assert str(caught.value) == (
        "e.csv: 9 records need at least 2.0 TiB of memory, 1.5 GiB are available"
    )


def test_a_text_file_that_unzips_beyond_memory_is_refused_in_between(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "text of some length"}\n' * 1000))
    monkeypatch.setattr(files, "_WATCHED", 1000)
    assert len(files.read_records(path)) == 1000
    machine(tmp_path, monkeypatch, free=10_000)
    with pytest.raises(
        UserError, match=r"x.jsonl.gz, line 36: the lines that follow need at least"
    ):
        files.read_records(path)


def test_all_there_is_counts_swap_and_the_container(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch)
    memory._MEMINFO.write_text("MemTotal: 4096 kB\nSwapTotal: 1024 kB\nMemAvailable: 1 kB\n")
    assert memory.total() == 5 << 20
    machine(tmp_path, monkeypatch, group=(1 << 20, 0, 0))
    assert memory.total() == 99 << 10
    memory._MEMINFO.write_text("MemTotal: 4096 kB\n")
    assert memory.total() == 1 << 20
