"""The device mesh, the one table of sharding rules, and transfers of arrays to and from devices."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.trees import PyTree

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Every array of the project gets its sharding from this table.
RULES = (
    ("batch", ("data", "fsdp")),
    ("table_rows", ("data", "fsdp", "tensor")),
    ("edges", ("data", "fsdp", "tensor")),
    ("features", None),
    ("hidden", None),
    ("inner", "tensor"),
    ("heads", "tensor"),
    ("positions", None),
    # Language models: large kernels are split along both of their sides.
    ("layers", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
)

# Tables are padded to a multiple of this many rows, whatever the mesh, so that a checkpoint fits
# every mesh whose device count divides it.
ROW_MULTIPLE = 64


def padded_rows(rows: int) -> int:
    """`rows` rounded up to a multiple of `ROW_MULTIPLE`."""
    return math.ceil(rows / ROW_MULTIPLE) * ROW_MULTIPLE


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: list[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh with axes `AXES`.

    Args:
      data: devices along the batch axis; -1 for all that the other axes leave.
      fsdp: devices over which both the batch and large parameters are split.
      tensor: devices over which attention heads and MLP features are split.
      devices: default: every device of every process.

    Raises:
      UserError: if the axes do not fit the number of devices, or tables cannot be split evenly.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(
            f"mesh axes data={data}, fsdp={fsdp}, tensor={tensor}: each must be positive, at most "
            "one -1 (all remaining devices)"
        )
    # At most one axis is open; it takes the devices that the others leave.
    if -1 in shape:
        fixed = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh axes data={data}, fsdp={fsdp}, tensor={tensor} do not multiply to the "
            f"{len(devices)} available devices"
        )
    # Tables are padded to `ROW_MULTIPLE` rows, so only its divisors split them into equal blocks.
    if ROW_MULTIPLE % len(devices):
        raise UserError(
            f"{len(devices)} devices: tables are split by rows into equal parts, which needs a "
            f"device count that divides {ROW_MULTIPLE}"
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Makes `mesh` and the sharding rules current for everything traced inside."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield mesh


def mesh_axes(logical: str) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over."""
    axes = dict(RULES)[logical]
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """Sharding of an array whose dimensions have these logical axes (None: not split)."""
    spec = [mesh_axes(name) or None if name else None for name in logical]
    return NamedSharding(mesh, PartitionSpec(*spec))


def logical(init: nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
    """Wraps an initialiser so that its values carry the logical axes of the parameter."""
    return nn.with_logical_partitioning(init, axes)


def constrain(array: jax.Array, *logical: str | None) -> jax.Array:
    """Constrains the sharding of an intermediate array; no effect without a mesh."""
    return nn.with_logical_constraint(array, logical)


def must_wait(mesh: Mesh) -> bool:
    """Whether each program must be waited for before the next: several CPU devices of one process.

    They deadlock when programs with communication queue up behind each other.
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def batch_divisor(mesh: Mesh) -> int:
    """Number of equal shards of a global batch."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes("batch"))


def current_parts(logical: str) -> int:
    """Number of shards of a logical axis on the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in mesh_axes(logical))


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Assembles global arrays, split by rows, from this process's rows of a global batch.

    Args:
      batch: pytree of arrays `[local_batch, ...]`; local rows of all processes, in process order,
        make the global batch.
      mesh: the device mesh.
    """
    split = sharding(mesh, "batch")
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), batch)


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates host arrays, equal on every process, on every device."""
    return put_sharded(tree, jax.tree.map(lambda _: sharding(mesh), tree))


def put_sharded(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places host arrays, held in full by every process, each device taking its own shard."""

    def put(array, split):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, split, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


@functools.lru_cache(maxsize=8)
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def gather(tree: PyTree) -> PyTree:
    """Full host copies of arrays, also of those split over several processes."""

    def fetch(array):
        split = getattr(array, "sharding", None)
        if isinstance(split, NamedSharding) and not array.is_fully_addressable:
            # Other processes hold shards: an all-gather makes a local replica.
            array = _replicate(split.mesh)(array).addressable_data(0)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)


def saved_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of a finished run; all devices along the batch if it does not fit them."""
    try:
        return make_mesh(**dict(config.mesh))
    except UserError as error:
        if is_primary():
            log(f"{error}; using all devices along the batch instead")
        return make_mesh()


@contextlib.contextmanager
def open_mesh(config: ml_collections.ConfigDict) -> Iterator[Mesh]:
    """Opens the mesh of a config, current inside the block."""
    with use_mesh(make_mesh(**dict(config.mesh))) as mesh:
        yield mesh
