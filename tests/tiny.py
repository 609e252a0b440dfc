"""The tiny world and the tiny configurations that tests share."""

from __future__ import annotations

import functools
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from xrec_jax.parallel.mesh import make_mesh
from xrec_jax.pipelines import defaults
from xrec_jax.pipelines.datasets import RunData, prepare

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the real data in ../shared/data, which is not here"
)

# Odd sizes on purpose: tables are padded, batches do not divide evenly.
WORLD = dict(seed=3, num_users=75, num_items=61, mean_visits=11.0)

MODELS = {
    "popularity": {},
    "bpr": dict(dim=12, l2=0.01, negatives=2),
    "lightgcn": dict(dim=12, layers=2, stddev=0.1),
    "sasrec": dict(dim=12, layers=2, heads=2, inner=20, length=9, dropout=0.2),
}


def config(*models: str, **train: object) -> ConfigDict:
    """A config of the tiny world that trains `models` for two epochs."""
    made = defaults.base()
    made.name = "tiny"
    made.data.world.update(WORLD)
    settings = dict(batch_size=64, epochs=2, learning_rate=0.01, checkpoint_every=1) | train
    for model in models or MODELS:
        made.recommend[model] = defaults.system(model, train=settings, **MODELS[model])
    made.ranking.resamples = 50
    return made


@functools.cache
def data() -> RunData:
    """The tiny world's data."""
    return prepare(config("popularity").data)


@functools.cache
def mesh(devices: int = 1, fsdp: int = 1, tensor: int = 1):
    """A mesh on the first `devices` fake devices."""
    return make_mesh(-1, fsdp, tensor, devices=jax.devices()[:devices])
