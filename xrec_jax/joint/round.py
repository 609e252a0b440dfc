"""One round of joint training, as functions of both sides and their state.

`roll_out` samples answers; `learn` does the rest: it scores them, updates the policy by PPO, renews
explanations, trains the recommender on them and measures both on held-out users. A checkpoint is
written between the two, since a rollout is what takes longest to do again.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.joint import explanations, guards, rewards
from xrec_jax.joint.explanations import readable
from xrec_jax.joint.guards import GuardState, Verdict
from xrec_jax.joint.held_out import measure
from xrec_jax.joint.rollout import rows
from xrec_jax.joint.scoring import score_rollouts, truth
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import JointState, Rollout, Snapshot, on_host, part_of, training_state
from xrec_jax.parallel.mesh import put_replicated
from xrec_jax.training.rl import kl
from xrec_jax.training.rl.advantages import (
    AdvantageOptions,
    advantages_of,
    answer_mask,
    missing_eos,
    token_rewards,
)

Metrics = dict[str, Any]


# Rolling out.


def roll_out(sides: Sides, state: JointState, number: int) -> JointState:
    """Samples answers for drawn training states with the policy as it is.

    Args:
      sides: of the seed.
      state: before the round.
      number: of the round, from 1.

    Returns:
      The state with the answers in its `buffer`, half a round (one step) later.
    """
    shared = sides.shared
    states = drawn_states(
        sides.setup.rolled_out,
        seed=sides.seed,
        number=number,
        count=shared.cfg.rollout.per_round,
        group=shared.cfg.rollout.group_size,
    )
    answers = sides.actor.answer(
        state.policy["params"]["policy"],
        states,
        sides.users,
        key=(sides.seed, Stream.ROLLOUTS, number),
        exploring=True,
    )
    buffer = Rollout(
        state=states.astype(np.int32),
        tokens=answers.tokens,
        length=answers.length,
        ended=answers.ended,
        log_probs=answers.log_probs,
        round=np.int32(number),
    )
    return state.replace(step=state.step + 1, buffer=put_replicated(buffer, shared.mesh))


def drawn_states(pool: np.ndarray, *, seed: int, number: int, count: int, group: int) -> np.ndarray:
    """Draws the states of a round; all of `pool` come before any comes again.

    Args:
      pool: training states that are rolled out.
      seed: of the order, another one in every pass through the pool.
      number: of the round, from 1.
      count: answers of a round.
      group: answers to each prompt.

    Returns:
      `[count]` int64, each state `group` times in a row.
    """
    wanted = count // group
    places = np.arange((number - 1) * wanted, number * wanted)
    epochs = places // len(pool)
    orders = {
        int(e): rng.permutation(rng.fold(seed, Stream.ROLLOUT_ORDER, int(e)), len(pool))
        for e in np.unique(epochs)
    }
    chosen = [pool[orders[int(e)][p % len(pool)]] for e, p in zip(epochs, places, strict=True)]
    return np.repeat(np.array(chosen, np.int64), group)


# Learning.


def learn(
    sides: Sides, state: JointState, guard: GuardState, number: int, *, rollout_seconds: float = 0.0
) -> tuple[JointState, GuardState, Metrics, Verdict]:
    """Does everything of a round after its rollout.

    Args:
      sides: of the seed, with the warm start's policy and the baseline.
      state: with the rollout of this round in its buffer.
      guard: what guards remember of earlier rounds.
      number: of the round, from 1.
      rollout_seconds: how long the rollout took, for the metrics; 0 after a resume between.

    Returns:
      The state after the round, the guards' memory, the round's metrics, and whether to go on.

    Raises:
      UserError: on rewards, log-probabilities or updates that are worthless (`joint.guards`).
    """
    shared, setup, cfg = sides.shared, sides.setup, sides.shared.cfg
    clock = _Clock(rollout=rollout_seconds)
    # One copy to the host: updates below donate the state's buffers, and every process must join
    # in the same transfers.
    host = on_host(state)
    buffer = host.buffer

    # Answers that never end or are empty would teach the policy their length, not their content.
    verdict = guards.check_rollouts(
        buffer.ended, buffer.length, shared.guards, state=guard, number=number
    )
    metrics: Metrics = {
        "round": number,
        "rollout/length": float(buffer.length.mean()),
        "rollout/ended": float(buffer.ended.mean()),
    }
    if verdict.stop:
        metrics |= verdict.record()
        return state.replace(step=state.step + 1), guard, metrics, verdict

    # Rewards, by the recommender as it was when the answers were sampled.
    texts = shared.texts(buffer.tokens, buffer.length)
    frozen = sides.recommender.frozen(sides.alone.frozen, host.constants)
    score, parts = score_rollouts(sides, state, host, texts, frozen, number)
    metrics |= {name: float(value) for name, value in rewards.metrics(score, parts).items()}
    guards.check_scores(parts, score, shared.guards)
    # Signs of a policy that games its reward; nothing is optimised for them.
    metrics |= truth(sides, buffer, texts, score)
    prompts = [setup.states.prompts[s] for s in buffer.state]
    metrics |= setup.monitors.measure(texts, prompts, setup.states.unshown_target[buffer.state])
    clock.mark("scoring")

    # The policy learns from its rewards, and from its KL to where it began.
    batch, measured, answer_kl = policy_rows(sides, state, host, score)
    metrics |= measured
    policy, measured = sides.actor.update(training_state(state.policy, {}), batch, number=number)
    # `ppo/entropy` is already known of the whole rollout, whether or not the policy was updated.
    metrics |= {name: value for name, value in measured.items() if name != "ppo/entropy"}
    controller = kl.adapt(state.controller, answer_kl, target=cfg.kl.target, gain=cfg.kl.gain)
    clock.mark("ppo")

    # The recommender reads texts of the new policy, a share of them each round: so its inputs
    # drift slowly enough for it to follow.
    cache, measured = explanations.refresh(sides, host.cache, policy.params["policy"], number)
    metrics |= measured
    host = host._replace(cache=cache)
    clock.mark("encoding")
    recommender, measured = sides.recommender.train(
        training_state(state.recommender, {}),
        frozen,
        readable(cache),
        steps=cfg.recommender.steps,
        seed=sides.seed,
    )
    metrics |= measured
    clock.mark("recommender")

    # Both sides as they are now, on users that neither has learned from.
    metrics |= measure(sides, recommender.params, frozen, host, number)
    clock.mark("evaluation")
    metrics |= clock.seconds
    guard, verdict = guards.check_round(metrics, guard, shared.guards, number=number)
    metrics |= verdict.record()
    state = state.replace(
        step=state.step + 1,
        policy=part_of(policy),
        recommender=part_of(recommender),
        controller=put_replicated(controller, shared.mesh),
        cache=put_replicated(cache, shared.mesh),
    )
    if verdict.improved:
        # Copies, because the next round's updates donate what `policy` and `recommender` hold.
        best = {"policy": policy.params["policy"], "recommender": recommender.params}
        state = state.replace(best=jax.tree.map(jnp.copy, best))
    return state, guard, metrics, verdict


def policy_rows(
    sides: Sides, state: JointState, host: Snapshot, score: np.ndarray
) -> tuple[dict[str, np.ndarray], Metrics, float]:
    """Makes rows for PPO of a rollout and its rewards.

    Args:
      sides: of the seed.
      state: whose policy and critic assess the answers.
      host: its rollout, and the coefficient of the KL.
      score: `[n]` reward of every answer.

    Returns:
      Rows with log-probabilities, advantages and, with a critic, values and returns; metrics of
      the rollout; and the mean KL of an answer in nats.

    Raises:
      UserError: if sampler and trainer disagree about the answers' log-probabilities.
    """
    shared, cfg, buffer = sides.shared, sides.shared.cfg, host.buffer
    prompts = sides.setup.prompts
    states = buffer.state.astype(np.int64)
    group = sides.actor.group
    batch = rows(
        prompts,
        states,
        buffer.tokens,
        buffer.length,
        group=group,
        # The longest prompt that any round may draw, so that all rounds compile to one shape.
        longest=int(prompts.length[sides.setup.rolled_out].max()),
    )
    if sides.actor.vectors:
        batch["user"] = sides.users[states[::group]]
    reference = sides.warm_policy if cfg.kl.reference == "warm_start" else {}
    assessed = sides.actor.assess(state.policy["params"], reference, batch)
    mask = np.asarray(answer_mask(buffer.length, shared.size))
    # The importance ratios of PPO are only right where both compute the same probabilities.
    metrics: Metrics = guards.check_gap(
        buffer.log_probs, assessed["log_probs"], mask, shared.guards
    )

    log_probs, references = jnp.asarray(assessed["log_probs"]), jnp.asarray(assessed["reference"])
    token_kl = kl.estimate(log_probs, references, kind=cfg.kl.kind)
    total_kl = float(jnp.sum(jnp.where(mask, token_kl, 0.0)))
    # An answer cut off at its token limit earns less, else length alone would be a way to win.
    whole = missing_eos(jnp.asarray(score), jnp.asarray(buffer.ended), cfg.ppo.missing_eos)
    per_token = token_rewards(
        whole, log_probs, references, jnp.asarray(mask), beta=host.beta, kind=cfg.kl.kind
    )
    options = AdvantageOptions(
        discount=cfg.ppo.discount, lam=cfg.ppo.lam, scale=cfg.ppo.scale, whiten=cfg.ppo.whiten
    )
    values = jnp.asarray(assessed["values"]) if "values" in assessed else None
    groups = jnp.arange(len(states)) // cfg.rollout.group_size
    advantages, returns = advantages_of(
        cfg.ppo.estimator, per_token, values, jnp.asarray(mask), groups, options=options
    )
    batch |= {"log_probs": assessed["log_probs"], "advantages": np.asarray(advantages)}
    if values is not None:
        batch |= {"values": assessed["values"], "returns": np.asarray(returns)}
    metrics |= {
        "ppo/kl": total_kl / max(int(mask.sum()), 1),
        "ppo/kl_beta": host.beta,
        "ppo/entropy": float(assessed["entropy"][mask].mean()) if mask.any() else 0.0,
    }
    return batch, metrics, total_kl / len(states)


class _Clock:
    """Seconds of each phase of a round, named `time/PHASE`."""

    def __init__(self, **known: float):
        self.seconds = {f"time/{name}": value for name, value in known.items()}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = now - self._last
        self._last = now
