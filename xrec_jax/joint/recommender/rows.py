"""Rows of users and their histories, and draws among them, for a recommender of a joint run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core import rng
from xrec_jax.data.histories import Histories
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.parallel.mesh import batch_divisor


def user_batch(setup: StateSetup, model: Any, states: np.ndarray) -> dict[str, np.ndarray]:
    """What a recommender reads of the users of some states, each before its target."""
    return users_batch(setup.states.user[states], setup.states.history, states, model)


def users_batch(
    user: np.ndarray, history: Histories, rows: np.ndarray, model: Any
) -> dict[str, np.ndarray]:
    """What a recommender reads of users and their latest events.

    Args:
      user: `[n]`.
      history: events, oldest first.
      rows: `[n]` rows of `history`.
      model: whose `history_length` says how many events it reads; 0 for none.
    """
    batch = {"user": user}
    if model.history_length:
        batch["history"] = history.padded(rows, model.history_length)
        batch["length"] = np.minimum(history.lengths[rows], model.history_length).astype(np.int32)
    return batch


def even(size: int, mesh: Mesh) -> int:
    """`size`, rounded up to what the devices along the batch divide."""
    parts = batch_divisor(mesh)
    return -(-size // parts) * parts


def row_means(values: jax.Array, real: jax.Array) -> jax.Array:
    """Mean of each row's real values: `[n, m]` -> `[n]`."""
    return jnp.sum(jnp.where(real, values, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def another(users: np.ndarray, key: int) -> np.ndarray:
    """For each row a row of another user, drawn by key; its own where there is no other user."""
    # A step along a keyed cycle: every text is read once, by somebody else as a rule.
    order = rng.permutation(key, len(users))
    place = np.empty(len(users), np.int64)
    place[order] = np.roll(order, 1)
    # Users with several rows may meet themselves; those rows are drawn again.
    for row in np.flatnonzero(users[place] == users):
        options = np.flatnonzero(users != users[row])
        if len(options):
            place[row] = options[rng.fold(key, int(row)) % len(options)]
    return place
