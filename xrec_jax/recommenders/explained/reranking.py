"""Ranks from given scores, and re-ranking of the head of a list.

Pure functions on arrays of a batch; all ties count against the target. Dimension letters: b batch,
n candidate, s seen, i item.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xrec_jax.recommenders import losses


def _marked(items: jax.Array, count: int) -> jax.Array:
    """Multi-hot rows: `[b, any]` int32 items, -1 ignored -> `[b, count]` bool."""
    rows = jnp.arange(len(items))[:, None]
    place = jnp.where(items < 0, count, items)
    return jnp.zeros((len(items), count), bool).at[rows, place].set(True, mode="drop")


def rank_of(scores: jax.Array, target: jax.Array, seen: jax.Array) -> jax.Array:
    """Rank of each row's target among the items that the user has not seen.

    One plus the number of other unseen items that do not score lower (a NaN never does), as in
    `evaluation.ranking.ranks`. A target that was seen is ranked as well.

    Args:
      scores: `[b, i]`, no padding columns.
      target: `[b]` int32; -1 for none.
      seen: `[b, s]` int32 masked items, in any order, perhaps repeated; -1 is padding.

    Returns:
      `[b]` int32 from 1, 0 where there is no target.
    """
    own = jnp.take_along_axis(scores, jnp.maximum(target, 0)[:, None], axis=1)
    open_ = ~_marked(seen, scores.shape[1]) & (jnp.arange(scores.shape[1]) != target[:, None])
    rank = 1 + jnp.sum(open_ & ~(scores < own), axis=1, dtype=jnp.int32)
    return jnp.where(target >= 0, rank, 0)


def among_candidates(
    scores: jax.Array, candidates: jax.Array, target: jax.Array, weight: jax.Array
) -> jax.Array:
    """Weighted mean cross entropy of the target among a row's candidates.

    Args:
      scores: `[b, n]` float32; values at padding are ignored.
      candidates: `[b, n]` int32, distinct; -1 is padding.
      target: `[b]` int32.
      weight: `[b]` float32; a row without its target among the candidates is ignored.

    Returns:
        float32 scalar, 0 if all rows are ignored.
    """
    real = candidates >= 0
    hit = real & (candidates == target[:, None])
    log_probs = jax.nn.log_softmax(jnp.where(real, scores, -1e30), axis=1)
    loss = -jnp.sum(jnp.where(hit, log_probs, 0.0), axis=1)
    return losses.weighted_mean(loss, jnp.where(hit.any(axis=1), weight, 0.0))


def rerank(
    scores: jax.Array,
    candidates: jax.Array,
    candidate_scores: jax.Array,
    target: jax.Array,
    seen: jax.Array,
) -> jax.Array:
    """Rank of each row's target in a list with a re-ranked head.

    The list has the candidates first, by their new scores, then all other unseen items by their old
    ones. Seen items are in neither part, except for the target.

    Args:
      scores: `[b, i]` old scores, no padding columns.
      candidates: `[b, n]` int32, distinct; -1 is padding.
      candidate_scores: `[b, n]` new scores.
      target: `[b]` int32; -1 for none.
      seen: `[b, s]` int32; -1 is padding.

    Returns:
      `[b]` int32 from 1, 0 where there is no target.
    """
    count = scores.shape[1]
    masked = _marked(seen, count) & (jnp.arange(count) != target[:, None])
    # A target in the head competes with the other candidates only.
    hidden = jnp.take_along_axis(masked, jnp.maximum(candidates, 0), axis=1)
    head = (candidates >= 0) & ~hidden
    hit = head & (candidates == target[:, None])
    own = jnp.sum(jnp.where(hit, candidate_scores, 0.0), axis=1, keepdims=True)
    ahead = jnp.sum(head & ~hit & ~(candidate_scores < own), axis=1, dtype=jnp.int32)

    # Elsewhere it comes after the whole head, among the remaining items by old scores.
    old = jnp.take_along_axis(scores, jnp.maximum(target, 0)[:, None], axis=1)
    tail = ~masked & ~_marked(candidates, count) & (jnp.arange(count) != target[:, None])
    behind = jnp.sum(tail & ~(scores < old), axis=1, dtype=jnp.int32)
    behind = behind + jnp.sum(head, axis=1, dtype=jnp.int32)
    rank = 1 + jnp.where(hit.any(axis=1), ahead, behind)
    return jnp.where(target >= 0, rank, 0)
