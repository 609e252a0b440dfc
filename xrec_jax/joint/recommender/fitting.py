"""Training of a fused recommender on texts that stay as they are, chosen on validation users."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.training.state import TrainState

_EVALUATIONS = 10  # on the tracked users while a recommender is trained


class Fitted(NamedTuple):
    """The best parameters of a training, and their NDCG on the tracked users."""

    params: Any
    value: float


def fit(
    fused: FusedTask,
    state: TrainState,
    frozen: Any,
    read: dict[str, np.ndarray],
    *,
    steps: int,
    seed: int,
) -> Fitted:
    """Trains, and keeps the parameters with the best NDCG on the tracked validation users.

    The first parameters count, too: where training makes nothing better, such as a fresh fusion,
    which reads nothing, they are kept.

    Args:
      fused: the recommender.
      state: to begin with.
      frozen: from `FusedTask.frozen`.
      read: `[S, ...]` what there is to read of every state.
      steps: updates.
      seed: of their order.
    """
    metric = f"ndcg@{fused.shared.best_k}"

    def value_of(params: Any) -> float:
        return float(fused.evaluate("few", params, frozen, read).masked[metric].mean())

    best = Fitted(jax.tree.map(jnp.copy, state.params), value_of(state.params))
    piece, done = max(1, steps // _EVALUATIONS), 0
    while done < steps:
        count = min(piece, steps - done)
        state, _ = fused.train(state, frozen, read, steps=count, seed=seed)
        done += count
        value = value_of(state.params)
        if value > best.value:
            # A copy, because the next update takes over the memory of the state.
            best = Fitted(jax.tree.map(jnp.copy, state.params), value)
    return best
