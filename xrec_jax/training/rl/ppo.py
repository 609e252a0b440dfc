"""Training steps of a policy and its critic: PPO or GRPO, and supervised fine-tuning before it.

Trees and the layout of batches are those of `training.rl.actor_critic`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    policy_tx: optax.GradientTransformation, critic_tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Combines the optimizers of policy and critic for the tree `{"policy": ..., "critic": ...}`.

    Each sees its own subtree only, so a clip by global norm within it is of that subtree's norm.
    The state has the same two keys, so that a step can leave one of them unchanged.
    """
    transforms = {"policy": policy_tx, "critic": critic_tx}

    def init(params):
        return {name: tx.init(params[name]) for name, tx in transforms.items()}

    def update(grads, state, params=None):
        updates, after = {}, {}
        for name, tx in transforms.items():
            own = None if params is None else params[name]
            updates[name], after[name] = tx.update(grads[name], state[name], own)
        return updates, after

    return optax.GradientTransformation(init, update)


def minibatches(n: int, size: int, *, epochs: int, key: jax.Array) -> np.ndarray:
    """Rows of each update: a new order every epoch, the same on every host.

    Args:
      n: rows of the rollout; answers that share a prompt are one row.
      size: rows of an update.
      epochs: number of passes over the rows.
      key: key of the orders.

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
    """Sums the outputs of `gradient` over microbatches; of a leaf named `largest`, the maximum."""
    if parts == 1:
        return gradient(rows, key)
    n = rows["ids"].shape[0]
    if n % parts:
        raise UserError(f"accumulation={parts} must divide the {n} rows of a minibatch")

    def split(x):  # each device's rows stay on it, and the answers of a row beside it
        x = x.reshape(n // parts, parts, len(x) // n, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(parts, -1, *x.shape[3:])
        return constrain(x, None, "batch", *[None] * (x.ndim - 2))

    # Sums, not means, so that every token weighs the same whatever the split.
    def join(path, a, b):
        return jnp.maximum(a, b) if path[-1].key == "largest" else a + b.astype(jnp.float32)

    def add(carry, microbatch):
        number, total = carry
        sums = gradient(microbatch, jax.random.fold_in(key, number))
        return (number + 1, jax.tree_util.tree_map_with_path(join, total, sums)), None

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[: len(x) // parts], rows), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    (_, total), _ = jax.lax.scan(add, (jnp.int32(0), zeros), jax.tree.map(split, rows))
    return total


def _keep(apply: jax.Array, new: Any, old: Any) -> Any:
    """Selects `new` if `apply`, else exactly `old`."""
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

    Means are over all real answer tokens of the minibatch, for any accumulation. Dropout is off, so
    that the first update after a rollout sees ratios of 1.

    Args:
      state: `params` `{"policy": ..., "critic": ...}`, with an empty critic if there is none;
        `opt_state` of `policy_optimizer`; `frozen["base"]`.
      batch: see `actor_critic`; also `log_probs` and `advantages` `[n, A]`, with a critic `values`
        and `returns` `[n, A]`, and `train_policy`, a float scalar or one per row: 0 while the
        critic warms up, when neither the policy nor its optimizer state moves. Default 1.
      key: key of this step; unused, as nothing here is random.
      model: functions of the base.
      policy_lora: configuration of the policy's adapter.
      critic_lora: configuration of the critic's adapter.
      optimizer: result of `policy_optimizer`.
      options: losses and bounds.
      accumulation: number of microbatches; divides the rows.

    Returns:
      The state after the step, bit-identical to the one before if `options.kl_stop` stopped it; the
      metrics `losses.METRICS`. The caller ends the epoch if `ppo/stopped` is 1.
    """
    base, params = state.frozen["base"], state.params
    has_critic = bool(jax.tree.leaves(params["critic"]))
    size = batch["advantages"].shape[1]
    rows = {name: batch[name] for name in (*ROWS, *_ROLLOUT) if name in batch}

    def loss(trained, microbatch):
        mask = answer_mask(microbatch["length"], size)
        log_p, entropy = policy_log_probs(
            trained["policy"],
            base,
            microbatch,
            model=model,
            lora=policy_lora,
            answer_size=size,
            temperature=options.temperature,
            placeholder=options.placeholder,
            entropy=True,
        )
        surrogate, largest = losses.policy_loss(
            log_p, microbatch["log_probs"], microbatch["advantages"], mask, clip=options.clip
        )
        sums = surrogate.sums | {"entropy": jnp.sum(entropy)}
        total = surrogate.loss - options.entropy_weight * sums["entropy"]
        if has_critic:
            values = critic_values(
                trained["critic"],
                base,
                microbatch,
                model=model,
                lora=critic_lora,
                answer_size=size,
                placeholder=options.placeholder,
            )
            valued = losses.value_loss(
                values, microbatch["values"], microbatch["returns"], mask, clip=options.value_clip
            )
            total += options.value_weight * valued.loss
            sums |= valued.sums
        return total, {"sums": sums, "largest": largest}

    def gradient(microbatch, key):
        grads, outputs = jax.grad(loss, has_aux=True)(params, microbatch)
        return outputs | {"grads": grads}

    outputs = _in_parts(gradient, rows, key, accumulation)
    # Sums become means over the tokens of the whole minibatch, and so do gradients.
    mask = answer_mask(batch["length"], size)
    tokens = jnp.sum(mask).astype(jnp.float32)
    count = jnp.maximum(tokens, 1.0)
    grads = jax.tree.map(lambda g, p: (g / count).astype(p.dtype), outputs["grads"], params)
    metrics = {f"ppo/{name}": value / count for name, value in outputs["sums"].items()}
    stopped = jnp.zeros((), bool)
    if options.kl_stop:
        stopped = ~(metrics["ppo/kl_old"] <= options.kl_stop)  # also where it is not a number
    # A stopped step computes the update all the same, as jit has no early return, and drops it.
    moves = {
        "policy": ~stopped & (jnp.max(jnp.asarray(batch.get("train_policy", 1.0))) > 0),
        "critic": ~stopped,
    }
    metrics |= {
        "ppo/ratio_max": outputs["largest"],
        "ppo/tokens": tokens,
        "ppo/stopped": stopped.astype(jnp.float32),
    }
    for name in ("policy", "critic") if has_critic else ("policy",):
        metrics[f"ppo/grad_norm_{name}"] = optax.tree.norm(grads[name]).astype(jnp.float32)
    if has_critic:
        explained = losses.explained_variance(batch["values"], batch["returns"], mask)
        metrics["ppo/explained_variance"] = explained
    state = _updated(state, grads, moves, optimizer)
    return state.replace(step=state.step + (~stopped).astype(state.step.dtype)), metrics


def _updated(
    state: TrainState,
    grads: Any,
    moves: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state after an optimizer update of those trees, policy or critic, that move."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updated: Any = optax.apply_updates(state.params, updates)
    # A tree that stays keeps its optimizer state, too: momentum of a dropped step would move it.
    after: dict[str, Any] = {
        name: _keep(
            move, (updated[name], opt_state[name]), (state.params[name], state.opt_state[name])
        )
        for name, move in moves.items()
    }
    return state.replace(
        params={name: pair[0] for name, pair in after.items()},
        opt_state={name: pair[1] for name, pair in after.items()},
    )


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
    """One supervised update of a policy, including its soft prompt, on target answers.

    Minimises the mean of `-log p` over the answer tokens of the whole batch, at temperature 1.

    Args:
      state: `params` the policy's tree `{"lora": ..., "projector": ...}`; `frozen["base"]`.
      batch: see `actor_critic`; other entries are not read.
      key: key of the adapter's dropout.
      model: functions of the base.
      lora: configuration of the adapter.
      optimizer: optimizer of the policy's tree.
      answer_size: largest number of answer tokens.
      placeholder: id of the token that soft vectors replace.
      accumulation: number of microbatches; divides the rows.

    Returns:
      The state after the step; the metrics of `instruct.instruct_step`.
    """
    base = state.frozen["base"]
    rows = {name: batch[name] for name in ROWS if name in batch}

    def loss(trained, microbatch, key):
        states, tokens, mask = answer_states(
            trained,
            base,
            microbatch,
            model=model,
            lora=lora,
            answer_size=answer_size,
            placeholder=placeholder,
            key=key if lora.dropout else None,
        )
        return cross_entropy(states, model.table(base), tokens, mask.astype(jnp.float32))

    def gradient(microbatch, key):
        total, grads = jax.value_and_grad(loss)(state.params, microbatch, key)
        return {"loss": total, "grads": grads}

    outputs = _in_parts(gradient, rows, key, accumulation)
    tokens = jnp.sum(answer_mask(batch["length"], answer_size)).astype(jnp.float32)
    count = jnp.maximum(tokens, 1.0)
    grads = jax.tree.map(lambda g, p: (g / count).astype(p.dtype), outputs["grads"], state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "train/loss": outputs["loss"] / count,
        "train/grad_norm": optax.tree.norm(grads).astype(jnp.float32),
        "train/tokens": tokens,
        "train/read_tokens": jnp.sum(batch["segments"] > 0).astype(jnp.float32),
    }
    state = state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return state, metrics
