"""Two commands at once: the second ends in one line, and nothing of it is written."""

import json
import os
import shutil

import numpy as np
import pytest

from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax.api import explain as explain_command
from xrec_jax.api import recommend, run
from xrec_jax.api import report as report_command
from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import process
from xrec_jax.parallel import exclusive


def held(path, **changed):
    """A lock that a living process has: the one that started the tests."""
    parent = os.getppid()
    holder = process.Process(process.this().host, parent, process._start(parent) or "", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**holder._asdict(), "since": "today", **changed}))
    return path


@pytest.fixture
def copied(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def refused(command, folder):
    """What a command says that must leave a folder as it is."""
    before = runs.contents(folder)
    with pytest.raises(UserError) as error:
        command()
    assert runs.contents(folder) == before
    return str(error.value)


def test_a_link_to_nowhere_is_no_directory(tmp_path):
    (tmp_path / "w").symlink_to(tmp_path / "gone")
    said = refused(lambda: run.run(tiny.config("popularity"), tmp_path / "w"), tmp_path)
    assert f"{tmp_path / 'w'} is a link to {tmp_path / 'gone'}, which is not there" in said


def test_figures_and_marks_stay_where_evaluate_cannot_end(copied):
    shutil.move(copied / "checkpoints" / "recommend" / "bpr", copied / "away")
    said = refused(lambda: run.evaluate(copied), copied)
    assert "recommend/bpr/0 has no checkpoint" in said
    assert f"delete {copied / 'per_user' / 'recommend' / 'bpr' / '0.npz'} and run" in said
    shutil.move(copied / "away", copied / "checkpoints" / "recommend" / "bpr")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 5}\n{}\n')
    assert "metrics.jsonl, record" in refused(lambda: run.evaluate(copied), copied)
    assert "metrics.jsonl, record" in refused(lambda: run.run(tiny.config(), copied), copied)


def test_a_second_run_is_refused_before_it_reads_data(tmp_path, monkeypatch):
    held(tmp_path / "w" / ".lock")
    monkeypatch.setattr(run, "prepare", None)
    said = refused(lambda: run.run(tiny.config("popularity"), tmp_path / "w"), tmp_path)
    assert said.startswith(f"{tmp_path / 'w'} is in use by process {os.getppid()} on ")
    assert said.endswith("wait for it or give another --workdir")


def test_a_second_that_began_in_the_same_moment_is_refused_too(tmp_path, monkeypatch):
    """Its early look found nothing; the lock itself decides."""
    config, prepare = tiny.config("popularity"), run.prepare

    def slow(section):
        held(tmp_path / "w" / ".lock")
        return prepare(section)

    monkeypatch.setattr(run, "prepare", slow)
    with pytest.raises(UserError, match="is in use by process"):
        run.run(config, tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir()] == [".lock"]


def test_a_lock_of_a_dead_run_is_taken_over_and_what_it_left_goes(tmp_path, capsys):
    held(tmp_path / "w" / ".lock", start="1")
    (tmp_path / "w" / "explanations").mkdir()
    (tmp_path / "w" / "explanations" / ".pairs.jsonl.1-1-0a0b0c0d.tmp").write_text("{")
    config = tiny.config("popularity")
    run.run(config, tmp_path / "w")
    assert f"taken over from process {os.getppid()}" in capsys.readouterr().out
    assert list((tmp_path / "w").rglob(".*")) == []


def test_a_refused_config_leaves_nothing(tmp_path):
    run.run(tiny.config("popularity"), tmp_path / "w")
    other = tiny.config("popularity")
    other.seeds = (5,)
    assert "seeds" in refused(lambda: run.run(other, tmp_path / "w"), tmp_path)


def test_evaluate_is_refused_while_a_run_writes(copied):
    held(copied / ".lock", host="node4")
    said = refused(lambda: run.evaluate(copied), copied)
    assert f"if that process is gone, delete {copied / '.lock'}" in said


def test_a_run_that_is_going_on_can_be_read(copied, tmp_path):
    held(copied / ".lock")
    recommend.recommend(str(copied), users="u00003", top_k=2, output=str(tmp_path / "r.jsonl"))
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == 2
    report_command.report(copied)
    assert (copied / "report.html").exists()


@pytest.mark.parametrize(
    "command",
    [
        lambda run, output: recommend.recommend(run, users="u00003", top_k=1, output=output),
        lambda run, output: explain_command.explain(run, users="u00003", top_k=1, output=output),
    ],
)
def test_one_command_at_a_time_on_an_output(copied, tmp_path, command):
    output = tmp_path / "out" / "a.jsonl"
    lock = held(output.parent / ".a.jsonl.lock")
    said = refused(lambda: command(str(copied), str(output)), tmp_path / "out")
    assert said.startswith(f"{output} is in use by ") and said.endswith("give another --output")
    held(lock, start="1")
    (output.parent / ".a.jsonl.1-1-0a0b0c0d.tmp").touch()
    command(str(copied), str(output))
    assert [path.name for path in output.parent.iterdir()] == ["a.jsonl"]


def test_all_processes_of_a_run_learn_of_a_refusal(tmp_path, monkeypatch):
    """The first one's words reach the others, who look at nothing themselves."""
    sent = []

    def broadcast(buffer):
        sent.append(np.array(buffer))
        return sent[0]

    monkeypatch.setattr(exclusive.jax, "process_count", lambda: 2)
    monkeypatch.setattr(exclusive.multihost_utils, "broadcast_one_to_all", broadcast)
    held(tmp_path / "ü" / ".lock")
    messages = []
    for first in (True, False):
        monkeypatch.setattr(exclusive, "is_primary", lambda first=first: first)
        with pytest.raises(UserError) as error:
            exclusive.refuse_second(exclusive.of_directory(tmp_path / "ü"))
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "ü is in use by process" in messages[0]
