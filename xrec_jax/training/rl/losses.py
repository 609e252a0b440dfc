"""Losses of a policy and its critic, as sums over tokens.

All functions return sums, not means. The step divides them by the number of real tokens of the
whole batch, so neither accumulation nor sharding changes the mean, up to rounding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.training.rl import kl

# Metrics of `ppo.ppo_step`. Means are over the real answer tokens of the minibatch. Those of the
# critic are missing without a critic.
METRICS = {
    "ppo/policy_loss": "mean clipped surrogate loss, without entropy and value terms",
    "ppo/value_loss": "mean clipped value loss, half the squared error, before its weight",
    "ppo/entropy": "mean entropy of the next token at the sampling temperature, nats",
    "ppo/kl_old": "mean KL from the policy of the rollout to this one (k3), nats a token",
    "ppo/ratio_mean": "mean probability ratio of this policy to that of the rollout",
    "ppo/ratio_max": "largest such ratio",
    "ppo/clip_fraction": "share of tokens whose gradient the clip of the ratio removes",
    "ppo/value_clip_fraction": "share of tokens whose value gradient the clip removes",
    "ppo/explained_variance": "1 - var(returns - rollout's values) / var(returns); 0 without any",
    "ppo/grad_norm_policy": "norm of the policy's gradient, before clipping",
    "ppo/grad_norm_critic": "norm of the critic's gradient, before clipping",
    "ppo/tokens": "real answer tokens",
    "ppo/stopped": "1 where kl_old was above kl_stop, so that nothing was updated",
}

_FAR = 20.0  # of a log-ratio; its exponential must stay finite


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """Loss of a policy step.

    Attributes:
      temperature: temperature of every log-probability; that of the sampled answers.
      clip: bound of the ratio, to `1 - clip` to `1 + clip`.
      value_clip: bound of the values' distance to those of the rollout; 0 is off.
      value_weight: weight of the value loss.
      entropy_weight: weight of the entropy bonus.
      kl_stop: bound of `ppo/kl_old`, above which a minibatch updates nothing; 0 is off.
      placeholder: id of the token that soft vectors replace; -1 without soft prompts.
    """

    temperature: float = 1.0
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    kl_stop: float = 0.0
    placeholder: int = -1

    def __post_init__(self) -> None:
        for name in ("temperature", "clip"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UserError(f"ppo {name}={getattr(self, name)} must be a positive number")
        for name in ("value_clip", "value_weight", "entropy_weight", "kl_stop"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UserError(f"ppo {name}={getattr(self, name)} must be a number from 0")


class Summed(NamedTuple):
    """A loss and its metrics, both summed over tokens.

    Attributes:
      loss: scalar.
      sums: metrics to divide by the number of tokens, named without `ppo/`.
    """

    loss: jax.Array
    sums: dict[str, jax.Array]


def _total(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x, jnp.zeros((), x.dtype)))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_ratio(log_probs: jax.Array, old: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-ratio `log(new / old)` of every token, with a finite exponential; 0 outside the mask.

    Equal bits give a ratio of exactly 1.
    """
    difference = _wide(jnp.where(mask, log_probs, 0.0)) - _wide(jnp.where(mask, old, 0.0))
    return jnp.clip(difference, -_FAR, _FAR)


def policy_loss(
    log_probs: jax.Array, old: jax.Array, advantages: jax.Array, mask: jax.Array, *, clip: float
) -> tuple[Summed, jax.Array]:
    """Clipped surrogate loss of PPO (Schulman et al., arXiv 1707.06347, equation 7).

    Args:
      log_probs: `[n, A]` of the trained policy.
      old: `[n, A]` of the policy that sampled the tokens.
      advantages: `[n, A]`.
      mask: `[n, A]` bool.
      clip: epsilon.

    Returns:
      The loss with `policy_loss`, `kl_old`, `ratio_mean` and `clip_fraction`; the largest ratio.
    """
    old, advantages = jax.lax.stop_gradient((old, advantages))
    advantages = jnp.where(mask, _wide(advantages), 0.0)
    difference = log_ratio(log_probs, old, mask)
    ratio = jnp.exp(difference)
    free = -advantages * ratio
    bounded = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    loss = _total(jnp.maximum(free, bounded), mask)
    sums = {
        "policy_loss": loss,
        # Tokens come from the old policy, so it is the first of the two.
        "kl_old": _total(kl.k3(-difference), mask),
        "ratio_mean": _total(ratio, mask),
        "clip_fraction": _total((bounded > free).astype(ratio.dtype), mask),
    }
    return Summed(loss, sums), jnp.max(jnp.where(mask, ratio, 0.0))


def value_loss(
    values: jax.Array, old: jax.Array, returns: jax.Array, mask: jax.Array, *, clip: float
) -> Summed:
    """Clipped value loss: half the squared error, with a bounded distance to the rollout's values.

    The larger of the errors of the value and of the value clipped to `old - clip` to `old + clip`
    (Schulman et al., arXiv 1506.02438, section 5, in the form that PPO implementations use).

    Args:
      values: `[n, A]` of the trained critic.
      old: `[n, A]` of the critic at the rollout.
      returns: `[n, A]`.
      mask: `[n, A]` bool.
      clip: distance; 0 is off.

    Returns:
      The loss with `value_loss` and `value_clip_fraction`.
    """
    old, returns = jax.lax.stop_gradient((old, returns))
    # What is beyond an answer may be anything, and must not reach the gradient either.
    values, old, returns = (jnp.where(mask, _wide(x), 0.0) for x in (values, old, returns))
    free = jnp.square(values - returns)
    bounded = free
    if clip:
        moved = values - old
        # Within the bounds it is the value itself, to the last bit, so that nothing counts as cut.
        near = jnp.where(jnp.abs(moved) <= clip, values, old + jnp.clip(moved, -clip, clip))
        bounded = jnp.square(near - returns)
    loss = 0.5 * _total(jnp.maximum(free, bounded), mask)
    clipped = _total((bounded > free).astype(values.dtype), mask)
    return Summed(loss, {"value_loss": loss, "value_clip_fraction": clipped})


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the returns' variance explained by a critic; below 0 if worse than their mean.

    Args:
      values: `[n, A]`.
      returns: `[n, A]`.
      mask: `[n, A]` bool.

    Returns:
      float32 scalar; 0 where the returns do not vary.
    """
    count = jnp.maximum(jnp.sum(mask), 1)

    def moments(x):
        mean = _total(x, mask) / count
        return mean, _total(jnp.square(x - mean), mask)

    mean, spread = moments(returns)
    rest = moments(returns - values)[1]
    # A spread within rounding of the mean would make the quotient noise.
    varies = spread > count * jnp.square(1e-6 * mean)
    return jnp.where(varies, 1.0 - rest / jnp.where(varies, spread, 1.0), 0.0)
