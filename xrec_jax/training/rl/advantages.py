"""Advantages of tokens from scores of whole answers.

Arrays are `[n, A]`: n answers of at most A tokens. `mask` is true on the real tokens of an answer,
which come first. Rewards and advantages are float32 for inputs of any type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.training.rl import kl as kls

# A spread below this share of the mean is rounding, not a difference.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class AdvantageOptions:
    """Options of the advantage estimators.

    Attributes:
      discount: discount of later rewards per token ("gae").
      lam: lambda of GAE: 0 trusts the critic, 1 the rewards ("gae").
      scale: whether to divide by the standard deviation of the group ("group").
      num_groups: upper bound of group numbers; 0 for the number of rows ("group").
      whiten: whether to normalise all advantages of the batch to mean 0 and standard deviation 1
        ("gae"). Never applied to "group", whose advantages have a baseline and, with `scale`, a
        unit already: the mean over tokens is above 0 if long answers earn more, and subtracting it
        would give answers of equal scores a negative advantage.
    """

    discount: float = 1.0
    lam: float = 0.95
    scale: bool = True
    num_groups: int = 0
    whiten: bool = True

    def __post_init__(self) -> None:
        for name in ("discount", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.num_groups < 0:
            raise UserError(f"num_groups={self.num_groups} must not be negative; 0 for the rows")


def _float32(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x).astype(jnp.float32) for x in arrays)


def answer_mask(length: jax.Array, size: int) -> jax.Array:
    """Mask `[n, size]` of real tokens from answer lengths `[n]`.

    Masks come from lengths only, as a padding id within an answer is a token as any other.
    """
    return jnp.arange(size) < length[:, None]


def missing_eos(score: jax.Array, ended: jax.Array, penalty: float) -> jax.Array:
    """Subtracts a penalty from the scores of answers that were cut off: `[n]` float32.

    Args:
      score: `[n]`.
      ended: `[n]` bool, true if the last token is an end-of-sequence token.
      penalty: subtracted from the other scores.
    """
    (score,) = _float32(score)
    return jnp.where(ended, score, score - jnp.float32(penalty))


class TokenRewards(flax.struct.PyTreeNode):
    """Rewards of tokens in two terms, which an estimator may treat separately.

    NumPy and JAX read it as `total`.

    Attributes:
      score: `[n, A]` float32, an answer's score at its last token, 0 elsewhere.
      penalty: `[n, A]` float32, the weighted KL of each token, 0 outside the mask.
    """

    score: jax.Array
    penalty: jax.Array

    @property
    def total(self) -> jax.Array:
        """Reward of each token, `[n, A]`."""
        return self.score - self.penalty

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.total, dtype)

    def __jax_array__(self) -> jax.Array:
        return self.total


def token_rewards(
    score: jax.Array,
    log_probs: jax.Array,
    reference: jax.Array,
    mask: jax.Array,
    *,
    beta: jax.Array | float,
    kind: str = "k1",
) -> TokenRewards:
    """Rewards of tokens: the KL to the reference at each token, and the score at the last one.

    They sum to `score - beta * sum KL` (Ziegler et al., arXiv 1909.08593, equation 2). An answer
    without tokens has no reward.

    Args:
      score: `[n]` scores of whole answers.
      log_probs: `[n, A]` of the policy that sampled the tokens.
      reference: `[n, A]` of the reference, at the same temperature.
      mask: `[n, A]` bool.
      beta: weight of the KL.
      kind: estimator of the KL, see `kl.KINDS`.

    Returns:
      Both terms, 0 outside the mask.
    """
    score, log_probs, reference = _float32(score, log_probs, reference)
    mask = mask.astype(bool)
    divergence = kls.estimate(log_probs, reference, kind=kind)
    column = jnp.arange(mask.shape[1])
    last = jnp.max(jnp.where(mask, column, -1), axis=1, keepdims=True)
    return TokenRewards(
        score=jnp.where(column == last, score[:, None], 0.0),
        penalty=jnp.where(mask, jnp.float32(beta) * divergence, 0.0),
    )


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, discount: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equation 16).

    The last token of an answer ends the episode: the value after it is 0.

    Args:
      rewards: `[n, A]`.
      values: `[n, A]` of the state before each token.
      mask: `[n, A]` bool.
      discount: gamma per token.
      lam: lambda.

    Returns:
      Advantages and returns (targets of the critic), `[n, A]` float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    rewards, values = (jnp.where(mask, x, 0.0) for x in _float32(rewards, values))

    def back(carry, column):
        after, value_after = carry
        reward, value, real = column
        delta = reward + discount * value_after - value
        advantage = jnp.where(real, delta + discount * lam * after, 0.0)
        return (advantage, value), advantage

    start = (jnp.zeros_like(rewards[:, 0]), jnp.zeros_like(rewards[:, 0]))
    _, columns = jax.lax.scan(back, start, (rewards.T, values.T, mask.T), reverse=True)
    advantages = columns.T
    return advantages, advantages + values


def group_advantages(
    scores: jax.Array, groups: jax.Array, num_groups: int, mask: jax.Array, *, scale: bool = True
) -> jax.Array:
    """Group-relative advantages of GRPO, equal at every token of an answer.

    Scores are compared among answers to one prompt (Shao et al., arXiv 2402.03300, section 4.1.2).
    A group of one, or of equal scores, has advantage 0. With `scale` the result does not depend on
    the unit of the scores; without, groups whose answers hardly differ are not weighted up (Liu et
    al., "Dr. GRPO", arXiv 2503.20783, section 3.1, which is also why no answer is divided by its
    length).

    Args:
      scores: `[n]` of whole answers, or `[n, A]` rewards of tokens, which are summed. They must not
        include the KL: in a group of equal scores its rounding would be the only difference.
      groups: `[n]` int32 from 0 to below `num_groups`; rows with another number (padding of a
        batch) belong to no group and have advantage 0.
      num_groups: number of groups.
      mask: `[n, A]` bool.
      scale: whether to divide by the group's standard deviation, besides subtracting its mean.

    Returns:
      `[n, A]` float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    (scores,) = _float32(scores)
    if scores.ndim == 2:
        scores = jnp.sum(jnp.where(mask, scores, 0.0), axis=1)
    known = (groups >= 0) & (groups < num_groups)
    group = jnp.where(known, groups, num_groups)  # one more group takes those without

    def mean(x):
        total = jax.ops.segment_sum(x, group, num_groups + 1)
        count = jax.ops.segment_sum(jnp.ones_like(x), group, num_groups + 1)
        return (total / jnp.maximum(count, 1.0))[group]

    average = mean(scores)
    centred = scores - average
    spread = jnp.sqrt(mean(jnp.square(centred)))
    real = known & (spread > _ROUNDING * jnp.abs(average))
    advantages = jnp.where(real, centred / jnp.where(real & scale, spread, 1.0), 0.0)
    return jnp.where(mask, advantages[:, None], 0.0)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Normalises to mean 0 and standard deviation 1 over all real tokens of the global batch.

    Sums run over the whole array, however it is sharded. A single token, or equal tokens, become 0.

    Args:
      x: `[n, A]`.
      mask: `[n, A]` bool.

    Returns:
      `[n, A]` float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    (x,) = _float32(x)
    count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(mask, x, 0.0)) / count
    centred = jnp.where(mask, x - mean, 0.0)
    spread = jnp.sqrt(jnp.sum(jnp.square(centred)) / count)
    real = spread > _ROUNDING * jnp.abs(mean)
    return jnp.where(real, centred / jnp.where(real, spread, 1.0), 0.0)


def _gae(rewards, values, mask, groups, *, options):
    if values is None:
        raise UserError("estimator='gae' needs a critic's values; estimator='group' needs none")
    advantages, returns = gae(
        rewards.total, values, mask, discount=options.discount, lam=options.lam
    )
    return (whiten(advantages, mask) if options.whiten else advantages), returns


def _group(rewards, values, mask, groups, *, options):
    """Group-relative advantages of the scores, minus the KL from each token to the end.

    The sum over an answer of `grad log p` times the remaining KL is the gradient of the KL of whole
    answers, as the score's is that of the expected score. GRPO also keeps the KL out of the group
    comparison (arXiv 2402.03300, section 4.1.1) but in a loss; there it would need another
    estimator, since the gradient of "k1" is 0 in expectation. In both cases its weight is relative
    to advantages in units of the group's spread with `scale`, and of the score without.
    """
    if groups is None:
        raise UserError("estimator='group' needs the group number of every row")
    number = options.num_groups or mask.shape[0]
    mask = mask.astype(bool) & ((groups >= 0) & (groups < number))[:, None]
    score, penalty = (_to_go(term, mask) for term in (rewards.score, rewards.penalty))
    advantages = group_advantages(score[:, 0], groups, number, mask, scale=options.scale)
    # No critic is trained; the returns are the sums that one would have to predict.
    return advantages - penalty, score - penalty


def _to_go(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums from each token to the end of the answer, `[n, A]`; 0 outside the mask."""
    (x,) = _float32(jnp.where(mask, x, 0.0))
    return jnp.where(mask, jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1], 0.0)


Estimator = Callable[..., tuple[jax.Array, jax.Array]]

# `(TokenRewards, values [n, A] or None, mask [n, A], groups [n] or None, *, options)`
# -> advantages, returns `[n, A]`.
ESTIMATORS: dict[str, Estimator] = {"gae": _gae, "group": _group}


def advantages_of(
    name: str,
    rewards: TokenRewards | jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    groups: jax.Array | None,
    *,
    options: AdvantageOptions,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns by an estimator of `ESTIMATORS`.

    Args:
      name: name of the estimator.
      rewards: rewards of tokens; a plain `[n, A]` array is read as scores without a KL.
      values: `[n, A]` of the critic, or None.
      mask: `[n, A]` bool.
      groups: `[n]` int32, or None.
      options: options of the estimators.

    Returns:
      Advantages and returns, `[n, A]` float32, 0 outside the mask.

    Raises:
      UserError: on an unknown name, or one whose input is missing.
    """
    if name not in ESTIMATORS:
        raise UserError(f"estimator={name!r} is not valid{did_you_mean(name, ESTIMATORS)}")
    if not isinstance(rewards, TokenRewards):
        rewards = TokenRewards(rewards, jnp.zeros_like(rewards))
    return ESTIMATORS[name](rewards, values, mask, groups, options=options)
