"""One process at a time: who is refused, what is taken over, what is left."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import process
from xrec_jax.core.storage import files, lock
from xrec_jax.core.storage.lock import Lock

HELD = """
import sys, time
from xrec_jax.core.storage.lock import Lock
Lock(sys.argv[1], what="it", instead="go away").acquire()
print("held", flush=True)
time.sleep(60)
"""


def make(path: pathlib.Path) -> Lock:
    return Lock(path, what="runs/a", instead="give another --workdir")


def write(path: pathlib.Path, **changed) -> None:
    """A lock file as this process would leave it, with other values."""
    record = {**process.this()._asdict(), "since": "2026-01-02T03:04:05+00:00", **changed}
    path.write_text(json.dumps(record))


def refused(path: pathlib.Path) -> str:
    """The one line that both ways of asking end in; nothing is changed by them."""
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    messages = []
    for ask in (make(path).check, make(path).acquire):
        with pytest.raises(UserError) as error:
            ask()
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    return messages[0]


@pytest.fixture
def ended() -> int:
    """The number of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_file_names_its_holder_and_goes_with_it(tmp_path):
    one = make(tmp_path / "new" / "folder" / ".lock")
    assert one.acquire() == ""
    record = json.loads((tmp_path / "new/folder/.lock").read_text())
    assert process.Process.of(record) == process.this() and process.this().runs()
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == [".lock"]
    one.release()
    assert [*tmp_path.iterdir()] == []  # folders that were made for it go as well
    one.release()


def test_folders_with_content_stay(tmp_path):
    one = make(tmp_path / "new" / ".lock")
    one.acquire()
    (tmp_path / "new" / "kept").touch()
    one.release()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    path = tmp_path / ".lock"
    child = subprocess.Popen(
        [sys.executable, "-c", HELD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout.readline() == "held\n"
    message = refused(path)
    assert f"process {child.pid} on {process.this().host}" in message
    assert message.startswith("runs/a is in use by ") and "give another --workdir" in message
    # Not even where the record seems to be another host's, or the process gone: the system knows.
    record = json.loads(path.read_text())
    with path.open("r+") as file:
        file.write(json.dumps({**record, "host": "x" * len(record["host"])}))
    assert f"on {'x' * len(record['host'])}, since" in refused(path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with path.open("r+") as file:
        file.write(json.dumps(record))
    one = make(path)
    one.check()
    note = one.acquire()
    assert note.startswith("runs/a: taken over from process ") and str(child.pid) in note
    one.release()
    child.stdout.close()


def test_a_process_that_is_gone_leaves_nothing_to_wait_for(tmp_path, ended):
    write(tmp_path / ".lock", pid=ended)
    assert "which is gone" in make(tmp_path / ".lock").acquire()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("changed", [{"start": "1"}, {"boot": "of last week"}])
def test_a_number_that_is_used_again_is_another_process(tmp_path, changed):
    """In a container every process is number 1; its start tells them apart."""
    write(tmp_path / ".lock", pid=os.getppid(), **changed)
    assert "taken over" in make(tmp_path / ".lock").acquire()


def test_a_process_that_runs_is_believed_where_the_system_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    parent = os.getppid()
    write(tmp_path / ".lock", pid=parent, start=process._start(parent))
    assert f"process {parent}" in refused(tmp_path / ".lock")


def test_another_host_is_not_guessed_about(tmp_path):
    write(tmp_path / ".lock", host="node17", pid=1)
    message = refused(tmp_path / ".lock")
    assert "process 1 on node17, since 2026-01-02T03:04:05+00:00" in message
    assert f"if that process is gone, delete {tmp_path / '.lock'}" in message


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"host": "a", "pid": "1"}', "\0\0", '{"pid": 0}']
)
def test_a_lock_that_says_nothing_is_not_taken(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    assert "delete that file" in refused(tmp_path / ".lock")


def test_without_links_the_lock_is_as_exclusive(tmp_path, monkeypatch):
    def no_link(*arguments):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_link)
    one = make(tmp_path / ".lock")
    assert one.acquire() == ""
    assert "in use" in refused(tmp_path / ".lock")
    one.release()
    assert [*tmp_path.iterdir()] == []


def test_a_lock_of_somebody_else_is_not_released(tmp_path):
    one = make(tmp_path / ".lock")
    one.acquire()
    (tmp_path / ".lock").unlink()  # by hand
    write(tmp_path / ".lock", pid=os.getppid())
    one.release()
    assert (tmp_path / ".lock").exists()


def test_an_object_store_is_locked_as_well_as_it_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "is_local", lambda path: False)
    one = make(tmp_path / ".lock")
    one.acquire()
    assert "in use" in refused(tmp_path / ".lock")
    one.release()
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/\.lock"):
        make(tmp_path / "file" / ".lock").acquire()


# Temporary names


def test_names_differ_within_a_process_and_between_containers():
    names = {files.temporary_sibling(pathlib.Path("a/b.json")).name for _ in range(50)}
    assert len(names) == 50
    assert all(str(process.this().start) in name for name in names)


def test_what_dead_processes_left_goes_and_nothing_else(tmp_path, ended):
    parent = os.getppid()
    left = [f".a.json.{ended}-12-0a1b2c3d.tmp", f".a.json.{parent}-1-0a1b2c3d.tmp", ".a.json.1.tmp"]
    kept = [
        f".a.json.{parent}-{process._start(parent)}-0a1b2c3d.tmp",
        ".a.json.tmp",
        "a.json",
        ".other.json.1.tmp",
        ".a.json.x.tmp",
    ]
    for name in [*left, *kept]:
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "a.json")
    assert {file.name for file in tmp_path.iterdir()} == {*kept}
    (tmp_path / "below" / ".base.1.tmp" / "inner").mkdir(parents=True)
    files.remove_leftovers(tmp_path, below=True)
    assert {file.name for file in tmp_path.rglob("*")} == {*kept} - {kept[3]} | {"below"}
    files.remove_leftovers(tmp_path / "none" / "a.json")
