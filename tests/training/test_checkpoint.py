"""Checkpoints: exact round trips, other meshes, what is kept, damage."""

import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import runs, tiny
from tests.training import toy
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import put_batch, sharding, use_mesh
from xrec_jax.training.checkpoint import KEEP, Checkpoints
from xrec_jax.training.state import TrainState, initializer, shardings_of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def at(step: int) -> TrainState:
    """A state at `step` whose parameters say so."""
    state = toy.initial()
    params = {"w": jnp.full(4, step, jnp.float32)}
    return state.replace(step=jnp.int32(step), params=params)


def save(folder, *steps: int) -> None:
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(at(step), {"step": step}, {"best": None, "stopped": False})


def kept(folder) -> list[str]:
    return sorted((path.name for path in folder.iterdir()), key=lambda name: (len(name), name))


def test_everything_comes_back(folder):
    with use_mesh(tiny.mesh()):
        state, batches = toy.initial(), toy.Batches()
        for _ in range(3):
            state, _ = toy.compiled()(state, put_batch(next(batches), tiny.mesh()))
        state = state.replace(best_params=jax.tree.map(lambda x: x + 1, state.params))
        data, progress = batches.get_state(), {"best": 0.1, "best_step": 2, "stopped": True}
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.latest is None
            checkpoints.save(state, data, progress)
        before = jax.device_get(state.saved())
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.latest == 3
            restored, *rest = checkpoints.restore(toy.initial())
    runs.assert_same_bits(jax.device_get(restored.saved()), before)
    assert rest == [data, progress]
    assert {"step", "params", "opt_state", "key", "best_params"} == before.keys()
    assert np.any(before["opt_state"][0].nu["w"]) and not np.any(before["key"] == 0)


@pytest.mark.parametrize("value", [None, 0.1, -1e-300, 2**53])
def test_the_progress_keeps_its_values_and_types(folder, value):
    progress = {"best": value, "best_step": 0, "bad_evaluations": 3, "stopped": False}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(at(1), {"step": 1}, progress)
        checkpoints.wait()
        found = checkpoints.restore(toy.initial())[2]
    assert found == progress
    assert {key: type(item) for key, item in found.items()} == {
        key: type(item) for key, item in progress.items()
    }


def test_only_the_newest_are_kept(folder):
    save(folder, 1, 5, 10, 11)
    assert KEEP == 2
    assert kept(folder) == ["10", "11"]


def test_saving_a_step_again_does_nothing(folder):
    save(folder, 4)
    before = runs.contents(folder)
    save(folder, 4)
    assert runs.contents(folder) == before


def test_a_state_may_be_donated_right_after_saving(folder):
    """The write happens in the background; later steps must not change what is written."""
    with use_mesh(tiny.mesh()), Checkpoints(folder) as checkpoints:
        state, batches = toy.initial(), toy.Batches()
        expected = jax.device_get(state.saved())
        checkpoints.save(state, {"step": 0}, {"best": None})
        for _ in range(5):
            state, _ = toy.compiled()(state, put_batch(next(batches), tiny.mesh()))
        checkpoints.wait()
        found, _, _ = checkpoints.restore(toy.initial())
    runs.assert_same_bits(jax.device_get(found.saved()), expected)


def test_a_half_written_checkpoint_is_ignored_and_removed(folder):
    """What a kill in mid-write leaves: a folder with a temporary name and part of the files."""
    save(folder, 3, 6)
    torn = folder / "9.orbax-checkpoint-tmp"
    shutil.copytree(folder / "6", torn)
    shutil.rmtree(torn / "state" / "d")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest == 6
        state, data, _ = checkpoints.restore(toy.initial())
        assert int(state.step) == 6 and data == {"step": 6}
        checkpoints.save(at(9), {"step": 9}, {"best": None})
    assert kept(folder) == ["6", "9"]


# Other meshes


def table_initializer(rule, mesh):
    """Initialiser of a table that is split over every device."""
    init = nn.with_logical_partitioning(nn.initializers.normal(), ("table_rows", "features"))
    return initializer(lambda key: {"table": init(key, (64, 3))}, rule, mesh=mesh)


@pytest.mark.parametrize("shapes", [[(8, 1, 1), (8, 2, 2), (1, 1, 1)], [(1, 1, 1), (8, 1, 8)]])
def test_values_are_exact_on_every_mesh(folder, shapes):
    """Saved on one mesh, restored and saved again on the next: `devices`, `fsdp`, `tensor`."""
    rule = optax.adam(0.1)
    expected = None
    for step, shape in enumerate(shapes, start=1):
        mesh = tiny.mesh(*shape)
        with use_mesh(mesh), Checkpoints(folder) as checkpoints:
            fresh = table_initializer(rule, mesh)(step)
            if expected is None:
                state = fresh
                expected = jax.device_get(state.saved())
            else:
                state, _, _ = checkpoints.restore(fresh)
                found = jax.device_get(state.saved())
                runs.assert_same_bits(found, expected)
            assert shardings_of(state) == shardings_of(fresh)
            assert state.params["table"].sharding == sharding(mesh, "table_rows", None)
            expected["step"] = np.int32(step + 1)
            state = state.replace(step=jnp.int32(step + 1))
            checkpoints.save(state, {"step": step + 1}, {"best": None})


# Damage and misfits


def other_state(init) -> TrainState:
    with use_mesh(tiny.mesh()):
        return initializer(init, toy.OPTIMIZER, mesh=tiny.mesh())(0)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (lambda key: {"w": jnp.zeros(5)}, r"params/w has shape \(4,\) in .* but \(5,\) in"),
        (
            lambda key: {"w": jnp.zeros(4), "bias": jnp.zeros(1)},
            r"params/bias has shape none in .* but \(1,\) in",
        ),
        (lambda key: {"v": jnp.zeros(4)}, r"params/v has shape none in .* but \(4,\) in"),
    ],
    ids=["another shape", "one more", "another name"],
)
def test_a_checkpoint_of_another_model_is_refused(folder, init, message):
    save(folder, 2)
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(other_state(init))
    assert re.search(message, str(caught.value))
    assert str(folder / "2") in str(caught.value)


DAMAGED = {
    "arrays cut short": ("state/d/*", lambda path: path.write_bytes(path.read_bytes()[:60])),
    "arrays gone": ("state/d", shutil.rmtree),
    "metadata cut short": ("state/_METADATA", lambda path: path.write_text("{")),
    "state gone": ("state", shutil.rmtree),
    "position gone": ("data", shutil.rmtree),
    "progress cut short": ("progress/d/*", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_named(folder, name):
    save(folder, 2, 4)
    pattern, damage = DAMAGED[name]
    for path in list((folder / "4").glob(pattern)):
        damage(path)
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(toy.initial())
    message = str(caught.value)
    assert str(folder / "4") in message and "damaged" in message and "\n" not in message
    # The advice in the message works.
    shutil.rmtree(folder / "4")
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 2


def test_a_step_is_one_folder_with_state_data_and_progress(folder):
    save(folder, 2)
    assert kept(folder) == ["2"]
    assert {"state", "data", "progress"} <= {path.name for path in (folder / "2").iterdir()}
