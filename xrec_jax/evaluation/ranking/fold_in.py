"""Fold-in: user vectors for arbitrary histories on a frozen item table.

Models with a user table (matrix factorisation, LightGCN) have learned one vector per user, so they
cannot score a user with two visits less. Fold-in gives every history, whole or edited, a vector by
one and the same procedure, so that only the history makes the difference. Item vectors stay fixed;
for LightGCN they are the final ones, after propagation.

The vector of a history H is the most probable one under a softmax over the catalogue and a normal
prior with the mean m and covariance S of the model's own user vectors,

    u(H) = argmax_u  sum_{i in H} log softmax(V u)_i - (u - m)' S^-1 (u - m) / 2,

a concave problem without hyper-parameters: the prior tells how far users differ. An empty history
has the mean user. Solved by Newton steps with a backtracking line search.
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
# Added to the variances, as a share of their mean: few users leave directions without variance.
_FLOOR = 1e-3
_BLOCK_CELLS = 1 << 22  # cells of products of item vectors in memory at a time


class Prior(NamedTuple):
    """Normal distribution of user vectors: `mean` `[dim]`, `precision` `[dim, dim]`, float32."""

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
    """Computes vectors of histories (see the module).

    Args:
      item_table: `[padded_items, dim]`; rows from `num_items` on are ignored.
      history: `[batch, width]` int32 items; -1 is padding, order does not matter.
      num_items: items in the catalogue.
      prior: distribution of user vectors.

    Returns:
      `[batch, dim]` float32.
    """
    table = item_table.astype(jnp.float32)
    bias = jnp.where(jnp.arange(table.shape[0]) < num_items, 0.0, -jnp.inf)
    real = history >= 0
    count = real.sum(axis=1).astype(jnp.float32)
    chosen = jnp.where(real[..., None], take_rows(table, jnp.maximum(history, 0)), 0).sum(axis=1)
    rates = 0.5 ** jnp.arange(_HALVINGS, dtype=jnp.float32)

    # Logits are carried beside the vector: a line search then needs no product with the table.
    def objective(user, logits):
        offset = user - prior.mean
        fit = jnp.einsum("bd,bd->b", user, chosen) - count * jax.nn.logsumexp(logits, axis=1)
        return fit - 0.5 * jnp.einsum("bd,de,be->b", offset, prior.precision, offset)

    def step(_, carry):
        user, logits = carry
        # Newton's direction, from the gradient and the exact Hessian of the softmax.
        probability = jax.nn.softmax(logits, axis=1)
        expected = probability @ table
        gradient = chosen - count[:, None] * expected - (user - prior.mean) @ prior.precision
        spread = _second_moments(probability, table) - jnp.einsum("bd,be->bde", expected, expected)
        curvature = count[:, None, None] * spread + prior.precision
        move = jnp.linalg.solve(curvature, gradient[..., None])[..., 0]
        slope = move @ table.T
        now = objective(user, logits)

        def objective_at(rate):
            return objective(user + rate * move, logits + rate * slope)

        values = jax.lax.map(objective_at, rates)
        # Near the maximum float32 cannot distinguish the values: there the full step is right.
        least = now - 1e-6 * (1 + jnp.abs(now))
        rate = jnp.where(values >= least, rates[:, None], 0.0).max(axis=0)[:, None]
        return user + rate * move, logits + rate * slope

    user = jnp.broadcast_to(prior.mean, (len(history), table.shape[1]))
    return jax.lax.fori_loop(0, _STEPS, step, (user, user @ table.T + bias))[0]


def _second_moments(chance: jax.Array, table: jax.Array) -> jax.Array:
    """Weighted sum of outer products `sum_i p_bi v_i v_i'`, `[batch, dim, dim]`, in blocks."""
    items, dim = table.shape
    limit = max(1, _BLOCK_CELLS // dim**2)
    size = next(size for size in range(min(items, limit), 0, -1) if items % size == 0)

    def add_block(number, total):
        rows = jax.lax.dynamic_slice_in_dim(table, number * size, size)
        block = jax.lax.dynamic_slice_in_dim(chance, number * size, size, axis=1)
        return total + block @ (rows[:, :, None] * rows[:, None, :]).reshape(size, dim**2)

    zero = jnp.zeros((len(chance), dim**2), jnp.float32)
    return jax.lax.fori_loop(0, items // size, add_block, zero).reshape(-1, dim, dim)
