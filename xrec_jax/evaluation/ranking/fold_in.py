"""Vectors for histories that no user of the table has: fold-in on a frozen item table.

Models with a user table (matrix factorisation, LightGCN) learned one vector a user, so they cannot
say what a user with two visits less would score. Folding in gives every history, whole or edited, a
vector by one and the same procedure, so that only the history makes the difference. Item vectors
stay as they are; for LightGCN those are the final ones, after propagation.

The vector of a history H is the most probable one under a softmax over the catalogue and a normal
prior with the mean m and covariance S of the model's own user vectors,

    u(H) = argmax_u  sum_{i in H} log softmax(V u)_i - (u - m)' S^-1 (u - m) / 2,

a concave problem without a knob: the prior says how far users differ. An empty history has the
mean user. Solved by Newton steps, each cut back until it does not lower the objective.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.lookup import take_rows
from xrec_jax.parallel.mesh import gather

_STEPS = 12
_HALVINGS = 10
# Adds to the variances, as a share of their mean: few users leave directions without any.
_FLOOR = 1e-3
_BLOCK_CELLS = 1 << 22  # cells of the products of item vectors that are alive at a time


class Prior(NamedTuple):
    """The spread of a model's users: `mean` `[dim]`, `precision` `[dim, dim]`, float32."""

    mean: jax.Array
    precision: jax.Array


def user_prior(user_table: Any, num_users: int) -> Prior:
    """Mean and inverse covariance of the first `num_users` rows `[users, dim]` of a table."""

    @jax.jit
    def moments(table):
        real = (jnp.arange(table.shape[0]) < num_users)[:, None]
        mean = jnp.where(real, table, 0).sum(axis=0) / num_users
        centred = jnp.where(real, table - mean, 0)
        return mean, centred.T @ centred / num_users

    mean, covariance = gather(moments(user_table))
    covariance = covariance.astype(np.float64)
    dim = len(mean)
    floor = max(_FLOOR * np.trace(covariance) / dim, 1e-12)
    precision = np.linalg.inv(covariance + floor * np.eye(dim))
    return Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))


def fold_in(item_table: jax.Array, history: jax.Array, num_items: int, prior: Prior) -> jax.Array:
    """Vectors of histories (see the module).

    Args:
      item_table: `[padded_items, dim]`; rows from `num_items` on take no part.
      history: `[batch, width]` int32 items; -1 is padding, order does not matter.
      num_items: items in the catalogue.
      prior: of users.

    Returns:
      `[batch, dim]` float32.
    """
    table = item_table.astype(jnp.float32)
    bias = jnp.where(jnp.arange(table.shape[0]) < num_items, 0.0, -jnp.inf)
    real = history >= 0
    count = real.sum(axis=1).astype(jnp.float32)
    chosen = jnp.where(real[..., None], take_rows(table, jnp.maximum(history, 0)), 0).sum(axis=1)
    rates = 0.5 ** jnp.arange(_HALVINGS, dtype=jnp.float32)

    def objective(user, logits):
        away = user - prior.mean
        fit = jnp.einsum("bd,bd->b", user, chosen) - count * jax.nn.logsumexp(logits, axis=1)
        return fit - 0.5 * jnp.einsum("bd,de,be->b", away, prior.precision, away)

    def step(_, carry):
        user, logits = carry
        chance = jax.nn.softmax(logits, axis=1)
        expected = chance @ table
        gradient = chosen - count[:, None] * expected - (user - prior.mean) @ prior.precision
        spread = _second_moments(chance, table) - jnp.einsum("bd,be->bde", expected, expected)
        curvature = count[:, None, None] * spread + prior.precision
        move = jnp.linalg.solve(curvature, gradient[..., None])[..., 0]
        slope = move @ table.T
        now = objective(user, logits)

        def tried(rate):
            return objective(user + rate * move, logits + rate * slope)

        values = jax.lax.map(tried, rates)
        # Near the top float32 cannot tell the values apart: there the whole step is right.
        least = now - 1e-6 * (1 + jnp.abs(now))
        rate = jnp.where(values >= least, rates[:, None], 0.0).max(axis=0)[:, None]
        return user + rate * move, logits + rate * slope

    user = jnp.broadcast_to(prior.mean, (len(history), table.shape[1]))
    return jax.lax.fori_loop(0, _STEPS, step, (user, user @ table.T + bias))[0]


def _second_moments(chance: jax.Array, table: jax.Array) -> jax.Array:
    """`sum_i p_bi v_i v_i'`: `[batch, items]`, `[items, dim]` -> `[batch, dim, dim]`."""
    items, dim = table.shape
    limit = max(1, _BLOCK_CELLS // dim**2)
    size = next(size for size in range(min(items, limit), 0, -1) if items % size == 0)

    def one(number, total):
        rows = jax.lax.dynamic_slice_in_dim(table, number * size, size)
        part = jax.lax.dynamic_slice_in_dim(chance, number * size, size, axis=1)
        return total + part @ (rows[:, :, None] * rows[:, None, :]).reshape(size, dim**2)

    zero = jnp.zeros((len(chance), dim**2), jnp.float32)
    return jax.lax.fori_loop(0, items // size, one, zero).reshape(-1, dim, dim)
