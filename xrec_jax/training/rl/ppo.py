"""Training steps of a policy and its critic: PPO or GRPO, and the warm start on given answers.

Roles, trees and the layout of batches are those of `training.roles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import host_value
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.llm.model.losses import cross_entropy
from xrec_jax.parallel.mesh import constrain
from xrec_jax.training.rl import losses
from xrec_jax.training.rl.actor_critic import (
    ROWS,
    Batch,
    answer_states,
    critic_values,
    init_critic,
    init_policy,
    policy_log_probs,
)
from xrec_jax.training.rl.advantages import answer_mask
from xrec_jax.training.rl.losses import PolicyOptions
from xrec_jax.training.state import TrainState

__all__ = [
    "critic_values",
    "init_critic",
    "init_policy",
    "minibatches",
    "policy_log_probs",
    "policy_optimizer",
    "ppo_step",
    "sft_step",
]

Metrics = dict[str, jax.Array]

_ROLLOUT = ("log_probs", "values", "advantages", "returns")


def policy_optimizer(
    policy_rule: optax.GradientTransformation, critic_rule: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One rule for `{"policy": ..., "critic": ...}` from a rule for each.

    A rule sees its own part only, so a clip of the global norm within it is that part's. The state
    has the same two keys, so that a step can leave one of them alone.
    """
    rules = {"policy": policy_rule, "critic": critic_rule}

    def init(params):
        return {name: rule.init(params[name]) for name, rule in rules.items()}

    def update(grads, state, params=None):
        updates, after = {}, {}
        for name, rule in rules.items():
            own = None if params is None else params[name]
            updates[name], after[name] = rule.update(grads[name], state[name], own)
        return updates, after

    return optax.GradientTransformation(init, update)


def minibatches(n: int, size: int, *, epochs: int, key: jax.Array) -> np.ndarray:
    """Which rows each update reads: a new order every epoch, the same on every host.

    Args:
      n: rows of the rollout; one of answers that share a prompt is one.
      size: rows of an update.
      epochs: how often every row is read.
      key: of the orders.

    Returns:
      `[epochs, n / size, size]` int64.

    Raises:
      UserError: if the rows do not divide into minibatches.
    """
    if size < 1 or n < 1 or n % size:
        raise UserError(
            f"{n} rollouts do not divide into minibatches of {size}; choose a size that divides "
            "them"
        )
    # On the host: device generators may give other numbers on another kind of device.
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    words = [int(word) for word in host_value(data).ravel()]
    orders = [np.random.default_rng([*words, epoch]).permutation(n) for epoch in range(epochs)]
    return np.array(orders, np.int64).reshape(epochs, n // size, size)


def _in_parts(
    gradient: Callable[[Batch, jax.Array], Any], rows: Batch, key: jax.Array, parts: int
) -> Any:
    """Sums what `gradient` gives for each part of the rows; a leaf named `largest` is a maximum."""
    if parts == 1:
        return gradient(rows, key)
    n = rows["ids"].shape[0]
    if n % parts:
        raise UserError(f"accumulation={parts} must divide the {n} rows of a minibatch")

    def split(x):  # each device's rows stay on it, and the answers of a row beside it
        x = x.reshape(n // parts, parts, len(x) // n, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(parts, -1, *x.shape[3:])
        return constrain(x, None, "batch", *[None] * (x.ndim - 2))

    def join(path, a, b):
        return jnp.maximum(a, b) if path[-1].key == "largest" else a + b.astype(jnp.float32)

    def add(carry, part):
        number, total = carry
        found = gradient(part, jax.random.fold_in(key, number))
        return (number + 1, jax.tree_util.tree_map_with_path(join, total, found)), None

    one = jax.eval_shape(gradient, jax.tree.map(lambda x: x[: len(x) // parts], rows), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), one)
    (_, total), _ = jax.lax.scan(add, (jnp.int32(0), zeros), jax.tree.map(split, rows))
    return total


def _keep(apply: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `apply`, else exactly `old`."""
    return jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, old)


def ppo_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: Llama,
    policy_lora: LoraConfig,
    critic_lora: LoraConfig | None,
    optimizer: optax.GradientTransformation,
    options: PolicyOptions,
    accumulation: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update of policy and critic on a minibatch of rollouts.

    Means are over all real answer tokens of the minibatch, whatever its parts. Dropout is off, so
    that the first update after a rollout sees ratios of 1.

    Args:
      state: `params` `{"policy": ..., "critic": ...}`, the critic `{}` where there is none;
        `opt_state` of `policy_optimizer`; `frozen["base"]`.
      batch: see `roles`; also `log_probs` and `advantages` `[n, A]`, with a critic `values` and
        `returns` `[n, A]`, and `train_policy`, a float scalar or one a row: 0 while the critic
        warms up, when neither the policy nor its part of the optimiser's state moves. Default 1.
      key: of this step; nothing here is random.
      model: the base's functions.
      policy_lora: of the policy's adapter.
      critic_lora: of the critic's adapter.
      optimizer: from `policy_optimizer`.
      options: losses and bounds.
      accumulation: parts that are read one after the other; divides the rows.

    Returns:
      The state after the step, the same bits as before where it was stopped by `options.kl_stop`;
      the metrics of `policy_losses.METRICS`. The caller leaves the epoch where `ppo/stopped` is 1.
    """
    base, params = state.frozen["base"], state.params
    has_critic = bool(jax.tree.leaves(params["critic"]))
    size = batch["advantages"].shape[1]
    rows = {name: batch[name] for name in (*ROWS, *_ROLLOUT) if name in batch}

    def loss(trained, part):
        mask = answer_mask(part["length"], size)
        log_p, entropy = policy_log_probs(
            trained["policy"],
            base,
            part,
            model=model,
            lora=policy_lora,
            answer_size=size,
            temperature=options.temperature,
            placeholder=options.placeholder,
            entropy=True,
        )
        found, largest = losses.policy_loss(
            log_p, part["log_probs"], part["advantages"], mask, clip=options.clip
        )
        sums = found.sums | {"entropy": jnp.sum(entropy)}
        total = found.loss - options.entropy_weight * sums["entropy"]
        if has_critic:
            values = critic_values(
                trained["critic"],
                base,
                part,
                model=model,
                lora=critic_lora,
                answer_size=size,
                placeholder=options.placeholder,
            )
            valued = losses.value_loss(
                values, part["values"], part["returns"], mask, clip=options.value_clip
            )
            total += options.value_weight * valued.loss
            sums |= valued.sums
        return total, {"sums": sums, "largest": largest}

    def gradient(part, key):
        grads, found = jax.grad(loss, has_aux=True)(params, part)
        return found | {"grads": grads}

    found = _in_parts(gradient, rows, key, accumulation)
    mask = answer_mask(batch["length"], size)
    tokens = jnp.sum(mask).astype(jnp.float32)
    count = jnp.maximum(tokens, 1.0)
    grads = jax.tree.map(lambda g, p: (g / count).astype(p.dtype), found["grads"], params)
    metrics = {f"ppo/{name}": value / count for name, value in found["sums"].items()}
    stopped = jnp.zeros((), bool)
    if options.kl_stop:
        stopped = ~(metrics["ppo/kl_old"] <= options.kl_stop)  # also where it is not a number
    moves = {
        "policy": ~stopped & (jnp.max(jnp.asarray(batch.get("train_policy", 1.0))) > 0),
        "critic": ~stopped,
    }
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    updated: Any = optax.apply_updates(params, updates)
    after: dict[str, Any] = {
        name: _keep(move, (updated[name], opt_state[name]), (params[name], state.opt_state[name]))
        for name, move in moves.items()
    }
    metrics |= {
        "ppo/ratio_max": found["largest"],
        "ppo/grad_norm_policy": optax.tree.norm(grads["policy"]).astype(jnp.float32),
        "ppo/tokens": tokens,
        "ppo/stopped": stopped.astype(jnp.float32),
    }
    if has_critic:
        metrics |= {
            "ppo/grad_norm_critic": optax.tree.norm(grads["critic"]).astype(jnp.float32),
            "ppo/explained_variance": losses.explained_variance(
                batch["values"], batch["returns"], mask
            ),
        }
    state = state.replace(
        step=state.step + (~stopped).astype(state.step.dtype),
        params={name: part[0] for name, part in after.items()},
        opt_state={name: part[1] for name, part in after.items()},
    )
    return state, metrics


def sft_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: Llama,
    lora: LoraConfig,
    optimizer: optax.GradientTransformation,
    answer_size: int,
    placeholder: int = -1,
    accumulation: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update of a policy, soft prompt included, on given answers: its warm start.

    Minimises the mean of `-log p` over the answer tokens of the whole batch, at temperature 1.

    Args:
      state: `params` the policy's tree `{"lora": ..., "projector": ...}`; `frozen["base"]`.
      batch: see `roles`; other entries are not read.
      key: of the adapter's dropout.
      model: the base's functions.
      lora: of the adapter.
      optimizer: of the policy's tree.
      answer_size: most answer tokens.
      placeholder: id of the token that soft vectors replace.
      accumulation: parts; divides the rows.

    Returns:
      The state after the step; the metrics of `instruct.instruct_step`.
    """
    base = state.frozen["base"]
    rows = {name: batch[name] for name in ROWS if name in batch}

    def loss(trained, part, key):
        states, tokens, mask = answer_states(
            trained,
            base,
            part,
            model=model,
            lora=lora,
            answer_size=answer_size,
            placeholder=placeholder,
            key=key if lora.dropout else None,
        )
        return cross_entropy(states, model.table(base), tokens, mask.astype(jnp.float32))

    def gradient(part, key):
        total, grads = jax.value_and_grad(loss)(state.params, part, key)
        return {"loss": total, "grads": grads}

    found = _in_parts(gradient, rows, key, accumulation)
    tokens = jnp.sum(answer_mask(batch["length"], answer_size)).astype(jnp.float32)
    count = jnp.maximum(tokens, 1.0)
    grads = jax.tree.map(lambda g, p: (g / count).astype(p.dtype), found["grads"], state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "train/loss": found["loss"] / count,
        "train/grad_norm": optax.tree.norm(grads).astype(jnp.float32),
        "train/tokens": tokens,
        "train/read_tokens": jnp.sum(batch["segments"] > 0).astype(jnp.float32),
    }
    state = state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return state, metrics
