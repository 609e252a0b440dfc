"""Odd environments: no device, no working directory, closed streams, an ASCII locale, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax import cli
from xrec_jax.core.runtime import startup

RUN = ["run", f"--config={runs.CONFIG}:popularity"]


@pytest.mark.parametrize(
    ("platforms", "device"), [("tpu", "tpu"), ("", "nonsense"), ("cuda", "cuda")]
)
def test_a_platform_that_is_not_there_is_one_line(platforms, device, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr("xrec_jax.api.run.run", lambda *_: jax.devices(device))
    assert cli.main([*RUN, f"--workdir={tmp_path}/w"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX finds no device" in line and "JAX_PLATFORMS=cpu" in line and device in line
    assert (f"with JAX_PLATFORMS={platforms}:" in line) == bool(platforms)


def test_other_errors_keep_their_stack(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr("xrec_jax.api.run.run", fails)
    with pytest.raises(RuntimeError, match="Unable to initialize backend"):
        cli.main([*RUN, f"--workdir={tmp_path}/w"])


def test_a_working_directory_that_was_deleted_is_one_line(monkeypatch, capsys, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main([*RUN, "--workdir=w"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the working directory does not exist any more" in line
    assert cli.main(["run", "--help"]) == 0


def test_closed_streams_are_opened_onto_nothing(tmp_path):
    """Else what a library prints lands in the next file that is opened."""
    code = (
        "import os, sys\n"
        "from xrec_jax.core.runtime import startup\n"
        "startup.open_standard_streams()\n"
        f"file = open({str(tmp_path / 'data')!r}, 'w')\n"
        "assert file.fileno() > 2\n"
        "print('out'); print('error', file=sys.stderr); os.write(2, b'native')\n"
        "sys.stderr.isatty(), sys.stdin.read()\n"
    )
    line = f'exec {sys.executable} -c "$CODE" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line], cwd=tiny.CHECKOUT, env={**os.environ, "CODE": code})
    assert done.returncode == 0 and (tmp_path / "data").read_text() == ""


def test_a_strange_environment_changes_nothing(finished, tmp_path):  # noqa: F811
    """An ASCII locale, no home, no folder for temporary files, no docstrings, no stream."""
    workdir, output = tmp_path / "Läufe 東京", tmp_path / "größte.jsonl"
    shutil.copytree(finished, workdir)
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "TMPDIR": "/nowhere",
        "PYTHONOPTIMIZE": "2",
        "CUDA_VISIBLE_DEVICES": "none of them",
    }
    del environment["HOME"]
    line = f'exec {sys.executable} -m xrec_jax "$@" >&- 2>&-'
    words = [f"--workdir={workdir}", f"--output={output}", "--users=u00001,u00002", "--top_k=3"]
    done = subprocess.run(
        ["sh", "-c", line, "xrec", "recommend", *words], cwd=tiny.CHECKOUT, env=environment
    )
    assert done.returncode == 0
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["user"] for record in records] == ["u00001"] * 3 + ["u00002"] * 3


def test_ctrl_c_in_training_saves_and_prints_one_line(tmp_path):
    process = runs.start(
        "run",
        f"--config={runs.CONFIG}:bpr",
        f"--workdir={tmp_path}/w",
        "--config.recommend.bpr.train.epochs=100000",
        "--config.recommend.bpr.train.log_every=1",
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "w" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = runs.finish(process, status=130)
    (line,) = error.splitlines()
    step = int(line.split("saved at step ")[1].split()[0])
    assert "after SIGINT; run the same command again" in line
    assert (tmp_path / "w/checkpoints/recommend/bpr/0" / str(step)).is_dir()


def test_values_that_jax_refuses_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError):
        startup.import_jax()

    class Refuses:
        def find_spec(self, name, *_):
            if name == "jax":
                raise ValueError("invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'")

    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    with pytest.raises(startup.UserError, match="JAX cannot start: invalid truth value 'maybe'"):
        startup.import_jax()


def test_output_on_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path):
    code = (
        "import sys\n"
        "from xrec_jax.core.runtime.terminal import show\n"
        "show('first'); show('second')\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
        "show('error', error=True)\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tiny.CHECKOUT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0 and (tmp_path / "done").exists()
        first, second = done.stderr.splitlines()
        assert "cannot write standard output (No space left on device)" in first
        assert second == "error"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tiny.CHECKOUT, stdout=full, stderr=full
        )
        assert done.returncode == 0
