"""Training step of a language model: an adapter on a frozen base, or the whole model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.llm.model.losses import cross_entropy
from xrec_jax.parallel.mesh import constrain
from xrec_jax.training.state import TrainState

Batch = dict[str, jax.Array]


def summed_loss(
    trained: Any,
    base: Any,
    batch: Batch,
    key: jax.Array | None,
    *,
    model: Llama,
    lora: LoraConfig | None,
) -> jax.Array:
    """Sum of `-log p` over the trained tokens of a batch (see `data.packing.PackedRows`).

    Args:
      trained: parameters of the adapter, or of the whole model if `lora` is None.
      base: frozen parameters under an adapter; unused if `lora` is None.
      batch: `ids`, `targets`, `weights`, `segments`, each `[rows, length]`.
      key: key of the adapter's dropout; None for evaluation.
      model: the model's functions.
      lora: the adapter's configuration, or None to train the model itself.
    """
    params = trained if lora is None else base
    adapter = None if lora is None else Adapter(trained, lora)
    hidden = model.hidden(
        params, batch["ids"], segments=batch["segments"], adapter=adapter, key=key
    )
    return cross_entropy(
        hidden, model.table(params), batch["targets"], batch["weights"], train_table=lora is None
    )


def instruct_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: Llama,
    lora: LoraConfig | None,
    optimizer: optax.GradientTransformation,
    accumulation: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on the mean loss of all trained tokens of the batch.

    With accumulation the batch is read in microbatches, one after the other; sums are divided by
    the token count of the whole batch at the end, so the result is that of the whole batch, up to
    rounding, however the tokens are distributed.

    Args:
      state: `params` the adapter or the model, `frozen["base"]` the base under an adapter.
      batch: see `summed_loss`; rows are split over the mesh.
      key: key of this step.
      model: the model's functions.
      lora: see `summed_loss`.
      optimizer: gradient transformation.
      accumulation: number of microbatches; divides the rows.

    Returns:
      The state after the step, and its metrics: `train/loss` (before the update, mean over tokens),
      `train/grad_norm` (before clipping), `train/tokens` (trained) and `train/read_tokens` (all but
      padding).
    """
    base = state.frozen.get("base")

    def gradient(microbatch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        def loss(trained):
            return summed_loss(trained, base, microbatch, key, model=model, lora=lora)

        return jax.value_and_grad(loss)(state.params)

    if accumulation == 1:
        total, grads = gradient(batch, key)
    else:
        microbatches = jax.tree.map(lambda x: _interleave(x, accumulation), batch)

        # A scan holds one microbatch's activations at a time, and compiles the step once.
        def add(carry, microbatch):
            gradients = gradient(microbatch, jax.random.fold_in(key, carry[0]))
            sums = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry[1:], gradients)
            return (carry[0] + 1, *sums), None

        # Gradients are summed in float32 whatever the parameters' type.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.params)
        (_, total, grads), _ = jax.lax.scan(
            add, (jnp.int32(0), jnp.float32(0), zeros), microbatches
        )
    # Dividing sums once keeps every token's weight equal, however many a microbatch holds.
    tokens = jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    grads = jax.tree.map(lambda g, p: (g / tokens).astype(p.dtype), grads, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "train/loss": total / tokens,
        "train/grad_norm": optax.tree.norm(grads).astype(jnp.float32),
        "train/tokens": tokens,
        "train/read_tokens": jnp.sum(batch["segments"] > 0).astype(jnp.float32),
    }
    state = state.replace(
        step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    return state, metrics


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """`[rows, ...]` to `[parts, rows / parts, ...]`; each device's rows stay on it."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return constrain(split, None, "batch", *[None] * (x.ndim - 1))
