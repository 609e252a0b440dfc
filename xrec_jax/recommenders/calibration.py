"""The temperature at which a recommender's scores are honest log-probabilities.

A recommender is surer of the events it was fitted to than of new ones. What learns to add to its
scores from those same events finds little left to add. Temperature scaling (Guo et al. 2017,
arXiv 1706.04599), fitted on held-out events, takes the surplus away and leaves every ranking as it
is.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LOW, HIGH = 0.25, 4.0  # temperatures looked among
_STEPS = 24  # bisections: to 2 ** -22 of the logarithm


def fit_temperature(
    states: jax.Array,
    table: jax.Array,
    target: jax.Array,
    score: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    items: int,
    chunk: int = 128,
) -> jax.Array:
    """The temperature T with the least mean cross entropy of `log_softmax(scores / T)`.

    Cross entropy is convex in 1 / T, and its slope there is the mean over rows of the score
    expected under the softmax minus the target's; its zero is found by bisection.

    Args:
      states: `[n, d]` user states.
      table: `[rows, d]` items, padding behind.
      target: `[n]` int32 true items; -1 counts nothing.
      score: `(states, table) -> [n, rows]`.
      items: number of real items.
      chunk: rows that are scored at a time.

    Returns:
      float32 scalar from `LOW` to `HIGH`, an end of them where the least lies beyond; 1 if no row
      counts; NaN where scores are not numbers.
    """
    short = -len(states) % chunk
    states = jnp.pad(states, ((0, short), (0, 0))).reshape(-1, chunk, states.shape[-1])
    target = jnp.pad(target, (0, short), constant_values=-1).reshape(-1, chunk)

    def slope(inverse: jax.Array) -> jax.Array:
        def of_chunk(rows):
            state, true = rows
            scores = score(state, table)[:, :items].astype(jnp.float32)
            expected = jnp.sum(jax.nn.softmax(inverse * scores, axis=1) * scores, axis=1)
            own = jnp.take_along_axis(scores, jnp.maximum(true, 0)[:, None], axis=1)[:, 0]
            return jnp.sum(jnp.where(true >= 0, expected - own, 0.0))

        return jnp.sum(jax.lax.map(of_chunk, (states, target)))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        too_low = slope(jnp.exp(middle)) < 0
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    ends = -jnp.log(jnp.float32(HIGH)), -jnp.log(jnp.float32(LOW))
    low, high = jax.lax.fori_loop(0, _STEPS, halve, ends)
    found = jnp.exp(-(low + high) / 2)
    found = jnp.where(jnp.isfinite(slope(jnp.float32(1.0))), found, jnp.nan)
    return jnp.where(jnp.any(target >= 0), found, 1.0)
