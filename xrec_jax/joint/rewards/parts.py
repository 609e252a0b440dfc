"""Reward parts that read nothing but the scored rollouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.joint.rewards.base import Scored, register


@register("log_prob_gain")
def log_prob_gain(scored: Scored) -> jax.Array:
    """The gain log p(y | u, e) - log p(y | u, null), in nats."""
    return scored.log_prob - scored.need("log_prob_null")


@register("shuffled_gain")
def shuffled_gain(scored: Scored) -> jax.Array:
    """The gain log p(y | u, e) - log p(y | u, another user's e), in nats: a paired baseline.

    What any text would gain, whatever it says, cancels.
    """
    return scored.log_prob - scored.need("log_prob_shuffled")


@register("ndcg_gain", k=10)
def ndcg_gain(scored: Scored, k: int) -> jax.Array:
    """NDCG@k with the explanation minus without, in [-1, 1].

    With one held-out item NDCG@k is `1 / log2(1 + rank)` up to rank k, else 0.

    Raises:
      UserError: if `k` is below 1.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1")

    def value(rank: jax.Array) -> jax.Array:
        return jnp.where(rank <= k, 1.0 / jnp.log2(1.0 + rank.astype(jnp.float32)), 0.0)

    return value(scored.need("rank")) - value(scored.need("rank_null"))


@register("length", target=60, tolerance=20, cost=0.01)
def length(scored: Scored, target: int, tolerance: int, cost: float) -> jax.Array:
    """`-cost * max(0, |length - target| - tolerance)`: too short costs as much as too long.

    Raises:
      UserError: if one of the options is negative.
    """
    for key, value in (("target", target), ("tolerance", tolerance), ("cost", cost)):
        if value < 0:
            raise UserError(f"{key}={value} must not be negative")
    away = jnp.abs(scored.need("length").astype(jnp.float32) - target)
    return jnp.float32(-cost) * jnp.maximum(away - tolerance, 0.0)


@register("ended")
def ended(scored: Scored) -> jax.Array:
    """-1 for an answer that ran into the token limit, 0 for one that ended."""
    return scored.need("ended").astype(jnp.float32) - 1.0


@register("grounding", empty=0.0, distinct=False)
def grounding(scored: Scored, empty: float, distinct: bool) -> jax.Array:
    """Share of an answer's content tokens that stand in its prompt, in [0, 1].

    Args:
      scored: the rollouts.
      empty: the value of an answer without a content token.
      distinct: count each token once, so that repeating a grounded one gains nothing.
    """
    answer, prompt = scored.need("answer"), scored.need("prompt")
    counted = scored.need("answer_mask").astype(bool) & scored.need("content")[answer]
    if distinct:
        earlier = jnp.tril(jnp.ones((answer.shape[1],) * 2, bool), -1)
        same = (answer[:, :, None] == answer[:, None, :]) & counted[:, None, :]
        counted &= ~jnp.any(same & earlier, axis=2)
    # The comparison is fused into the reduction: no [n, A, L] array is kept.
    shown = (answer[:, :, None] == prompt[:, None, :]) & scored.need("prompt_mask").astype(bool)[
        :, None, :
    ]
    grounded = counted & jnp.any(shown, axis=2)
    number = jnp.sum(counted, axis=1).astype(jnp.float32)
    share = jnp.sum(grounded, axis=1).astype(jnp.float32) / jnp.maximum(number, 1.0)
    return jnp.where(number > 0, share, jnp.float32(empty))


@register("group_disparity")
def group_disparity(scored: Scored) -> jax.Array:
    """Pulls the groups' mean gains together; gain is `log_prob_gain`.

    With m_g the mean gain of group g, m the mean of the m_g, and m_{g,-i} the mean of g without
    row i, the part of a row i of g is

        -(m_g - m) * (gain_i - m_{g,-i}).

    In a group that gains more than the others a row pays for gaining more than its group; in one
    that gains less it is paid for that. It is the score-function gradient of
    `-1/2 sum_g (m_g - m)^2`, up to the group's size, with the rest of the group as baseline
    (leave-one-out, as in RLOO). A penalty equal for a whole group would move no row. Groups with
    one row, and rows of group -1, get 0 and do not enter m. The unit is nats squared.
    """
    gain, group = log_prob_gain(scored), scored.need("group")
    same = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    size = jnp.sum(same, axis=1).astype(jnp.float32)
    counted = size > 1
    size = jnp.maximum(size, 2.0)  # rows that do not count divide by something, too
    # Sums, not products of matrices: those are not float32 on every device.
    sums = jnp.sum(jnp.where(same, gain[None, :], 0.0), axis=1)
    mean, others = sums / size, (sums - gain) / (size - 1.0)
    share = jnp.where(counted, 1.0 / size, 0.0)  # adds up to 1 in each group
    overall = jnp.sum(share * mean) / jnp.maximum(jnp.sum(share), 1.0)
    return jnp.where(counted, -(mean - overall) * (gain - others), 0.0)
