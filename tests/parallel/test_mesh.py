"""Meshes, the rules table, and arrays on and off the devices."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import rendezvous
from xrec_jax.core.runtime.distributed import initialize, is_primary
from xrec_jax.parallel import mesh as mesh_lib
from xrec_jax.parallel.mesh import make_mesh, sharding, use_mesh


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, -1, 1), (2, 4, 1)),
        ((1, 1, -1), (1, 1, 8)),
        ((4, 2, 1), (4, 2, 1)),
    ],
)
def test_mesh_shapes(axes, shape):
    mesh = make_mesh(*axes, devices=jax.devices()[:8])
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh_lib.batch_divisor(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("axes", "devices", "message"),
    [
        ((0, 1, 1), 8, "data=0"),
        ((-2, 1, 1), 8, "data=-2"),
        ((-1, -1, 1), 8, "at most one -1"),
        ((3, 1, 1), 8, "8 available"),
        ((-1, 3, 1), 8, "fsdp=3"),
        ((-1, 16, 1), 8, "fsdp=16"),
        ((-1, 1, 1), 6, "divides 64"),
        ((16, 1, 1), 8, "do not multiply"),
    ],
)
def test_meshes_that_cannot_be(axes, devices, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*axes, devices=jax.devices()[:devices])


def test_padded_rows():
    for rows in (1, 63, 64, 65, 128, 1000):
        padded = mesh_lib.padded_rows(rows)
        assert padded >= rows and padded % 64 == 0 and padded - 64 < rows


def test_the_rules_table():
    for _, axes in mesh_lib.RULES:
        assert set(axes or ()) <= set(mesh_lib.AXES) or axes in mesh_lib.AXES
    assert mesh_lib.mesh_axes("batch") == ("data", "fsdp")
    assert mesh_lib.mesh_axes("inner") == ("tensor",)
    assert mesh_lib.mesh_axes("features") == ()
    with pytest.raises(KeyError):
        mesh_lib.mesh_axes("nonsense")
    mesh = tiny.mesh(8, 2, 2)
    spec = sharding(mesh, "batch", None, "heads", "features").spec
    assert spec == P(("data", "fsdp"), None, ("tensor",), None)
    # A table is split over every device of every mesh.
    for shape in ((8, 1, 1), (8, 2, 1), (8, 2, 2)):
        assert sharding(tiny.mesh(*shape), "table_rows").shard_shape((64,)) == (8,)


def blocks(array):
    """Each device's part, by the place it starts at."""
    return {
        tuple(s.start or 0 for s in shard.index): np.asarray(shard.data)
        for shard in array.addressable_shards
    }


def test_a_batch_is_split_by_rows():
    batch = {"a": np.arange(24, dtype=np.int32).reshape(8, 3), "b": np.arange(8) / 4}
    for shape, parts in (((8, 1, 1), 8), ((8, 2, 2), 4)):
        placed = mesh_lib.put_batch(batch, tiny.mesh(*shape))
        for name, values in batch.items():
            found = blocks(placed[name])
            assert len(found) == parts
            for place, part in found.items():
                size = 8 // parts
                np.testing.assert_array_equal(part, values[place[0] : place[0] + size])
        back = mesh_lib.gather(placed)
        assert isinstance(back["a"], np.ndarray)
        np.testing.assert_array_equal(back["a"], batch["a"])
        np.testing.assert_array_equal(back["b"], batch["b"].astype(np.float32))


def test_sharded_and_replicated_arrays():
    mesh = tiny.mesh(8, 2)
    table = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    split = mesh_lib.put_sharded(table, sharding(mesh, "table_rows", None))
    for place, part in blocks(split).items():
        np.testing.assert_array_equal(part, table[place[0] : place[0] + 8])
    assert len(blocks(split)) == 8
    whole = mesh_lib.put_replicated({"t": table, "scalar": 2.5}, mesh)
    for shard in whole["t"].addressable_shards:
        np.testing.assert_array_equal(shard.data, table)
    assert len(whole["t"].addressable_shards) == len(whole["scalar"].addressable_shards) == 8
    np.testing.assert_array_equal(mesh_lib.gather(split), table)


def test_constrain_follows_the_current_mesh():
    x = np.ones((8, 4), np.float32)
    np.testing.assert_array_equal(mesh_lib.constrain(x, "batch", "inner"), x)
    mesh = tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        out = jax.jit(lambda a: mesh_lib.constrain(a * 2, "batch", "inner"))(x)
    assert out.sharding.shard_shape(out.shape) == (2, 2)
    np.testing.assert_array_equal(out, x * 2)


def test_use_mesh_ends():
    before = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh().shape
    with use_mesh(tiny.mesh(8, 2)) as mesh:
        assert tuple(nn.get_logical_axis_rules()) == mesh_lib.RULES
        assert jax.sharding.get_abstract_mesh().shape == mesh.shape
    assert (nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh().shape) == before


def test_several_processes_need_all_three_settings(monkeypatch):
    for name in ("XREC_COORDINATOR", "XREC_PROCESSES", "XREC_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    initialize()  # a single process: nothing to do
    assert is_primary() and jax.process_count() == 1
    monkeypatch.setenv("XREC_COORDINATOR", "localhost:1")
    with pytest.raises(UserError, match="XREC_PROCESSES"):
        initialize()
    monkeypatch.setenv("XREC_PROCESSES", "two")
    with pytest.raises(UserError, match="whole numbers"):
        initialize()
    monkeypatch.setenv("XREC_PROCESSES", "2")
    with pytest.raises(UserError, match="XREC_PROCESS "):
        initialize()
    started, gathered = [], []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: started.append(k))
    monkeypatch.setattr(rendezvous, "gather", lambda *a, **k: gathered.append((a, k)))
    initialize(process=1)
    settings = {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 1}
    assert len(started) == 1 and settings.items() <= started[0].items()
    (((where,), how),) = gathered  # before JAX starts
    assert where == "localhost:1" and (how["process"], how["processes"]) == (1, 2)
    initialize("auto")
    assert len(gathered) == 1 and not settings.keys() & started[1].keys()
    monkeypatch.delenv("XREC_COORDINATOR")
    with pytest.raises(UserError, match="XREC_PROCESSES set without XREC_COORDINATOR"):
        initialize()  # else every host would run alone, in the same directory
