"""The cache of explanations: written once by the warm start, then renewed oldest first."""

from __future__ import annotations

from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import Explanations
from xrec_jax.joint.states.setup import StateSetup

Metrics = dict[str, Any]


def empty(setup: StateSetup) -> Explanations:
    """A cache on the host before anything was written."""
    count, width = len(setup.states), setup.shared.encoder.width
    return Explanations(
        tokens=np.zeros((count, setup.shared.size), np.int32),
        length=np.zeros(count, np.int32),
        version=np.full(count, -1, np.int32),
        encoding=np.zeros((count, 2, width), np.float32),
        present=np.zeros((count, 2), bool),
    )


def readable(cache: Explanations) -> dict[str, np.ndarray]:
    """What the recommender reads of a cache that is on the host."""
    return {"encoding": cache.encoding, "present": cache.present}


def explain(sides: Sides, policy: Any, states: np.ndarray, number: int) -> Explanations:
    """Writes and encodes explanations of some states, as the recommender reads them.

    Args:
      sides: of the seed.
      policy: parameters of the policy.
      states: `[n]` which states.
      number: of the round.

    Returns:
      Host arrays with n rows in the order of `states`.
    """
    shared = sides.shared
    key = (sides.seed, Stream.EXPLANATIONS, number)
    answers = sides.actor.answer(policy, states, sides.users, key=key)
    encoding, present = shared.encode(shared.texts(answers.tokens, answers.length))
    return Explanations(
        tokens=answers.tokens,
        length=answers.length,
        version=np.full(len(states), number, np.int32),
        encoding=encoding,
        present=present,
    )


def written(cache: Explanations, states: np.ndarray, new: Explanations) -> Explanations:
    """A copy of a cache with new explanations in the rows of `states`."""
    arrays = {name: np.array(array) for name, array in vars(cache).items()}
    for name, array in vars(new).items():
        arrays[name][states] = array
    return Explanations(**arrays)


def refresh(
    sides: Sides, cache: Explanations, policy: Any, number: int
) -> tuple[Explanations, Metrics]:
    """Explains anew the training states with the oldest texts, and all tracked states.

    A share of the training texts a round bounds both the cost of a round and the age of what the
    recommender learns from; tracked states are always current, because rounds are compared on them.

    Args:
      sides: of the seed.
      cache: on the host.
      policy: parameters that write.
      number: of the round.

    Returns:
      The new cache on the host, and the age of training texts in rounds (`cache/...`).
    """
    train = sides.setup.cached
    count = int(np.ceil(sides.shared.cfg.cache.refresh * len(train)))
    # Equally old texts are taken in a keyed order, so that no user is always the last.
    order = rng.permutation(rng.fold(sides.seed, Stream.REFRESH_ORDER), len(train))
    oldest = train[order][np.argsort(cache.version[train[order]], kind="stable")][:count]
    chosen = np.concatenate([np.sort(oldest), sides.tracked])
    cache = written(cache, chosen, explain(sides, policy, chosen, number))
    age = number - cache.version[train]
    return cache, {
        "cache/staleness": float(age.mean()),
        "cache/staleness_max": float(age.max()),
        "cache/refreshed": float(count),
    }
