"""Two real processes with four devices each against one process with eight."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests import runs, tiny
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import peers
from xrec_jax.core.runtime.distributed import initialize

STEPS = {"sasrec": 4, "lightgcn": 22}


def config():
    """The tiny config with every step logged, and an item table that the first process begins."""
    made = tiny.config(*STEPS, log_every=1)
    made.recommend.sasrec.hparams.item_init = "cooccurrence"
    return made


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("processes") / "one"
    run.run(config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def two(one):
    """The run of two processes, and what they printed.

    SASRec is trained from the start; LightGCN goes on from the first epoch of `one`.
    """
    workdir = one.parent / "two"
    first = "checkpoints/recommend/lightgcn/0/11"
    shutil.copytree(one / first, workdir / first)
    printed = runs.two_processes(
        "run",
        f"--config={runs.CONFIG}:{','.join(STEPS)}",
        f"--workdir={workdir}",
        *(f"--config.recommend.{name}.train.log_every=1" for name in STEPS),
        "--config.recommend.sasrec.hparams.item_init=cooccurrence",
    )
    return workdir, printed


def test_only_the_first_process_speaks(two):
    _, printed = two
    assert "on 8 cpu devices" in printed[0][0] and "test/ndcg@10" in printed[0][0]
    own = [line for line in printed[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert own == []


@pytest.mark.parametrize("name", STEPS)
def test_the_same_losses(one, two, name):
    expected, found = (runs.metrics(workdir, f"recommend/{name}") for workdir in (one, two[0]))
    if name == "lightgcn":
        expected = expected[11:]
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert found[-1]["step"] == STEPS[name]
    for line, other in zip(found, expected, strict=True):
        for key in ("train/loss", "train/grad_norm"):
            assert line[key] == pytest.approx(other[key], rel=2e-6), (line["step"], key)


@pytest.mark.parametrize("name", STEPS)
def test_the_checkpoint_is_one_that_any_number_of_processes_reads(one, two, name):
    expected, found = (runs.last_checkpoint(workdir, name) for workdir in (one, two[0]))
    assert int(found["state"]["step"]) == STEPS[name] and found["data"] == expected["data"]
    assert found["progress"]["best_step"] == expected["progress"]["best_step"]
    flat = zip(*(runs.flat(c["state"]["params"]) for c in (found, expected)), strict=True)
    for (path, one_array), (_, other) in flat:
        np.testing.assert_allclose(one_array, other, rtol=0, atol=1e-5, err_msg=path)


def test_the_same_evaluation(one, two):
    expected, found = (
        json.loads((workdir / "evaluation.json").read_text())["recommend"]
        for workdir in (one, two[0])
    )
    assert found.keys() == expected.keys() == {*STEPS, "upper_bound"}
    for name, numbers in expected.items():
        for metric, entry in numbers.items():
            assert found[name][metric]["value"] == pytest.approx(entry["value"], abs=1e-6), metric
            assert found[name][metric]["count"] == entry["count"]
    assert runs.per_user(two[0]).keys() == runs.per_user(one).keys()


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch):
    """Nor does it wait for files that the first one may not have written yet."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run.run(tiny.config("popularity"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The environment


@pytest.mark.parametrize(
    "environment",
    [{}, {"XREC_PROCESSES": "2"}, {"XREC_PROCESSES": "two", "XREC_PROCESS": "0"}],
    ids=["neither", "no process", "no number"],
)
def test_an_incomplete_environment_is_named(environment, monkeypatch):
    monkeypatch.setenv("XREC_COORDINATOR", "127.0.0.1:1")
    for name in ("XREC_PROCESSES", "XREC_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"XREC_PROCESSES .* XREC_PROCESS"):
        initialize()


def test_without_a_coordinator_nothing_is_started(monkeypatch):
    monkeypatch.delenv("XREC_COORDINATOR", raising=False)
    initialize()


def training_pair(workdir):
    """Two processes in the middle of a training that would take hours."""
    port = runs.free_port()
    started = [
        runs.start(
            "run",
            f"--config={runs.CONFIG}:bpr",
            f"--workdir={workdir}",
            "--config.recommend.bpr.train.epochs=100000",
            "--config.recommend.bpr.train.log_every=1",
            devices=2,
            XREC_COORDINATOR=f"127.0.0.1:{port}",
            XREC_PROCESSES="2",
            XREC_PROCESS=str(process),
        )
        for process in range(2)
    ]
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and started[0].poll() is None
        time.sleep(0.1)
    return started


def test_a_sigterm_to_one_process_stops_both(tmp_path):
    workdir = tmp_path / "w"
    started = training_pair(workdir)
    try:
        started[0].send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [err.strip().splitlines()[-1] for _, err in printed]
    assert [process.returncode for process in started] == [143, 143], printed
    assert said[0] == said[1] and "recommend/bpr/0: saved at step" in said[0]
    step = int(said[0].split("saved at step ")[1].split()[0])
    assert (workdir / "checkpoints/recommend/bpr/0" / str(step)).is_dir()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_one_line(victim, tmp_path):
    started = training_pair(tmp_path / "w")
    survivor = started[1 - victim]
    try:
        started[victim].kill()
        _, error = survivor.communicate(timeout=60)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    (line,) = error.splitlines()
    assert line.startswith(f"xrec: error: process {victim}") and "is gone" in line
    assert "Start all processes again" in line and survivor.returncode == peers.STATUS
