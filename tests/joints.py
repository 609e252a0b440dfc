"""A finished joint run opened again, and what tests of it read."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests import tiny
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import prepare
from xrec_jax.evaluation.faithfulness.planted import world_vocabulary
from xrec_jax.joint.granularity import open_setup
from xrec_jax.joint.recommender.fused import system_of
from xrec_jax.joint.setup import JointSetup
from xrec_jax.joint.sides import open_sides
from xrec_jax.joint.states.base import TEST
from xrec_jax.joint.trainer import ready, state_shape
from xrec_jax.llm import run_base
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.text.claims.reader import read_claims
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.recommender import RecommenderTask

ROUNDS = 2
TEXTS = {"joint", "sft", "untuned", "template", "stated", "planted"}
SYSTEMS = TEXTS | {"alone", "null", "features", "content", "shuffled", "masked_titles", "refit"}


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())["joint"]


def arrays(path):
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def seed_run(workdir, changes=None):
    """The seed of a run, maybe with other values of `joint`; inside a mesh."""
    config, rundir = read_config(RunDir(workdir)), RunDir(workdir)
    config.joint.update(changes or {})
    data, mesh = prepare(config.data), tiny.mesh(1)
    base = run_base.load_base(config, rundir, mesh)
    setup = open_setup(JointSetup(config, data, base, mesh=mesh, rundir=rundir))
    task = RecommenderTask(config, system_of(config), data=data, mesh=mesh, rundir=rundir)
    return open_sides(setup, task, 0)


def newest(one):
    """Everything in the newest checkpoint of the rounds."""
    folder = one.setup.shared.rundir.checkpoints("joint/0/rounds")
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore(state_shape(one))


@pytest.fixture(scope="module")
def opened(joint):  # noqa: F811
    """The finished seed and its last state."""
    with use_mesh(tiny.mesh(1)):
        one = seed_run(joint / "run")
        state, data, _ = newest(one)
        one = ready(one, state, None)
        yield SimpleNamespace(one=one, setup=one.setup, state=state, data=data)


def planted_f1(text, likes_and_dislikes):
    """F1 of the claims of a text, by hand."""
    claims = {
        (c.attribute, c.direction, str(c.value)) for c in read_claims(text, world_vocabulary())
    }
    true = {
        (name, side, value)
        for side, key in (("for", "likes"), ("against", "dislikes"))
        for name, values in likes_and_dislikes[key].items()
        for value in values
    }
    right = len(claims & true)
    return 2 * right / (len(claims) + len(true))


def counted_users(setup):
    """Users that figures are over: explained, and not known to the warm start."""
    states = setup.states
    taught = {int(states.user[s]) for s in states.teacher}
    return {int(user) for user in states.user[states.rows(TEST)]} - taught
