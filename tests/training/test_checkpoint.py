"""Checkpoints: exact round trips, other meshes, what is kept, damage."""

import errno
import logging
import re
import shutil
import threading
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import runs, tiny
from tests.training import toy
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.disk import WriteError
from xrec_jax.parallel.mesh import put_batch, sharding, use_mesh
from xrec_jax.training import manifest, sums
from xrec_jax.training import saving as saving_module
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
    assert kept(folder) == ["10", "11", manifest.NAME]


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
    assert kept(folder) == ["6", "9", manifest.NAME]


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
def test_a_checkpoint_that_is_not_all_there_is_named(folder, name):
    """It may be a copy that somebody can finish: nothing is done about it."""
    save(folder, 2, 4)
    pattern, change = DAMAGED[name]
    for path in list((folder / "4").glob(pattern)):
        change(path)
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(toy.initial())
    message = str(caught.value)
    assert str(folder / "4") in message and "damaged" in message and "\n" not in message
    # The advice in the message works.
    shutil.rmtree(folder / "4")
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 2


def flip(path) -> None:
    """Changes a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


FLIPPED = {
    "arrays": ("state/d/*", flip),
    "list of arrays": ("state/_METADATA", flip),
    "its own metadata": (
        "_CHECKPOINT_METADATA",
        lambda path: path.write_text(path.read_text().replace("performance", "pesformance")),
    ),
    "nested metadata": ("_CHECKPOINT_METADATA", lambda path: path.write_bytes(b"[" * 5000)),
}


@pytest.mark.parametrize("name", [*FLIPPED, *(f"{name}, as old runs left it" for name in DAMAGED)])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(folder, name, capsys):
    save(folder, 2, 4)
    known = name in FLIPPED
    pattern, change = FLIPPED[name] if known else DAMAGED[name.partition(",")[0]]
    if not known:
        (folder / manifest.NAME).unlink()
    for path in list((folder / "4").glob(pattern)):
        change(path)
    with Checkpoints(folder) as checkpoints:
        state, data, _ = checkpoints.restore(toy.initial())
        assert int(state.step) == 2 and data == {"step": 2}
        np.testing.assert_array_equal(state.params["w"], np.full(4, 2, np.float32))
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith(f"{folder / '4'}: the checkpoint is damaged (")
        assert line.endswith("; going on from step 2; it was renamed to 4.damaged")
        checkpoints.save(at(4), {"step": 4}, {"best": None})  # the same step can be saved again
    assert kept(folder) == ["2", "4", "4.damaged", manifest.NAME]
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 4
    assert capsys.readouterr().out == ""


def test_a_manifest_that_a_kill_left_behind_is_made_up_for(folder):
    save(folder, 2)
    before = (folder / manifest.NAME).read_text()
    save(folder, 4)
    (folder / manifest.NAME).write_text(before)
    with Checkpoints(folder, read_only=True) as checkpoints:
        checkpoints.restore(toy.initial())
    assert (folder / manifest.NAME).read_text() == before
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(toy.initial())
    found = manifest.read(folder)
    assert found.step == 4 and found.folders.keys() == {2, 4}
    assert found.folders[4] == manifest.file_sums(folder / "4")


def test_a_damaged_manifest_changes_nothing(folder, capsys):
    save(folder, 2, 4)
    flip(folder / manifest.NAME)
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 4
    assert capsys.readouterr().out == ""


def test_reading_leaves_a_damaged_checkpoint_where_it_is(folder, capsys):
    save(folder, 2, 4)
    flip(next((folder / "4" / "state" / "d").iterdir()))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 2
    assert "; reading step 2, the one before, whose figures may differ" in capsys.readouterr().out
    assert kept(folder) == ["2", "4", manifest.NAME]


def test_two_damaged_checkpoints_are_one_error_that_names_them(folder):
    save(folder, 2, 4)
    for step in "24":
        flip(next((folder / step / "state" / "d").iterdir()))
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(toy.initial())
    message = str(caught.value)
    assert str(folder / "2") in message and str(folder / "4") in message and "\n" not in message
    assert f"delete {folder} to start the stage from the beginning" in message
    assert kept(folder) == ["2", "4", manifest.NAME]


def rewritten(folder, **parts) -> None:
    """Step 4 written with other parts than its checksums say: what flipped bytes restore."""
    honest = sums.record

    def record(step, saved, data, progress):
        whole = {"saved": saved, "data": data, "progress": progress, "step": step} | parts
        return honest(whole["step"], whole["saved"], whole["data"], whole["progress"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "record", record)
        save(folder, 4)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"saved": at(5).saved() | {"step": jnp.int32(4)}}, "params/w holds other values than"),
        ({"data": {"step": 5}}, "data holds other values than were saved"),
        ({"progress": {"best": 0.0, "stopped": False}}, "progress holds other values than"),
        ({"step": 5}, "it says that it is the one of step 5"),
    ],
    ids=["array", "data", "progress", "step"],
)
def test_values_that_differ_from_their_checksums_are_damage(folder, parts, reason, capsys):
    save(folder, 2)
    rewritten(folder, **parts)
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 2
    assert reason in capsys.readouterr().out


def test_a_checkpoint_without_checksums_restores_as_ever(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sums, "record", lambda *_: {})
        save(folder, 3)
    (folder / manifest.NAME).unlink()
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("left", ["nothing", "a file"])
def test_a_missing_newest_checkpoint_is_noticed(folder, left, capsys):
    save(folder, 2, 4)
    shutil.rmtree(folder / "4")
    if left == "a file":
        (folder / "4").write_text("not a folder")
    with Checkpoints(folder) as checkpoints:
        line = f"{folder / '4'}: the newest checkpoint is missing; going on from step 2\n"
        assert capsys.readouterr().out == line
        assert int(checkpoints.restore(toy.initial())[0].step) == 2
        checkpoints.save(at(4), {"step": 4}, {"best": None})
    assert [name for name in kept(folder) if name[0] in "24"] == (
        ["2", "4", "4.damaged"] if left == "a file" else ["2", "4"]
    )
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(toy.initial())[0].step) == 4


def test_an_unreadable_checkpoint_is_not_taken_for_a_damaged_one(folder, monkeypatch):
    save(folder, 2, 4)
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="Permission denied"):
        denied = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(
            checkpoints._checkpointer, "load_checkpointables", mock.Mock(side_effect=denied)
        )
        checkpoints.restore(toy.initial())
    assert kept(folder) == ["2", "4", manifest.NAME]


# Writes that fail


def test_a_failed_write_is_one_line_at_the_next_look_and_nothing_waits(folder, monkeypatch):
    full = ValueError('RESOURCE_EXHAUSTED: Failed writing "x": No space left on device [28]')
    save(folder, 3)
    with pytest.raises(WriteError) as caught, Checkpoints(folder) as checkpoints:
        response = mock.Mock(**{"result.side_effect": full})
        saving = mock.Mock(return_value=response)
        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", saving)
        checkpoints.save(at(5), {"step": 5}, {"best": None})
        checkpoints._write.join()
        never = mock.Mock(side_effect=AssertionError)
        monkeypatch.setattr(checkpoints._checkpointer, "wait", never)
        monkeypatch.setattr(checkpoints._checkpointer, "close", never)
        checkpoints.check()
    message = str(caught.value)
    assert message.startswith(f"cannot write the checkpoint of step 5 to {folder}: No space left")
    assert re.search(r"\(needs up to \d+ bytes, [\d.]+ .B are free there\)", message)
    assert message.endswith("make room and run the same command again: it goes on from step 3")
    assert "\n" not in message and manifest.read(folder).step == 3


def test_a_write_that_never_ends_is_given_up_once_its_error_is_logged(folder, monkeypatch):
    """On several processes Orbax waits for its peers before it raises, perhaps for minutes."""
    never = threading.Event()
    with pytest.raises(WriteError, match="No space left on device"), Checkpoints(folder) as one:
        response = mock.Mock(**{"result.side_effect": never.wait})
        saving = mock.Mock(return_value=response)
        monkeypatch.setattr(one._checkpointer, "save_checkpointables_async", saving)
        one.save(at(5), {"step": 5}, {"best": None})
        one.check()
        monkeypatch.setattr(saving_module, "process_count", lambda: 2)
        (writes,) = [f for f in logging.getLogger("absl").filters if hasattr(f, "errors")]
        error = OSError(errno.ENOSPC, "No space left on device")
        told = logging.LogRecord(
            "absl", logging.ERROR, "/x/orbax/y.py", 1, "failed", (), (OSError, error, None)
        )
        assert not writes.filter(told)
        one.check()
    never.set()
    Checkpoints(folder).__exit__()
    assert writes.errors == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=re.escape(f"{tmp_path / 'file' / 'stage'}: Not a dir")):
        Checkpoints(tmp_path / "file" / "stage")


def test_a_step_is_one_folder_with_state_data_and_progress(folder):
    save(folder, 2)
    assert kept(folder) == ["2", manifest.NAME]
    assert {"state", "data", "progress"} <= {path.name for path in (folder / "2").iterdir()}
