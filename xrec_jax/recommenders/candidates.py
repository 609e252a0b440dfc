"""Losses against one set of sampled items that all positions of a batch share.

Thousands of negatives cost little where every position is compared with the same ones: their scores
are one matrix product. The items are drawn on the device from the key of the step, so a mesh and a
resumed run draw the same.

Dimension letters: b batch, t position, n candidate, d feature.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.recommenders import losses

_EXCLUDED = -1e30


class Candidates(NamedTuple):
    """Sampled items.

    Attributes:
      item: `[n]` int32.
      log_count: `[n]` float32, logarithm of how often the item is expected among the n draws: log
        (n q) of an item with sampling probability q; `inf` for a row that is none.
    """

    item: jax.Array
    log_count: jax.Array


def uniform(key: jax.Array, number: int, num_items: int) -> Candidates:
    """Draws `number` items with equal probabilities, with replacement."""
    item = jax.random.randint(key, (number,), 0, num_items)
    return Candidates(item, jnp.full(number, np.log(number / num_items), jnp.float32))


def popular(key: jax.Array, number: int, upto: jax.Array, log_q: jax.Array) -> Candidates:
    """Draws `number` items in proportion to their training events, with replacement.

    Args:
      key: key of the draw.
      number: number of draws.
      upto: `[items]` int32, number of training events with this item or one before it.
      log_q: `[items]` float32, logarithm of an item's share of the events.
    """
    event = jax.random.randint(key, (number,), 0, upto[-1])
    item = jnp.searchsorted(upto, event, side="right").astype(jnp.int32)
    return Candidates(item, log_q[item] + np.float32(np.log(number)))


def in_batch(
    key: jax.Array, number: int, target: jax.Array, weight: jax.Array, log_q: jax.Array
) -> Candidates:
    """Draws `number` of the batch's own targets, which are as frequent as items are popular.

    Args:
      key: key of the draw.
      number: number of draws, with replacement; those that fall on padding are none.
      target: `[b, t]` int32.
      weight: `[b, t]`, 0 for padding.
      log_q: as for `popular`.
    """
    place = jax.random.randint(key, (number,), 0, target.size)
    item, real = target.reshape(-1)[place], weight.reshape(-1)[place] > 0
    count = jnp.maximum(jnp.sum(real), 1)
    return Candidates(item, jnp.where(real, log_q[item] + jnp.log(count), jnp.inf))


class Loss(NamedTuple):
    """A loss of one position against candidates; hashable, as a static argument.

    Attributes:
      kind: "softmax", "bce" or "gbce".
      correct: for "softmax", whether scores are corrected for the sampling ("logQ").
      power: for "gbce", see `losses.generalised_bce`.
    """

    kind: str
    correct: bool = True
    power: float = 1.0

    def __call__(
        self, state: jax.Array, own: jax.Array, vector: jax.Array, target: jax.Array, c: Candidates
    ) -> jax.Array:
        """Loss of each position.

        Args:
          state: `[m, d]`.
          own: `[m, d]` vectors of the targets.
          vector: `[n, d]` vectors of the candidates.
          target: `[m]` int32; a candidate equal to it does not count.
          c: the candidates.
        """
        positive = jnp.sum(state.astype(jnp.float32) * own.astype(jnp.float32), axis=-1)
        scores = jnp.dot(state, vector.astype(state.dtype).T, preferred_element_type=jnp.float32)
        out = (c.item == target[:, None]) | jnp.isposinf(c.log_count)
        if self.kind == "softmax":
            offset = jnp.where(jnp.isposinf(c.log_count), 0.0, c.log_count)
            shifted = scores - offset if self.correct else scores
            others = jax.nn.logsumexp(jnp.where(out, _EXCLUDED, shifted), axis=-1)
            return jnp.logaddexp(others, positive) - positive
        terms = jnp.where(out, 0.0, jax.nn.softplus(scores))
        total, count = terms.sum(axis=-1), jnp.sum(~out, axis=-1)
        if self.kind == "gbce":
            return losses.generalised_bce(positive, total, count, self.power)
        return jax.nn.softplus(-positive) + total / jnp.maximum(count, 1)


def summed_loss(
    loss: Loss,
    states: jax.Array,
    own: jax.Array,
    vectors: jax.Array,
    target: jax.Array,
    weight: jax.Array,
    candidates: Candidates,
) -> jax.Array:
    """Weighted sum of a loss over all positions, without an array `[b, t, n]`.

    Scores are computed for a few positions of all rows at a time, together with their gradient, as
    in `losses.full_softmax`.

    Args:
      loss: the loss of a position.
      states: `[b, t, d]`.
      own: `[b, t, d]` vectors of the targets.
      vectors: `[n, d]` vectors of the candidates.
      target: `[b, t]` int32.
      weight: `[b, t]` float32; not differentiated.
      candidates: the candidates.
    """
    return _summed(loss, states, own, vectors, target, weight, candidates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(loss, states, own, vectors, target, weight, candidates):
    return _forward(loss, states, own, vectors, target, weight, candidates)[0]


def _forward(loss, states, own, vectors, target, weight, candidates):
    split, joined = losses.position_chunks(*target.shape, width=len(vectors))

    def step(vectors_grad, inputs):
        h, o, y, w = inputs

        def total(h, o, v):
            return jnp.sum(loss(h, o, v, y, candidates) * w)

        part, (dh, do, dv) = jax.value_and_grad(total, argnums=(0, 1, 2))(h, o, vectors)
        return vectors_grad + dv.astype(jnp.float32), (part, dh, do)

    zero = jnp.zeros(vectors.shape, jnp.float32)
    inputs = tuple(map(split, (states, own, target, weight)))
    vectors_grad, (parts, states_grad, own_grad) = jax.lax.scan(step, zero, inputs)
    grads = joined(states_grad), joined(own_grad), vectors_grad.astype(vectors.dtype)
    return jnp.sum(parts), grads


def _backward(loss, grads, g):
    del loss
    return *((g * grad).astype(grad.dtype) for grad in grads), None, None, None


_summed.defvjp(_forward, _backward)
