"""Temperature scaling of a recommender's scores (Guo et al. 2017, arXiv 1706.04599).

A recommender is overconfident on its own training events, which leaves little residual to learn for
a model that adds to its scores on those same events. A temperature, fitted on held-out events,
removes the overconfidence and leaves every ranking unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LOW, HIGH = 0.25, 4.0  # range of temperatures
_STEPS = 24  # bisections: the logarithm is accurate to about 2 ** -22


def fit_temperature(
    states: jax.Array,
    table: jax.Array,
    target: jax.Array,
    score: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    items: int,
    chunk: int = 128,
) -> jax.Array:
    """Fits the temperature T with the least mean cross entropy of `log_softmax(scores / T)`.

    Cross entropy is convex in 1 / T, and its derivative is the mean over rows of the expected score
    under the softmax minus the target's score; its zero is found by bisection.

    Args:
      states: `[n, d]` user states.
      table: `[rows, d]` item table, padding at the end.
      target: `[n]` int32 true items; rows with -1 are ignored.
      score: `(states, table) -> [n, rows]`.
      items: number of real items.
      chunk: rows scored at a time.

    Returns:
      float32 scalar from `LOW` to `HIGH`, one of the ends if the optimum lies beyond; 1 without
      valid rows; NaN if scores are not finite.
    """
    # Rows are padded with ignored targets to whole chunks, which bound the memory for scores.
    short = -len(states) % chunk
    states = jnp.pad(states, ((0, short), (0, 0))).reshape(-1, chunk, states.shape[-1])
    target = jnp.pad(target, (0, short), constant_values=-1).reshape(-1, chunk)

    def slope(inverse: jax.Array) -> jax.Array:
        def of_chunk(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            state, true = rows
            scores = score(state, table)[:, :items].astype(jnp.float32)
            expected = jnp.sum(jax.nn.softmax(inverse * scores, axis=1) * scores, axis=1)
            own = jnp.take_along_axis(scores, jnp.maximum(true, 0)[:, None], axis=1)[:, 0]
            return jnp.sum(jnp.where(true >= 0, expected - own, 0.0))

        return jnp.sum(jax.lax.map(of_chunk, (states, target)))

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        too_low = slope(jnp.exp(middle)) < 0
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    # Bisection over log(1 / T), so that both ends of the range are treated alike.
    ends = -jnp.log(jnp.float32(HIGH)), -jnp.log(jnp.float32(LOW))
    low, high = jax.lax.fori_loop(0, _STEPS, halve, ends)
    temperature = jnp.exp(-(low + high) / 2)
    temperature = jnp.where(jnp.isfinite(slope(jnp.float32(1.0))), temperature, jnp.nan)
    return jnp.where(jnp.any(target >= 0), temperature, 1.0)
