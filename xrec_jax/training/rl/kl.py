"""Estimators of the Kullback-Leibler divergence from sampled tokens, and its adaptive weight."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError, did_you_mean

_FAR = 30.0  # exp of more leaves float32 no room for a sum


def k1(difference: jax.Array) -> jax.Array:
    """Estimator `log p - log q`: unbiased, single values may be negative."""
    return difference


def k2(difference: jax.Array) -> jax.Array:
    """Estimator `(log p - log q)^2 / 2`: never negative, close to KL(p, q) if p and q are close."""
    return 0.5 * jnp.square(difference)


def k3(difference: jax.Array) -> jax.Array:
    """Estimator `q/p - 1 - log(q/p)`: unbiased and never negative."""
    return jnp.expm1(jnp.minimum(-difference, _FAR)) + difference


KINDS: dict[str, Callable[[jax.Array], jax.Array]] = {"k1": k1, "k2": k2, "k3": k3}


def estimate(log_probs: jax.Array, reference: jax.Array, *, kind: str = "k1") -> jax.Array:
    """KL(p, q) of every token, for tokens sampled from p.

    The estimators are those of Schulman, "Approximating KL divergence" (2020). All are 0 for equal
    probabilities.

    Args:
      log_probs: log-probabilities of the sampled tokens under p, any shape.
      reference: log-probabilities of the same tokens under q, at the same temperature.
      kind: one of `KINDS`.

    Returns:
      Nats, the shape of `log_probs`, at least float32.

    Raises:
      UserError: on an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"kl kind={kind!r} is not valid{did_you_mean(kind, KINDS)}")
    difference = log_probs - reference
    return KINDS[kind](difference.astype(jnp.promote_types(difference.dtype, jnp.float32)))


class Controller(flax.struct.PyTreeNode):
    """Weight of the KL in the reward; saved in checkpoints.

    Attributes:
      beta: float32 scalar.
    """

    beta: jax.Array


def controller(beta: float) -> Controller:
    """Creates a controller with an initial weight.

    Raises:
      UserError: if the value is negative or not finite.
    """
    if not 0.0 <= beta < float("inf"):
        raise UserError(f"kl beta={beta} must be a number from 0")
    return Controller(jnp.float32(beta))


def adapt(
    state: Controller,
    kl: jax.Array | float,
    *,
    target: float,
    gain: float = 0.1,
    limit: float = 0.2,
) -> Controller:
    """Moves the weight one step towards a KL target.

    Ziegler et al., arXiv 1909.08593, section 2.2: the relative error `(KL - target) / target`, cut
    to `[-limit, limit]`, times `gain` is the relative change of beta.

    Args:
      state: controller before the update.
      kl: mean KL of an answer (the sum over its tokens), nats.
      target: target KL of an answer, nats; 0 keeps beta fixed.
      gain: the paper's K_beta.
      limit: bound of the relative error.

    Raises:
      UserError: if the target is negative, or an update could make beta negative.
    """
    if not 0.0 <= target < float("inf"):
        raise UserError(f"kl target={target} must be a number from 0; 0 keeps beta fixed")
    if not (gain >= 0.0 and limit >= 0.0 and gain * limit < 1.0):
        raise UserError(f"kl gain={gain} times limit={limit} must be from 0 to below 1")
    if target == 0.0:
        return state
    error = jnp.clip((jnp.float32(kl) - target) / target, -limit, limit)
    return Controller(state.beta * (1.0 + gain * error))
