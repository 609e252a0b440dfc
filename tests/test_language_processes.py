"""A base and an adapter made by two real processes, against one process with as many devices."""

import json

import numpy as np
import pytest

from tests import runs, tiny
from xrec_jax.api import run
from xrec_jax.llm.io.hf import load_params
from xrec_jax.llm.io.peft_io import base_of, load_adapter

CONFIG = """from tests import tiny


def get_config(arg=""):
    config = tiny.language("pretrain", "instruct")
    config.instruct.train.epochs = 1
    config.pretrain.train.epochs = 1
    return config
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    config = tiny.language("pretrain", "instruct")
    config.pretrain.train.epochs = config.instruct.train.epochs = 1
    folder = tmp_path_factory.mktemp("language")
    run.run(config, folder / "one")
    return folder / "one"


@pytest.fixture(scope="module")
def two(one):
    folder = one.parent
    (folder / "config.py").write_text(CONFIG)
    runs.two_processes("run", f"--config={folder / 'config.py'}", f"--workdir={folder / 'two'}")
    return folder / "two"


def test_the_same_base(one, two):
    found, expected = (load_params(workdir / "base") for workdir in (two, one))
    for path, array in runs.flat(expected):
        np.testing.assert_allclose(dict(runs.flat(found))[path], array, rtol=0, atol=2e-5)


def test_the_same_adapter(one, two):
    shape = runs.llama_config(one / "base")
    found, expected = (load_adapter(workdir / "adapter", shape) for workdir in (two, one))
    moved = 0.0
    for path, array in runs.flat(expected.params):
        np.testing.assert_allclose(dict(runs.flat(found.params))[path], array, rtol=0, atol=2e-4)
        moved = max(moved, float(np.abs(array).max()) if path.endswith("['b']") else 0.0)
    assert moved > 1e-3  # it was trained
    assert len(base_of(two / "adapter").fingerprint) == 64


def test_the_same_figures(one, two):
    found, expected = (
        json.loads((workdir / "evaluation.json").read_text()) for workdir in (two, one)
    )
    for system in ("base", "tuned"):
        ours, theirs = (f["instruct"][system]["held_out/loss"]["value"] for f in (found, expected))
        assert ours == pytest.approx(theirs, rel=1e-4)
