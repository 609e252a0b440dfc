"""The state of a joint run: everything that a round reads and writes, one atomic checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax

from xrec_jax.parallel.mesh import gather
from xrec_jax.training.rl.kl import Controller
from xrec_jax.training.state import TrainState

Array = Any  # a `jax.Array`; a `np.ndarray` in a copy on the host


class Explanations(flax.struct.PyTreeNode):
    """The explanation of every state as it was written last: the cache between two writings.

    Attributes:
      tokens: `[S, A]` int32 answers, the ending token included.
      length: `[S]` int32; 0 before the first writing.
      version: `[S]` int32, round of the policy that wrote it; -1 before the first writing.
      encoding: `[S, 2, E]` float32 of both parts.
      present: `[S, 2]` bool, parts that are there.
    """

    tokens: Array
    length: Array
    version: Array
    encoding: Array
    present: Array


class Rollout(flax.struct.PyTreeNode):
    """Answers of one round, as the sampler gave them.

    Attributes:
      state: `[n]` int32, the explained states.
      tokens: `[n, A]` int32.
      length: `[n]` int32, answer tokens with the ending one.
      ended: `[n]` bool, whether an EOS ended it.
      log_probs: `[n, A]` float32, of the sampler at its temperature.
      round: int32 scalar; -1 before the first.
    """

    state: Array
    tokens: Array
    length: Array
    ended: Array
    log_probs: Array
    round: Array


class JointState(flax.struct.PyTreeNode):
    """Everything of a joint run.

    Attributes:
      step: int32 scalar, twice the rounds done, plus one between a round's rollout and its updates.
      policy: `training.state` fields of policy and critic: step, params, opt_state, key.
      recommender: the same of the fused recommender.
      controller: of the KL coefficient.
      cache: explanations of all states.
      first: `encoding` `[v, 2, E]` and `present` `[v, 2]` of the warm start's explanations of the
        valid states that are looked at every round; empty where candidates are explained.
      buffer: the latest rollout.
      constants: measured at the warm start: what standardises encodings (`mean` `[2, E]`, and
        `basis` `[2, E, components]` or `std` `[2, E]`), the space of the match (`projection`
        `[E, k]`, `query_scale` `[2, 1]`), and the recommender's `temperature`.
      best: policy and recommender parameters of the best round so far.
    """

    step: jax.Array
    policy: dict[str, Any]
    recommender: dict[str, Any]
    controller: Controller
    cache: Explanations
    first: dict[str, jax.Array]
    buffer: Rollout
    constants: dict[str, jax.Array]
    best: dict[str, Any]

    def saved(self) -> dict[str, Any]:
        """All of it: the name under which checkpoints ask a state for what they hold."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Snapshot(NamedTuple):
    """What a round reads of a `JointState` on the host; fields as there.

    Attributes:
      cache: explanations of all states.
      first: the warm start's explanations of the tracked states.
      buffer: the latest rollout.
      constants: what standardises encodings, the space of the match, and the temperature.
      beta: coefficient of the KL.
    """

    cache: Explanations
    first: dict[str, Array]
    buffer: Rollout
    constants: dict[str, Array]
    beta: float


def on_host(state: JointState) -> Snapshot:
    """Copies to the host what a round reads there; all processes call it."""
    cache, first, buffer, constants, beta = gather(
        (state.cache, state.first, state.buffer, state.constants, state.controller.beta)
    )
    return Snapshot(cache, first, buffer, constants, float(beta))


def part_of(state: TrainState) -> dict[str, Any]:
    """What a joint state keeps of a training state."""
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key": state.key,
    }


def training_state(part: dict[str, Any], frozen: Any) -> TrainState:
    """A training state from what a joint state keeps, with its frozen arrays."""
    return TrainState(**part, frozen=frozen)
