"""Disks that do not take what is written: one line with what, where, and how much is free."""

import contextlib
import dataclasses
import errno
import os
import re
import resource

import jax.numpy as jnp
import pytest

from tests.training import toy
from xrec_jax import cli
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.storage import disk, files
from xrec_jax.core.storage.disk import WriteError, unforeseen, write_error, writing
from xrec_jax.llm.io.hf_export import new_directory
from xrec_jax.training.checkpoint import Checkpoints


@contextlib.contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_full_disk_says_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1_500)
    for number, reason in (
        (errno.ENOSPC, "No space left on device"),
        (errno.EDQUOT, "Disk quota exceeded"),
    ):
        told = write_error(tmp_path / "f", full(number), what="the model", needed=2_500_000)
        assert str(told) == (
            f"cannot write the model to {tmp_path / 'f'}: {reason} (needs up to 2.5 MB, 1.5 KB are "
            "free there); make room"
        )
    told = write_error(tmp_path / "f", full(errno.EROFS), then="run it again")
    assert str(told) == (
        f"cannot write {tmp_path / 'f'}: Read-only file system; mend that and run it again"
    )


def test_free_space_is_that_of_the_nearest_folder(tmp_path):
    expected = os.statvfs(tmp_path)
    found = disk.free_bytes(tmp_path / "not" / "yet")
    assert found == pytest.approx(expected.f_bavail * expected.f_frsize, rel=0.2)
    assert disk.free_bytes("gs://bucket/run") is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (full(), errno.ENOSPC),
        (ValueError('RESOURCE_EXHAUSTED: "x": No space left on device [28]'), errno.ENOSPC),
        (RuntimeError("No space left on device (os error 28)"), errno.ENOSPC),
        (ValueError("nothing of the kind"), 0),
    ],
)
def test_the_code_of_an_error_that_a_library_passed_on(error, code):
    assert disk.error_code(error) == code


def test_only_errors_of_a_disk_are_taken(tmp_path):
    for error in (full(), ValueError("x: Read-only file system")):
        with pytest.raises(WriteError), writing(tmp_path):
            raise error
    for error in (ValueError("no"), UserError("mine"), KeyError("k")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_errors_that_nobody_foresaw(tmp_path):
    told = unforeseen(full(), "place")
    assert isinstance(told, WriteError) and str(told).startswith("cannot write place: No space")
    named = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file")
    assert str(unforeseen(named, "place")) == "/some/file: Permission denied"
    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no", "f")):
        assert unforeseen(error, "place") is None


def test_the_command_line_tells_an_unforeseen_one_in_one_line(tmp_path, monkeypatch, capsys):
    def fails(values):
        raise full(errno.EDQUOT)

    verb = dataclasses.replace(cli.VERBS["report"], run=fails)
    monkeypatch.setitem(cli.VERBS, "report", verb)
    assert cli.main(["report", f"--workdir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"xrec: error: cannot write {tmp_path}: Disk quota exceeded (")
    assert told.count("\n") == 1


# Files that really cannot grow


def test_a_file_that_may_not_grow(tmp_path):
    files.write_text(tmp_path / "f.json", "old")
    with largest_file(100), pytest.raises(WriteError) as caught:
        files.write_text(tmp_path / "f.json", "x" * 1000)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'f.json'}: File too large (")
    assert (tmp_path / "f.json").read_text() == "old" and len([*tmp_path.iterdir()]) == 1


def test_a_log_that_may_not_grow_loses_no_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write("stage", 1, {"a/b": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    named = re.escape(f"cannot write {tmp_path / 'metrics.jsonl'}: File too large")
    with largest_file(size + 5), pytest.raises(WriteError, match=named):
        writer.write("stage", 2, {"a/b": 2.0})
    writer.rewind("stage", 1)  # as the rerun does
    writer.write("stage", 2, {"a/b": 2.0})
    writer.close()
    assert [line["step"] for line in files.read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_checkpoint_that_may_not_grow(tmp_path):
    def at(step):
        return toy.initial().replace(step=jnp.int32(step))

    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(at(1), {"step": 1}, {"best": None})
    with pytest.raises(WriteError) as caught, Checkpoints(tmp_path / "c") as checkpoints:
        with largest_file(300):
            checkpoints.save(at(2), {"step": 2}, {"best": None})
            checkpoints._write.join()
        checkpoints.check()
    message = str(caught.value)
    assert message.startswith(f"cannot write the checkpoint of step 2 to {tmp_path / 'c'}: File to")
    assert message.endswith("run the same command again: it goes on from step 1")
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 1
        checkpoints.save(at(2), {"step": 2}, {"best": None})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 2


def test_a_model_that_may_not_grow_leaves_nothing(tmp_path):
    with (
        largest_file(1000),
        pytest.raises(WriteError, match=r"cannot write .*model: File too large"),
        new_directory(tmp_path / "model") as folder,
    ):
        (folder / "weights").write_bytes(bytes(4000))
    assert not any(tmp_path.iterdir())
