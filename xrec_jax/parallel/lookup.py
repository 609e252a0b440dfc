"""Row lookup and sparse products on tables that are split by rows over all devices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from xrec_jax.parallel.mesh import mesh_axes


def _mesh_size(axes: tuple[str, ...]) -> int:
    """Number of devices along `axes` of the current mesh; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns `table[ids]` for a row-sharded table and batch-sharded ids.

    Only ids and the requested rows travel between devices, never the table: each device gathers
    all ids, looks up those in its own block of rows, and a reduce-scatter returns to every device
    the rows of its own share of the batch. The sum has one non-zero term an element, so the result
    is that of a plain lookup to the last bit.

    Args:
      table: `[rows, dim]`, split over `table_rows`.
      ids: `[batch, ...]` int32, split over `batch`; or not divisible by it, then replicated.

    Returns:
      `[batch, ..., dim]`.
    """
    rows_axes, batch_axes = mesh_axes("table_rows"), mesh_axes("batch")
    shards = _mesh_size(rows_axes)
    if shards == 1 or ids.shape[0] % _mesh_size(batch_axes):
        return jnp.take(table, ids, axis=0)
    block = table.shape[0] // shards
    other_axes = tuple(axis for axis in rows_axes if axis not in batch_axes)

    def local(table_block: jax.Array, local_ids: jax.Array) -> jax.Array:
        every_id = jax.lax.all_gather(local_ids, batch_axes, tiled=True)
        # Row numbers relative to this device's block; ids of other blocks read a clipped row and
        # are zeroed, so that the sum over devices has one term.
        here = every_id - block * jax.lax.axis_index(rows_axes)
        mine = (here >= 0) & (here < block)
        rows = jnp.take(table_block, jnp.clip(here, 0, block - 1), axis=0)
        rows = jnp.where(mine[..., None], rows, 0)
        if other_axes:
            # Axes that split the rows but not the batch need a full sum.
            rows = jax.lax.psum(rows, other_axes)
        return jax.lax.psum_scatter(rows, batch_axes, scatter_dimension=0, tiled=True)

    return jax.shard_map(local, in_specs=(P(rows_axes), P(batch_axes)), out_specs=P(batch_axes))(
        table, ids
    )


def spread(
    table: jax.Array, source: jax.Array, target: jax.Array, weight: jax.Array, rows: int
) -> jax.Array:
    """Sums weighted rows along the edges of a graph: `out[target] += weight * table[source]`.

    The product of a sparse matrix and a table. Edges are split over all devices; a device needs
    the whole source table for a moment (all-gather) and reduces its partial result into row blocks.

    Args:
      table: `[source_rows, dim]`, split by rows.
      source: `[edges]` int32 rows of `table`.
      target: `[edges]` int32 rows of the result.
      weight: `[edges]` float; 0 for padding.
      rows: rows of the result, divisible by the number of devices.

    Returns:
      `[rows, dim]`, split by rows.
    """
    # Each device sums the messages of its own edges; one reduction makes row blocks of the result.
    axes = mesh_axes("edges")

    def total(
        table: jax.Array, source: jax.Array, target: jax.Array, weight: jax.Array
    ) -> jax.Array:
        messages = weight[:, None].astype(table.dtype) * jnp.take(table, source, axis=0)
        return jax.ops.segment_sum(messages, target, num_segments=rows)

    if _mesh_size(axes) == 1:
        return total(table, source, target, weight)

    def local(
        table_block: jax.Array, source: jax.Array, target: jax.Array, weight: jax.Array
    ) -> jax.Array:
        source_table = jax.lax.all_gather(table_block, axes, tiled=True)
        return jax.lax.psum_scatter(
            total(source_table, source, target, weight), axes, scatter_dimension=0, tiled=True
        )

    return jax.shard_map(local, in_specs=(P(axes),) * 4, out_specs=P(axes))(
        table, source, target, weight
    )
