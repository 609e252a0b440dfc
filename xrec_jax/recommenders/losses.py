"""Ranking losses as pure functions, in float32.

Dimension letters: b batch, t position, i item, n negative, d feature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.lookup import take_rows

Split: TypeAlias = Callable[[jax.Array], jax.Array]


def bpr(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Bayesian personalised ranking: `-log sigmoid(s_pos - s_neg)`, averaged over the negatives.

    Rendle et al., UAI 2009.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.

    Returns:
      `[...]`.
    """
    return jnp.mean(jax.nn.softplus(negative - positive[..., None]), axis=-1)


def binary_cross_entropy(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Binary cross entropy `-log sigmoid(s_pos) - mean_n log(1 - sigmoid(s_neg))`, as in SASRec.

    Kang and McAuley, ICDM 2018, equation 6.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.

    Returns:
      `[...]`.
    """
    return jax.nn.softplus(-positive) + jnp.mean(jax.nn.softplus(negative), axis=-1)


def generalised_bce(
    positive: jax.Array, negative_sum: jax.Array, negatives: jax.Array | int, power: float
) -> jax.Array:
    """Generalised binary cross entropy of gSASRec.

    `-(log sigmoid(s_pos)^power + sum_n log(1 - sigmoid(s_n))) / (n + 1)`: with power 1, binary
    cross entropy over the target and n negatives. Petrov and Macdonald, RecSys 2023 (arXiv
    2308.07192); see `gbce_power`.

    Args:
      positive: scores `[...]`.
      negative_sum: `[...]`, sum over the negatives of `-log(1 - sigmoid(s_n))`.
      negatives: their number n, `[...]` or one for all.
      power: power of the positive probability, 0 to 1.
    """
    total = power * jax.nn.softplus(-positive) + negative_sum
    return total / (negatives + 1)


def gbce_power(calibration: float, negatives: int, num_items: int) -> float:
    """The power `a (t (1 - 1/a) + 1/a) = 1 - t (1 - a)` that calibrates gBCE.

    Args:
      calibration: t, from 0 (binary cross entropy as it is) to 1 (the probabilities that binary
        cross entropy against all items would have).
      negatives: number of negatives of a position; a is their share of the other items.
      num_items: items in the catalogue.
    """
    rate = min(1.0, negatives / max(num_items - 1, 1))
    return 1.0 - calibration * (1.0 - rate)


CHUNK_BYTES = 1 << 22  # of logits held at a time; about the size of a core's cache


def position_chunks(rows: int, steps: int, *, width: int) -> tuple[Split, Split]:
    """How arrays `[rows, steps, ...]` are cut into chunks of positions, and put together again.

    A chunk has as many positions of all rows as divide `steps` and have at most `CHUNK_BYTES` of
    scores; `[rows * positions, ...]` of each chunk are stacked on a new first axis.

    Args:
      rows: size of the first axis.
      steps: size of the second axis.
      width: scores of a position.
    """
    limit = max(1, CHUNK_BYTES // (4 * rows * width))
    chunk = next(size for size in range(min(limit, steps), 0, -1) if steps % size == 0)

    def split(x: jax.Array) -> jax.Array:
        parts = jnp.moveaxis(x.reshape(rows, steps // chunk, chunk, *x.shape[2:]), 1, 0)
        return parts.reshape(steps // chunk, rows * chunk, *x.shape[2:])

    def joined(x: jax.Array) -> jax.Array:
        parts = x.reshape(steps // chunk, rows, chunk, *x.shape[2:])
        return jnp.moveaxis(parts, 0, 1).reshape(rows, steps, *x.shape[2:])

    return split, joined


def full_softmax(
    states: jax.Array, table: jax.Array, target: jax.Array, weight: jax.Array, num_items: int
) -> jax.Array:
    """Weighted sum of the cross entropy over the catalogue, without an array `[b, t, items]`.

    Logits are computed for a few positions of all rows at a time, together with their gradient
    (`d loss / d logits = softmax - one_hot`), so no logits are recomputed.

    Args:
      states: `[b, t, d]`.
      table: `[padded_items, d]`; rows from `num_items` on are padding and ignored.
      target: `[b, t]` int32.
      weight: `[b, t]` float32.
      num_items: items in the catalogue.

    Returns:
      Scalar float32.
    """
    return _full_softmax(num_items, states, table, target, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _full_softmax(num_items, states, table, target, weight):
    return jnp.sum(_softmax_pass(num_items, states, table, target, weight)[0] * weight)


def _softmax_pass(num_items, states, table, target, weight):
    """Loss of every position, and gradients of the weighted sum by states and table."""
    split, joined = position_chunks(*target.shape, width=table.shape[0])
    bias = jnp.where(jnp.arange(table.shape[0]) < num_items, 0.0, -1e30)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    table = table.astype(states.dtype)

    def step(table_grad, chunk_inputs):
        h, y, w = chunk_inputs
        logits = product(h, table.T) + bias
        top = jnp.max(logits, axis=-1)
        exps = jnp.exp(logits - top[:, None])
        total = jnp.sum(exps, axis=-1)
        own = take_rows(table, y)
        own_logit = jnp.sum(h.astype(jnp.float32) * own.astype(jnp.float32), axis=-1)
        loss = top + jnp.log(total) - own_logit
        probability = (exps * (w / total)[:, None]).astype(h.dtype)
        h_grad = product(probability, table) - own * w[:, None]
        return table_grad + product(probability.T, h), (loss, h_grad)

    zero = jnp.zeros(table.shape, jnp.float32)
    table_grad, (loss, state_grad) = jax.lax.scan(
        step, zero, tuple(map(split, (states, target, weight)))
    )
    # The one-hot term of the gradient, for all positions at once.
    table_grad = table_grad.at[target].add(-states.astype(jnp.float32) * weight[..., None])
    return joined(loss), joined(state_grad), table_grad


def _forward(num_items, states, table, target, weight):
    loss, state_grad, table_grad = _softmax_pass(num_items, states, table, target, weight)
    gradients = state_grad.astype(states.dtype), table_grad.astype(table.dtype), loss
    return jnp.sum(loss * weight), gradients


def _backward(num_items, residuals, g):
    del num_items
    state_grad, table_grad, weight_grad = residuals
    state_grad = (g * state_grad).astype(state_grad.dtype)
    return state_grad, g * table_grad, None, g * weight_grad


_full_softmax.defvjp(_forward, _backward)


def target_log_probs(
    states: jax.Array,
    table: jax.Array,
    target: jax.Array,
    num_items: int,
    *,
    offset: tuple[Callable[[jax.Array], jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Log-probabilities of the targets under a softmax over the catalogue, `[b, t]` float32.

    A few positions of all rows at a time, computed again for the gradient.

    Args:
      states: `[b, t, d]`.
      table: `[padded_items, d]`; rows from `num_items` on are padding and ignored.
      target: `[b, t]` int32.
      num_items: items in the catalogue.
      offset: a function from items `[m]` to what is taken from all scores, `[m, padded_items]`,
        and the item of each position, `[b, t]`.
    """
    split, joined = position_chunks(*target.shape, width=table.shape[0])
    bias = jnp.where(jnp.arange(table.shape[0]) < num_items, 0.0, -1e30)

    @jax.checkpoint
    def of_chunk(inputs: tuple[jax.Array, ...]) -> jax.Array:
        h, y, *rest = inputs
        logits = jnp.dot(h, table.T, preferred_element_type=jnp.float32) + bias
        if offset is not None:
            logits -= offset[0](rest[0])
        own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return own - jax.nn.logsumexp(logits, axis=-1)

    arrays = (states, target) if offset is None else (states, target, offset[1])
    return joined(jax.lax.map(of_chunk, tuple(map(split, arrays))))


def sampled_softmax(
    positive: jax.Array, negative: jax.Array, log_q: jax.Array, collision: jax.Array
) -> jax.Array:
    """Cross entropy over the target and sampled negatives, corrected for their sampling.

    The normaliser of the full softmax is the target's own term plus the sum over all other items.
    The sum is estimated without bias from n samples with probability q: a sample j contributes
    exp(s_j) / (n q_j), that is, its score is lowered by log(n q_j) (Bengio and Senecal, 2008). A
    sample equal to the target contributes nothing, since the target is counted already.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.
      log_q: `[..., n]`, log sampling probability of each negative.
      collision: `[..., n]` bool, true for a negative equal to the target.

    Returns:
      `[...]`.
    """
    first = positive[..., None]
    corrected = negative - log_q - np.log(negative.shape[-1])
    corrected = jnp.where(collision, -1e30, corrected)
    return jax.nn.logsumexp(jnp.concatenate([first, corrected], axis=-1), axis=-1) - positive


def total_weight(weight: jax.Array) -> jax.Array:
    """Sum of `weight`, or 1 if that is 0: a safe divisor of a weighted sum."""
    total = jnp.sum(weight)
    return jnp.where(total > 0, total, 1.0)


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean of `values`; 0 if all weights are 0."""
    return jnp.sum(values * weight) / total_weight(weight)
