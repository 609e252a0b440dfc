"""Ranking losses as pure functions; every one returns one float32 value an example.

Dimension letters: b batch, t position, i item, n negative, d feature.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def bpr(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Bayesian personalised ranking: `-log sigmoid(s_pos - s_neg)`, mean over the negatives.

    Rendle et al., UAI 2009.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.

    Returns:
      `[...]`.
    """
    return jnp.mean(jax.nn.softplus(negative - positive[..., None]), axis=-1)


def binary_cross_entropy(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """`-log sigmoid(s_pos) - mean_n log(1 - sigmoid(s_neg))`, the loss of SASRec as published.

    Kang and McAuley, ICDM 2018, equation 6.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.

    Returns:
      `[...]`.
    """
    return jax.nn.softplus(-positive) + jnp.mean(jax.nn.softplus(negative), axis=-1)


def full_softmax(logits: jax.Array, target: jax.Array, num_items: int) -> jax.Array:
    """Cross entropy over the whole catalogue.

    Args:
      logits: `[..., padded_items]`; columns from `num_items` on are padding and take no part.
      target: `[...]` int32.
      num_items: items in the catalogue.

    Returns:
      `[...]`.
    """
    real = jnp.arange(logits.shape[-1]) < num_items
    logits = jnp.where(real, logits.astype(jnp.float32), -1e30)
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)


def sampled_softmax(
    positive: jax.Array,
    negative: jax.Array,
    log_q_positive: jax.Array,
    log_q_negative: jax.Array,
    collision: jax.Array,
) -> jax.Array:
    """Cross entropy over the target and sampled negatives, corrected for how they were drawn.

    Each score is lowered by the log of the item's sampling probability, `s_i - log q_i`, which
    makes the sampled loss approach the full softmax (Bengio and Senecal, 2008; Yi et al., RecSys
    2019). A negative that is the target itself is left out.

    Args:
      positive: scores `[...]`.
      negative: scores `[..., n]`.
      log_q_positive: `[...]`, log sampling probability of the target.
      log_q_negative: `[..., n]`.
      collision: `[..., n]` bool, true where the negative is the target.

    Returns:
      `[...]`.
    """
    first = (positive - log_q_positive)[..., None]
    rest = jnp.where(collision, -1e30, negative - log_q_negative)
    return jax.nn.logsumexp(jnp.concatenate([first, rest], axis=-1), axis=-1) - first[..., 0]


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of `values` with `weight`, safe where all weights are zero."""
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)
