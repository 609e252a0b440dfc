"""Training step of recommenders, a pure function `(state, batch, key) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from xrec_jax.training.state import TrainState


class Trainable(Protocol):
    """Interface of a model for supervised steps."""

    def loss(
        self, params: Any, frozen: Mapping[str, jax.Array], batch: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


def recommend_step(
    state: TrainState,
    batch: Any,
    key: jax.Array,
    *,
    model: Trainable,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of a recommender.

    Args:
      state: state before the step.
      batch: training batch, split over `batch`.
      key: key of this step.
      model: the model with its loss.
      optimizer: gradient transformation.

    Returns:
      The state after the step; `train/loss` (before the update) and `train/grad_norm` (before
      clipping) as float32 scalars.
    """

    def loss_fn(params):
        return model.loss(params, state.frozen, batch, key)

    (loss, extra), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "train/loss": loss.astype(jnp.float32),
        "train/grad_norm": optax.tree.norm(grads).astype(jnp.float32),
    }
    metrics |= {f"train/{name}": value for name, value in extra.items()}
    state = state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return state, metrics
