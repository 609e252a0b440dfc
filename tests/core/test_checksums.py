"""Checksums: one value whatever the mesh, another one for any changed word."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.storage import checksums
from xrec_jax.core.storage.checksums import json_checksum, tree_checksums
from xrec_jax.parallel.mesh import sharding

RANDOM = np.random.default_rng(4)
ARRAYS = {
    "float32": RANDOM.standard_normal((6, 5, 4)).astype(np.float32),
    "bfloat16": RANDOM.standard_normal((3, 50)).astype(ml_dtypes.bfloat16),
    "scalar": np.int32(7),
    "key": np.array([1, 2**32 - 1], np.uint32),
    "flags": np.array([[True, False], [True, True]]),
    "int8": np.arange(-3, 4, dtype=np.int8),
    "nothing": np.zeros((0, 4), np.float32),
    "nan": np.array([np.nan, -0.0, np.inf], np.float32),
}


def test_the_format_stays_as_it_is():
    """These sums stand in checkpoints."""
    found = tree_checksums(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.array([1, 2], np.int8)]}
    )
    assert found == {"a": ("float32", [2, 3], "11a00000"), "b/0": ("int8", [2], "c00c21e5")}


@pytest.mark.parametrize("name", ARRAYS)
def test_devices_and_host_agree(name):
    (_, _, host) = tree_checksums([ARRAYS[name]])["0"]
    device = checksums._device_sums({0: jnp.asarray(ARRAYS[name])})[0]
    assert f"{int(device):08x}" == host


def test_blocks_change_nothing(monkeypatch):
    whole = tree_checksums(ARRAYS)
    for block in (1, 3, 7):
        monkeypatch.setattr(checksums, "_BLOCK", block)
        assert tree_checksums(ARRAYS) == whole


def test_the_mesh_changes_nothing():
    table = RANDOM.standard_normal((64, 3)).astype(np.float32)
    split = jax.device_put(table, sharding(tiny.mesh(8, 2, 2), "table_rows", None))
    assert len(split.sharding.device_set) == 8
    assert tree_checksums([split]) == tree_checksums([table])
    summed = checksums._device_sums({0: split})[0]
    assert f"{int(summed):08x}" == tree_checksums([table])["0"][2]


@pytest.mark.parametrize("name", sorted(ARRAYS.keys() - {"nothing"}))
def test_every_changed_bit_is_noticed(name):
    good = tree_checksums([ARRAYS[name]])
    raw = np.ascontiguousarray(ARRAYS[name])
    for bit in range(0, 8 * raw.nbytes, 8 if raw.nbytes > 64 else 1):
        bad = raw.copy().reshape(-1).view(np.uint8)
        bad[bit // 8] ^= 1 << bit % 8
        assert tree_checksums([bad.view(raw.dtype).reshape(raw.shape)]) != good


def test_moved_values_are_noticed():
    array = ARRAYS["float32"]
    good = tree_checksums([array])
    for axis in range(3):
        assert tree_checksums([np.roll(array, 1, axis)]) != good
        assert tree_checksums([np.flip(array, axis)]) != good
    assert tree_checksums([array.reshape(6, 20)]) != good
    assert tree_checksums([array.view(np.int32)]) != good


def test_json_in_any_order():
    assert json_checksum({"a": [1, 2.0], "b": None}) == json_checksum({"b": None, "a": (1, 2.0)})
    values = [{"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"b": 1}, {"a": None}, {}, {"a": [1]}]
    assert len({json_checksum(value) for value in values}) == len(values)
