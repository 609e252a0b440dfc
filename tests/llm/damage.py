"""Ways to damage a checkpoint written by `tests.llm.models`: each returns `damage(path)`."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.llm.models import rewrite, write
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import hf


def weights(change):
    def damage(path):
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors")

    return damage


def content(change):
    def damage(path):
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return damage


def header(change):
    """Rewrites the header of the file."""

    def edit(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return content(edit)


def put(name, shape, dtype=np.float32):
    return weights(lambda w: w.update({name: np.zeros(shape, dtype)}))


def config(**changed):
    return lambda path: rewrite(path / "config.json", **changed)


def sharded(change):
    def damage(path):
        (path / "model.safetensors").unlink()
        write(path, shards=2)
        change(path)

    return damage


def index(**changed):
    return lambda path: rewrite(path / "model.safetensors.index.json", **changed)


def refused_unread(path, monkeypatch, damage, *named):
    """Checks that a damaged checkpoint is refused by name before any tensor is read."""
    write(path)
    damage(path)
    monkeypatch.setattr("xrec_jax.llm.io.tensorfile.Tensor.chunks", None)
    with pytest.raises(UserError) as error:
        hf.load_params(path)
    for name in named:
        assert name in str(error.value)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
