"""Log-probabilities of items over the catalogue, blocked and sharded as ranks are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from xrec_jax.evaluation.ranking.ranks import Score, _pick, _scan_blocks
from xrec_jax.parallel.mesh import mesh_axes

_LOW = -1e30  # finite start of a running maximum


def target_log_probs(
    state: jax.Array,
    table: jax.Array,
    seen: jax.Array,
    target: jax.Array,
    *,
    score: Score,
    num_items: int,
    mesh: Mesh | None = None,
    block: int = 1 << 16,
) -> jax.Array:
    """Log-softmax over unseen items, `s_target - log sum_j exp s_j`, one block at a time.

    Args:
      state: `[batch, dim]` user states.
      table: `[padded_items, dim]`, split by rows over the mesh.
      seen: `[batch, seen]` int32 items to exclude; -1 is padding. The target is never excluded.
      target: `[batch]` int32.
      score: `(state, table) -> [batch, rows]`.
      num_items: items in the catalogue.
      mesh: the mesh that `table` is split over.
      block: rows scored at a time.

    Returns:
      `[batch]` float32, at most 0.
    """
    seen = jnp.where(seen == target[:, None], -1, seen)

    # Each device folds its own rows with a running maximum; then the devices' sums are joined.
    def local(state, rows, seen, target):
        shard = jax.lax.axis_index(axes) if axes else 0
        line = jnp.arange(len(state))[:, None]

        def fold(carry, scores, ids):
            own, top, total = carry
            value, inside = _pick(scores, ids, target[:, None])
            own = jnp.where(inside, value, own)
            # Seen items outside this block get an index beyond it, which "drop" ignores.
            place = seen - ids[0]
            place = jnp.where((place < 0) | (place >= scores.shape[1]), scores.shape[1], place)
            scores = scores.at[line, place].set(-jnp.inf, mode="drop")
            new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
            exps = jnp.exp(scores - new_top).sum(axis=1, keepdims=True)
            return own, new_top, total * jnp.exp(top - new_top) + exps

        zero = jnp.zeros((len(state), 1), jnp.float32)
        start = (zero, zero + _LOW, zero)
        if axes:
            start = jax.lax.pcast(start, axes, to="varying")
        own, top, total = _scan_blocks(
            score, state, rows, shard * rows.shape[0], num_items, block, fold, start
        )
        if axes:
            highest = jax.lax.pmax(top, axes)
            own, total = jax.lax.psum((own, total * jnp.exp(top - highest)), axes)
            top = highest
        return (own - top - jnp.log(total))[:, 0]

    axes = mesh_axes("table_rows") if mesh is not None and mesh.size > 1 else ()
    if axes:
        run = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(axes), P(), P()), out_specs=P())
    else:
        run = local
    return run(state, table, seen, target)
