"""TensorBoard files: what they hold, and that training never waits for them."""

import json
import os
import struct
import threading
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from xrec_jax.core.board import Board
from xrec_jax.core.logging import MetricWriter


def events(folder):
    """Step (or kind) and values of every event below a folder; checks every checksum."""
    found = []
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + size]
            for part, checksum in ((data[:8], data[8:12]), (body, data[12 + size : 16 + size])):
                assert struct.unpack("<I", checksum) == (masked_crc32c(part),)
            event = event_pb2.Event.FromString(body)
            values = {value.tag: value.simple_value for value in event.summary.value}
            kind = "purge" if event.session_log.status == event_pb2.SessionLog.START else ""
            found.append((event.file_version or (kind, event.step), values))
            data = data[16 + size :]
    return found


def steps(workdir):
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line)["step"] for line in lines]


def test_event_files_hold_every_number_at_once(tmp_path):
    """No thread is started and nothing waits for a close, so a kill loses nothing."""
    before = threading.active_count()
    writer = MetricWriter(tmp_path)
    writer.rewind("a", 2)
    writer.write("a", 3, {"x/y@5": np.float32(0.5), "x/no": float("nan"), "x/count": 7})
    assert events(tmp_path / "tensorboard" / "a") == [
        ("brain.Event:2", {}),
        (("purge", 3), {}),
        (("", 3), {"x/y_5": 0.5, "x/count": 7.0}),
    ]
    assert threading.active_count() == before
    writer.close()


def test_an_object_store_gets_the_whole_file_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("xrec_jax.core.storage.files.is_local", lambda path: False)
    board = Board(tmp_path)
    board.scalars({"x/y": 2.0}, 4)
    assert not any(tmp_path.iterdir())
    board.close()
    assert events(tmp_path) == [("brain.Event:2", {}), (("", 4), {"x/y": 2.0})]


def test_a_folder_that_is_a_file_costs_one_line(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("mine")
    writer = MetricWriter(tmp_path)
    writer.rewind("a", 0)
    for step in range(30):
        writer.write("a", step, {"x/y": 1.0})
    writer.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert f"cannot write to {tmp_path / 'tensorboard'} (Not a directory)" in line
    assert "going on without it" in line and steps(tmp_path) == [*range(30)]
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_a_full_disk_costs_one_line(tmp_path, capsys):
    writer = MetricWriter(tmp_path)
    writer.write("a", 0, {"x/y": 1.0})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._boards["a"]._file)
    os.close(full)
    for step in range(1, 30):
        writer.write("a", step, {"x/y": 1.0})
    writer.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert "(No space left on device); going on without it" in line
    assert steps(tmp_path) == [*range(30)]


def test_a_failure_at_the_close_costs_one_line(tmp_path, capsys, monkeypatch):
    close = Board.close

    def fails(board):
        close(board)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Board, "close", fails)
    writer = MetricWriter(tmp_path)
    writer.write("a", 0, {"x/y": 1.0})
    writer.write("b", 0, {"x/y": 1.0})
    writer.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert "(Input/output error)" in line


@pytest.mark.parametrize("jump", [3e7, -3e9])
def test_a_clock_that_jumps_changes_nothing(jump, tmp_path, capsys, monkeypatch):
    writer, now = MetricWriter(tmp_path), time.time()
    writer.write("a", 0, {"x/y": 1.0})
    monkeypatch.setattr(time, "time", lambda: now + jump)
    for step in range(1, 30):
        writer.write("a", step, {"x/y": 1.0})
    writer.write("b", 0, {"x/y": 1.0})
    writer.close()
    assert capsys.readouterr().out == ""
    assert [kind[1] for kind, values in events(tmp_path / "tensorboard" / "a") if values] == [
        *range(30)
    ]
