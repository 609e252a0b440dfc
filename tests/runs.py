"""Whole runs for the tests that look at run directories: started, killed, read back."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny
from xrec_jax.api import run
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import prepare
from xrec_jax.data.world.vocabulary import KINDS, MOODS
from xrec_jax.joint import trainer
from xrec_jax.llm.model.config import LlamaConfig, from_hf
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.text.synthetic.taste_pairs import join_pair, taste_pair
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.recommender import RecommenderTask

CONFIG = str(tiny.CHECKOUT / "tests" / "tiny_config.py")


def once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """A folder that the first test process to ask for it fills, and the others wait for.

    With `XREC_TEST_RUNS`, a folder, it lies there and serves later sessions too: for those who run
    a few tests again and again, and know that what fills it has not changed.

    Args:
      factory: of the test session.
      name: of the folder, below the one that all processes of the session share.
      make: fills it; where it fails nobody takes what it left.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    if kept := os.environ.get("XREC_TEST_RUNS"):
        shared = pathlib.Path(kept)
        shared.mkdir(parents=True, exist_ok=True)
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run of all models, made once for all test files; copy it to change it."""
    return once(tmp_path_factory, "finished", lambda folder: run.run(tiny.config(), folder))


class Cut(Exception):  # noqa: N818 (not an error)
    """A run that a test cuts off."""


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Runs and command lines of the block take one device: it saves most of the compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_mesh", lambda config: use_mesh(tiny.mesh(1)))
        patch.setattr(run, "saved_mesh", lambda config: tiny.mesh(1))
        yield


@contextlib.contextmanager
def cut_after(step: int) -> Iterator[None]:
    """Ends a joint stage once the checkpoint of a step is on disk, as a kill would."""
    save = trainer._save

    def saved(checkpoints, state, *rest):
        save(checkpoints, state, *rest)
        if int(state.step) == step:
            checkpoints.wait()
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_save", saved)
        with contextlib.suppress(Cut):
            yield
            raise AssertionError(f"step {step} never came")


def _joint(folder: pathlib.Path) -> None:
    texts = [
        join_pair(taste_pair({"kind": ["bar"], "mood": [m]}, {"kind": [k]}))
        for k in KINDS
        for m in MOODS
    ]
    tiny.llama_directory(folder / "model", texts, ends=6.0, num_layers=1, max_positions=512)
    config = tiny.joint(folder / "model")
    with one_device():
        with cut_after(0):
            run.run(config, folder / "run")
        shutil.copytree(folder / "run", folder / "warm")
        run.run(config, folder / "run")


@pytest.fixture(scope="session")
def joint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the base `model`, a finished joint `run` on it, and `warm`, the same before its
    first round; made once for all test files; copy what is changed."""
    return once(tmp_path_factory, "joint", _joint)


def start(
    *arguments: str, devices: int = 1, limit: int = 0, **environment: str
) -> subprocess.Popen:
    """Starts `python -m xrec_jax` with fake CPU devices and the tests' compilation cache.

    Args:
      *arguments: of the command line.
      devices: how many.
      limit: seconds after which the process is ended, also one that catches SIGTERM; 0 for none.
      **environment: more variables.
    """
    guard = ["timeout", "--kill-after=5", str(limit)] if limit else []
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return subprocess.Popen(
        [*guard, sys.executable, "-m", "xrec_jax", *arguments],
        cwd=tiny.CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(tiny.CHECKOUT), **environment},
    )


def finish(process: subprocess.Popen, *, status: int = 0) -> tuple[str, str]:
    """Waits for a process of `start`; returns its output after checking its exit status."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
    return out, err


def metrics(workdir: pathlib.Path, stage: str = "") -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` (of one stage) without what depends on the machine."""
    path = workdir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [untimed(record) for record in records if record["stage"].startswith(stage)]


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what depends on the machine."""
    return {key: value for key, value in record.items() if not key.startswith("time/")}


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Digest of every file below a folder; folders count as well."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def last_checkpoint(workdir: pathlib.Path, name: str, seed: int = 0) -> dict[str, Any]:
    """Everything in the newest checkpoint of a system, on the host."""
    config = read_config(RunDir(workdir))
    mesh = tiny.mesh()
    with use_mesh(mesh):
        task = RecommenderTask(
            config, name, data=prepare(config.data), mesh=mesh, rundir=RunDir(workdir)
        )
        with Checkpoints(RunDir(workdir).checkpoints(task.stage(seed))) as checkpoints:
            state, data, progress = checkpoints.restore(task.initial_state(seed))
    return {"state": jax.device_get(state.saved()), "data": data, "progress": progress}


def assert_same_bits(left: Any, right: Any) -> None:
    """Two trees have the same structure and the same bits in every leaf."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, one), (_, other) in zip(flat(left), flat(right), strict=True):
        assert one.dtype == other.dtype, path
        assert one.tobytes() == other.tobytes(), path


def flat(tree: Any) -> list[tuple[str, np.ndarray]]:
    """Leaves of a tree with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]


def per_user(workdir: pathlib.Path) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Per-user arrays of every finished seed of a run."""
    found = {}
    for path in sorted((workdir / "per_user").rglob("*.npz")):
        with np.load(path) as file:
            found[str(path.relative_to(workdir))] = {key: file[key] for key in file.files}
    return found


def llama_config(directory: pathlib.Path) -> LlamaConfig:
    """The shape of a model's directory."""
    return from_hf(json.loads((directory / "config.json").read_text()))


@contextlib.contextmanager
def cut_at_save(step: int) -> Iterator[None]:
    """Ends a training stage once its checkpoint of a step is on disk, as a kill would."""
    save = Checkpoints.save

    def saved(self, state, data, progress):
        save(self, state, data, progress)
        if int(state.step) == step:
            self.wait()
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", saved)
        with pytest.raises(Cut):
            yield


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_processes(*arguments: str) -> list[tuple[str, str]]:
    """Runs a command as two processes with four devices each; what each printed."""
    port = free_port()
    started = [
        start(
            *arguments,
            devices=4,
            limit=200,
            XREC_COORDINATOR=f"127.0.0.1:{port}",
            XREC_PROCESSES="2",
            XREC_PROCESS=str(process),
        )
        for process in range(2)
    ]
    try:
        printed = [process.communicate() for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, printed, strict=True):
        assert process.returncode == 0, f"{out[-2000:]}\n{err[-4000:]}"
    return printed
