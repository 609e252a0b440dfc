"""Exact ranks of held-out items and top-k lists, blocked over the catalogue.

Memory is `users x block` floats, never `users x items`. The item table stays split over the
devices: each one scores its own rows and only counts or short lists travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from xrec_jax.parallel.mesh import mesh_axes

Score = Callable[[jax.Array, jax.Array], jax.Array]


class Ranks(NamedTuple):
    """Ranks of held-out items, from 1, ties counted against them: `[batch, targets]` int32.

    Attributes:
      masked: among items the user has not seen, and the held-out ones.
      unmasked: among all items.
      scored: bool, whether the score is neither NaN nor +inf.
    """

    masked: jax.Array
    unmasked: jax.Array
    scored: jax.Array


def _blocks(rows: int, limit: int) -> int:
    """Number of rows of a block: the largest divisor of `rows` that is at most `limit`."""
    return next(size for size in range(min(rows, limit), 0, -1) if rows % size == 0)


def _scan_blocks(score, state, table, first_row, num_items, limit, body, carry):
    """Folds `body(carry, scores, ids)` over blocks of the table; padding scores -inf."""
    size = _blocks(table.shape[0], limit)

    def fold_block(index, carry):
        rows = jax.lax.dynamic_slice_in_dim(table, index * size, size)
        ids = first_row + index * size + jnp.arange(size)
        scores = jnp.where(ids < num_items, score(state, rows), -jnp.inf)
        return body(carry, scores, ids)

    count = table.shape[0] // size
    if count == 1:
        return fold_block(0, carry)
    return jax.lax.fori_loop(0, count, fold_block, carry)


def _pick(scores: jax.Array, ids: jax.Array, items: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores of `items` `[b, n]` in a block, and a mask of those that the block holds."""
    place = items - ids[0]
    inside = (place >= 0) & (place < scores.shape[1])
    place = jnp.clip(place, 0, scores.shape[1] - 1)
    return jnp.take_along_axis(scores, place, axis=1), inside


def target_ranks(
    state: jax.Array,
    table: jax.Array,
    seen: jax.Array,
    target: jax.Array,
    *,
    score: Score,
    num_items: int,
    mesh: Mesh | None = None,
    block: int = 1 << 16,
) -> Ranks:
    """Ranks held-out items against the whole catalogue.

    The rank is one plus the number of other items that do not score lower; NaN counts as not
    lower. Seen items are not removed from the scores: the number of seen items that do not score
    lower is subtracted from the count, which gives both ranks in one pass. A seen item that is
    itself a target is not masked. Several targets of one user that tie are ordered by position.

    Args:
      state: `[batch, dim]` user states.
      table: `[padded_items, dim]`, split by rows over the mesh.
      seen: `[batch, seen]` int32 items to mask, each at most once a user; -1 is padding.
      target: `[batch, targets]` int32 held-out items, distinct; -1 is padding (its rank is junk).
      score: `(state, table) -> [batch, rows]`.
      num_items: items in the catalogue.
      mesh: the mesh that `table` is split over.
      block: rows scored at a time.
    """
    # A seen item that is held out as well must stay a candidate.
    masked_away = (seen >= 0) & ~(seen[:, :, None] == target[:, None, :]).any(-1)

    def local(state, rows, seen, target, masked_away):
        shard = jax.lax.axis_index(axes) if axes else 0
        first_row = shard * rows.shape[0]
        total = (lambda x: jax.lax.psum(x, axes)) if axes else (lambda x: x)

        def find(carry, scores, ids):
            value, inside = _pick(scores, ids, target)
            return jnp.where(inside, value, carry)

        def count(carry, scores, ids, own):
            above, above_seen = carry
            not_lower = ~(scores[:, None, :] < own[:, :, None]) & (ids < num_items)
            value, inside = _pick(scores, ids, seen)
            counted = inside & masked_away
            seen_not_lower = ~(value[:, None, :] < own[:, :, None]) & counted[:, None, :]
            return above + not_lower.sum(-1), above_seen + seen_not_lower.sum(-1)

        fold = lambda body, carry: _scan_blocks(  # noqa: E731
            score, state, rows, first_row, num_items, block, body, carry
        )
        zero = jnp.zeros(target.shape, jnp.int32)
        if axes:
            zero = jax.lax.pcast(zero, axes, to="varying")
        # The own scores must be known before anything is counted: two passes over several blocks,
        # but one over a single block, whose scores are then computed once.
        if _blocks(rows.shape[0], block) == rows.shape[0]:

            def both(_, scores, ids):
                own = total(find(zero.astype(jnp.float32), scores, ids))
                return own, count((zero, zero), scores, ids, own)

            own, counts = fold(both, None)
        else:
            own = total(fold(find, zero.astype(jnp.float32)))
            counts = fold(lambda c, s, i: count(c, s, i, own), (zero, zero))
        return own, total(counts[0]), total(counts[1])

    axes = mesh_axes("table_rows") if mesh is not None and mesh.size > 1 else ()
    if axes:
        run = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P(axes), P(), P(), P()), out_specs=(P(), P(), P())
        )
    else:
        run = local
    own, above, above_seen = run(state, table, seen, target, masked_away)

    # Targets of one user counted each other by score alone; ties among them go by position.
    real = (target >= 0)[:, None, :]
    other, this = own[:, None, :], own[:, :, None]
    earlier = jnp.tril(jnp.ones((target.shape[1],) * 2, bool))[None]
    not_lower_targets = (~(other < this) & real).sum(-1)
    # Another target ranks ahead if it scores higher (or NaN), or ties and is earlier.
    ahead = ~(other <= this) | ((other == this) & earlier)
    unmasked = above - not_lower_targets + (ahead & real).sum(-1)
    return Ranks(unmasked - above_seen, unmasked, scored=own < jnp.inf)


def top_k(
    state: jax.Array,
    table: jax.Array,
    seen: jax.Array,
    *,
    k: int,
    score: Score,
    num_items: int,
    mesh: Mesh | None = None,
    block: int = 1 << 16,
) -> tuple[jax.Array, jax.Array]:
    """Finds the k best unseen items of each user.

    Args:
      state: `[batch, dim]` user states.
      table: `[padded_items, dim]`, split by rows over the mesh.
      seen: `[batch, seen]` int32 items to exclude; -1 is padding.
      k: length of a list.
      score: `(state, table) -> [batch, rows]`.
      num_items: items in the catalogue.
      mesh: the mesh that `table` is split over.
      block: rows scored at a time.

    Returns:
      Items `[batch, k]` int32, best first, -1 if fewer than k are unseen; scores `[batch, k]`.
    """

    # Each device keeps the k best of its own rows; only these short lists are merged.
    def local(state, rows, seen):
        shard = jax.lax.axis_index(axes) if axes else 0

        def merge(best, scores, ids):
            # `lax.top_k` puts NaN first. The lowest finite score puts it last, before masked items.
            scores = jnp.where(jnp.isnan(scores), jnp.finfo(scores.dtype).min, scores)
            place = seen - ids[0]
            outside = (place < 0) | (place >= scores.shape[1])
            place = jnp.where(outside, scores.shape[1], place)
            line = jnp.arange(len(state))[:, None]
            scores = scores.at[line, place].set(-jnp.inf, mode="drop")
            return _best(
                jnp.concatenate([best[0], scores], 1),
                jnp.concatenate([best[1], jnp.broadcast_to(ids, scores.shape)], 1),
                k,
            )

        empty = (jnp.full((len(state), k), -jnp.inf), jnp.full((len(state), k), -1, jnp.int32))
        if axes:
            empty = jax.lax.pcast(empty, axes, to="varying")
        best = _scan_blocks(
            score, state, rows, shard * rows.shape[0], num_items, block, merge, empty
        )
        return best if not axes else jax.tree.map(lambda x: x[None], best)

    axes = mesh_axes("table_rows") if mesh is not None and mesh.size > 1 else ()
    if axes:
        run = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(axes), P()), out_specs=P(axes))
        scores, items = (
            jnp.moveaxis(x, 0, 1).reshape(len(state), -1) for x in run(state, table, seen)
        )
        scores, items = _best(scores, items, k)
    else:
        scores, items = local(state, table, seen)
    return jnp.where(scores > -jnp.inf, items, -1), scores


def _best(scores: jax.Array, items: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    values, place = jax.lax.top_k(scores, k)
    return values, jnp.take_along_axis(items, place, axis=1)
