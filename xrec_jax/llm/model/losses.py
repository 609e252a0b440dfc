"""Cross entropy and log-probabilities without an array `[batch, length, vocab]`.

Logits exist for a chunk of columns at a time. Cross entropy computes its gradient in the same pass,
so no logits are recomputed, and skips columns without a target: in completion-only training most
of a row is prompt, and the output layer is a large part of a small model.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from xrec_jax.llm.model.precision import product_dtype
from xrec_jax.parallel.mesh import constrain, current_parts

_CHUNK_BYTES = {"cpu": 4 << 20}  # of float32 logits of all rows; fits into a CPU cache
_CHUNK_BYTES_DEFAULT = 1 << 29
# Fewer rows of a product than this would read a large vocabulary's table more often than it pays.
_CHUNK_ROWS = 128


def chunk_columns(rows: int, length: int, vocab: int) -> int:
    """Number of columns of a global `[rows, length]` batch whose logits are held at once."""
    budget = _CHUNK_BYTES.get(jax.default_backend(), _CHUNK_BYTES_DEFAULT)
    shards = current_parts("batch")
    entries = -(-rows * vocab // (shards * current_parts("vocab")))
    least = -(-_CHUNK_ROWS * shards // rows)
    return max(1, min(length, max(least, budget // (4 * entries))))


def _logits(hidden: jax.Array, table: jax.Array) -> jax.Array:
    """`[rows, columns, hidden]` -> `[rows, columns, vocab]` float32."""
    rows, columns, width = hidden.shape
    flat = jax.lax.dot_general(
        hidden.reshape(-1, width),
        table.astype(hidden.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return constrain(flat.reshape(rows, columns, -1), "batch", None, "vocab")


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int = 0,
    train_table: bool = False,
) -> jax.Array:
    """Weighted sum of `-log p(target)`.

    Args:
      hidden: `[batch, length, hidden]` normalised states.
      table: `[vocab, hidden]` output layer.
      targets: `[batch, length]` int32, the token after each column.
      weights: `[batch, length]` float32, treated as constants; columns of weight 0 cost nothing and
        may hold any target.
      chunk: columns of a chunk; 0 for a default by device.
      train_table: compute the gradient of the table too (false if it is frozen).

    Returns:
      float32 scalar.
    """
    rows, length, _ = hidden.shape
    chunk = chunk or chunk_columns(rows, length, table.shape[0])
    weights = jax.lax.stop_gradient(weights)
    targets = jnp.where(weights == 0, 0, targets)
    spare = -length % chunk
    if spare:
        hidden = jnp.pad(hidden, ((0, 0), (0, spare), (0, 0)))
        targets, weights = (jnp.pad(x, ((0, 0), (0, spare))) for x in (targets, weights))
    # Columns with a weight are sorted first, so that chunks of the others are never computed.
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    targets, weights = (jnp.take_along_axis(x, order, axis=1) for x in (targets, weights))
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=1)
    if not train_table:
        table = jax.lax.stop_gradient(table)
    return _cross_entropy(hidden, table, targets, weights, chunk, train_table)


def _chunks(weights: jax.Array, chunk: int) -> jax.Array:
    """Number of chunks with a weighted column."""
    used = jnp.max(jnp.sum(weights != 0, axis=1))
    return (used + chunk - 1) // chunk


def _cut(x: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(hidden, table, targets, weights, chunk, train_table):
    def body(index, total):
        logits = _logits(_cut(hidden, index, chunk), table)
        target = _cut(targets, index, chunk)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - chosen
        return total + jnp.sum(_cut(weights, index, chunk) * nll)

    return jax.lax.fori_loop(0, _chunks(weights, chunk), body, jnp.float32(0))


def _forward(hidden, table, targets, weights, chunk, train_table):
    def body(index, carry):
        total, hidden_grad, table_grad = carry
        states, target = _cut(hidden, index, chunk), _cut(targets, index, chunk)
        weight = _cut(weights, index, chunk)[..., None].astype(jnp.float32)
        logits = _logits(states, table)
        # Softmax once, for the loss log(sum exp) - logit and its gradient softmax -
        # one_hot(target).
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        shares = jnp.exp(logits - top)
        partition = jnp.sum(shares, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)
        total += jnp.sum(weight * (jnp.log(partition) + top - chosen))
        hit = jnp.arange(logits.shape[-1]) == target[..., None]
        grad = (shares * (weight / partition) - jnp.where(hit, weight, 0.0)).astype(states.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        wide = product_dtype(states.dtype)
        back = jnp.dot(flat, table.astype(states.dtype), preferred_element_type=wide)
        back = back.astype(states.dtype).reshape(states.shape)
        hidden_grad = jax.lax.dynamic_update_slice_in_dim(hidden_grad, back, index * chunk, axis=1)
        if train_table:
            table_grad += jax.lax.dot_general(
                flat,
                states.reshape(-1, states.shape[-1]),
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        return total, hidden_grad, table_grad

    table_grad = jnp.zeros(table.shape if train_table else (), jnp.float32)
    start = (jnp.float32(0), jnp.zeros_like(hidden), table_grad)
    total, *grads = jax.lax.fori_loop(0, _chunks(weights, chunk), body, start)
    return total, (grads[0], grads[1].astype(table.dtype), table, targets, weights)


def _backward(
    chunk: int, train_table: bool, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    hidden_grad, table_grad, table, _, weights = saved
    scaled = (hidden_grad.astype(jnp.float32) * cotangent).astype(hidden_grad.dtype)
    back = table_grad * cotangent.astype(table_grad.dtype) if train_table else jnp.zeros_like(table)
    return scaled, back, None, jnp.zeros_like(weights)


_cross_entropy.defvjp(_forward, _backward)


def log_probs(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 0,
) -> jax.Array:
    """Log-probability of each target; differentiable in states and table.

    Args:
      hidden: `[batch, length, hidden]` normalised states.
      table: `[vocab, hidden]` output layer.
      targets: `[batch, length]` int32.
      temperature: softmax temperature.
      chunk: columns of a chunk; 0 for a default by device.

    Returns:
      `[batch, length]` float32.
    """
    rows, length, _ = hidden.shape
    chunk = chunk or chunk_columns(rows, length, table.shape[0])
    spare = -length % chunk

    def chunks(x):  # [pieces, rows, chunk, ...]
        padded = jnp.pad(x, ((0, 0), (0, spare), *[(0, 0)] * (x.ndim - 2)))
        return padded.reshape(rows, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def chunk_log_probs(states_and_targets):
        states, target = states_and_targets
        logits = _logits(states, table) / temperature
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    out = jax.lax.map(chunk_log_probs, (chunks(hidden), chunks(targets)))
    return out.transpose(1, 0, 2).reshape(rows, -1)[:, :length]
