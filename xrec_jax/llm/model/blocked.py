"""Causal attention in blocks of queries for a CPU, a few heads at a time, with its own derivative.

Scores of all heads would be written to main memory and read again several times. Those of one block
of queries and a few heads stay in the cache, and keys after the block's end are skipped. The
backward pass computes the scores again from each query's log-sum-exp (FlashAttention-2, Dao, arXiv
2307.08691, section 3.1); masks are held whole, in float32. Its products have plain orders of axes:
a CPU copies factors, 16-bit ones in float32, whose contracted axis comes first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xrec_jax.llm.model.layer_scan import as_floats, as_integers

MASKED = -1e30  # finite: a fully masked row must not become NaN
_LEAST_BLOCK, _MOST_BLOCKS = 128, 16  # queries of a block; more blocks take longer to compile
_SCORE_BYTES = 3 << 19  # float32 scores at a time; fits into the cache of a core
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

Mask = Callable[[int, int], jax.Array]


class _Span(NamedTuple):
    """Queries `start` to `stop`, which see the first `end` keys."""

    start: int
    stop: int
    end: int


class _Plan(NamedTuple):
    """How the work is cut: blocks of queries, and key heads of all rows that are taken at once."""

    spans: tuple[_Span, ...]
    heads: int


def _plan(heads: int, group: int, length: int, slots: int) -> _Plan:
    """Cuts the attention of `length` queries, the last ones of `slots` keys.

    Args:
      heads: key heads of all rows.
      group: query heads of a key head.
      length: number of queries.
      slots: number of keys.
    """
    block = _LEAST_BLOCK * -(-length // (_LEAST_BLOCK * _MOST_BLOCKS))
    cuts = range(0, length, block)
    spans = [(start, min(start + block, length)) for start in cuts]
    most = max(1, _SCORE_BYTES // (4 * group * min(block, length) * slots))
    at_once = next(n for n in range(min(most, heads), 0, -1) if heads % n == 0)
    return _Plan(tuple(_Span(*span, slots - length + span[1]) for span in spans), at_once)


def visible(queries: jax.Array, keys: jax.Array, shared: bool) -> jax.Array:
    """Mask of visible keys by segment: `[b, q]`, `[b, k]` -> `[b, q, k]` bool.

    Args:
      queries: segment numbers of the queries.
      keys: segment numbers of the keys.
      shared: let later segments see segment 1.
    """
    queries, keys = queries[:, :, None], keys[:, None, :]
    same = queries == keys
    return same | ((keys == 1) & (queries > 1)) if shared else same


def _causal(segments: jax.Array, shared: bool) -> Mask:
    """Mask of a packed sequence."""

    def mask(start: int, stop: int) -> jax.Array:
        earlier = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        return earlier & visible(segments[:, start:stop], segments[:, :stop], shared)

    return mask


def _grouped(x: jax.Array, kv: int) -> jax.Array:
    """`[batch, length, heads, dim]` to `[batch * kv, heads / kv, length, dim]`."""
    batch, length, heads, dim = x.shape
    x = x.reshape(batch, length, kv, heads // kv, dim).transpose(0, 2, 3, 1, 4)
    return x.reshape(batch * kv, heads // kv, length, dim)


def _ungrouped(x: jax.Array, kv: int) -> jax.Array:
    """The inverse of `_grouped`."""
    _, group, length, dim = x.shape
    x = x.reshape(-1, kv, group, length, dim).transpose(0, 3, 1, 2, 4)
    return x.reshape(-1, length, kv * group, dim)


def _by_chunks(function: Callable[..., Any], chunk: int, arrays: tuple[jax.Array, ...]) -> Any:
    """`function` of `chunk` first indices at a time; 16-bit arrays are carried as integers."""
    count = len(arrays[0])
    if chunk == count:
        return function(*arrays)
    types = [x.dtype for x in arrays]
    results: list[Any] = []

    def part(parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out = function(*(as_floats(x, dtype) for x, dtype in zip(parts, types, strict=True)))
        results[:] = [x.dtype for x in out]
        return tuple(map(as_integers, out))

    cut = tuple(as_integers(x).reshape(-1, chunk, *x.shape[1:]) for x in arrays)
    out = jax.lax.map(part, cut)
    whole = (x.reshape(count, *x.shape[2:]) for x in out)
    return tuple(as_floats(x, dtype) for x, dtype in zip(whole, results, strict=True))


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """`[heads, group, rows, dim]` and `[heads, keys, dim]` to `[heads, group, rows, keys]`."""
    heads, group, rows, dim = q.shape
    flat = _einsum("nrd,nsd->nrs", q.reshape(heads, -1, dim), k)
    return flat.reshape(heads, group, rows, -1)


def forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Attention of new tokens, the last ones of the keys, in their order.

    Args:
      q: `[batch, length, heads, dim]`.
      k: `[batch, slots, kv_heads, dim]`, in the dtype of `q`.
      v: like `k`.
      mask: from start and stop of a block of queries to what they see of the keys up to the block's
        last one, `[batch, stop - start, slots - length + stop]` bool.

    Returns:
      Output like `q`, finite even where nothing is seen; log-sum-exp of the scaled scores,
      `[batch * kv_heads, heads / kv_heads, length]` float32.
    """
    kv, scale = k.shape[2], q.shape[-1] ** -0.5
    grouped = tuple(_grouped(x, kv) for x in (q, k, v))
    cut = _plan(len(grouped[0]), q.shape[2] // kv, q.shape[1], k.shape[1])
    biases = _biases(mask, cut)

    def heads(rows: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        outs, log_sums = [], []
        for (start, stop, end), bias in zip(cut.spans, biases, strict=True):
            scores = _scores(q[:, :, start:stop], k[:, 0, :end]) + bias[rows][:, None]
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp((scores - top) * scale)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            flat = weights.astype(v.dtype).reshape(len(q), -1, end)
            out = _einsum("nrs,nsd->nrd", flat, v[:, 0, :end]).reshape(*total.shape[:-1], -1)
            outs.append((out / total).astype(q.dtype))
            log_sums.append((top * scale + jnp.log(total))[..., 0])
        return jnp.concatenate(outs, axis=2), jnp.concatenate(log_sums, axis=2)

    rows = jnp.arange(len(grouped[0])) // kv
    out, log_sums = _by_chunks(heads, cut.heads, (rows, *grouped))
    return _ungrouped(out, kv), log_sums


def _biases(mask: Mask, cut: _Plan) -> list[jax.Array]:
    """What is added to a block's scores, float32: computed once for all heads."""
    return [jnp.where(mask(span.start, span.stop), 0.0, MASKED) for span in cut.spans]


def _backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    out: jax.Array,
    log_sums: jax.Array,
    g: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of `q`, `k` and `v` from that of the output, `g`, and what `forward` returned."""
    kv, scale, length = k.shape[2], q.shape[-1] ** -0.5, k.shape[1]
    grouped = tuple(_grouped(x, kv) for x in (q, k, v, g))
    cut = _plan(len(grouped[0]), q.shape[2] // kv, q.shape[1], length)
    biases = _biases(mask, cut)
    # The row sums of attention weights times their cotangents.
    inner = g.astype(jnp.float32) * out.astype(jnp.float32)
    sums = _grouped(jnp.sum(inner, axis=-1, keepdims=True), kv)[..., 0]

    def heads(
        rows: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        g: jax.Array,
        q_columns: jax.Array,
        g_columns: jax.Array,
        log_sums: jax.Array,
        sums: jax.Array,
    ) -> tuple[jax.Array, ...]:
        dtype = q.dtype
        q_grads = []
        totals = jnp.zeros((2, len(q), q.shape[-1], length), jnp.float32)
        for (start, stop, end), bias in zip(cut.spans, biases, strict=True):
            queries, back = q[:, :, start:stop], g[:, :, start:stop]
            scores = _scores(queries, k[:, 0, :end]) + bias[rows][:, None]
            weights = jnp.exp(scores * scale - log_sums[:, :, start:stop, None])
            through = _scores(back, v[:, 0, :end]) - sums[:, :, start:stop, None]
            flat = (len(q), -1, end)
            score_grad = (weights * through * scale).astype(dtype).reshape(flat)
            weights = weights.astype(dtype).reshape(flat)
            q_grad = _einsum("nrs,nsd->nrd", score_grad, k[:, 0, :end])
            q_grads.append(q_grad.reshape(queries.shape).astype(dtype))
            columns = (x[..., start:stop].reshape(*x.shape[:2], -1) for x in (q_columns, g_columns))
            pairs = zip(columns, (score_grad, weights), strict=True)
            parts = [_einsum("ndr,nrs->nds", *pair) for pair in pairs]
            totals += jnp.pad(jnp.stack(parts), ((0, 0),) * 3 + ((0, length - end),))
        k_grad, v_grad = totals.swapaxes(2, 3)[:, :, None].astype(dtype)
        return jnp.concatenate(q_grads, axis=2), k_grad, v_grad

    rows = jnp.arange(len(grouped[0])) // kv
    # Transposed outside the loop, behind whose border the compiler cannot undo it: see `products`.
    columns = tuple(x.transpose(0, 3, 1, 2) for x in (grouped[0], grouped[3]))
    grads = _by_chunks(heads, cut.heads, (rows, *grouped, *columns, log_sums, sums))
    q_grad, k_grad, v_grad = (_ungrouped(x, kv) for x in grads)
    return q_grad, k_grad, v_grad


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shared: bool
) -> jax.Array:
    """Causal self-attention of packed sequences; see `attention.attend`."""
    return forward(q, k, v, _causal(segments, shared))[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, shared: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, log_sums = forward(q, k, v, _causal(segments, shared))
    return out, (q, k, v, segments, out, log_sums)


def _attend_backward(shared: bool, saved: tuple[jax.Array, ...], g: jax.Array) -> Any:
    q, k, v, segments, out, log_sums = saved
    return *_backward(q, k, v, _causal(segments, shared), out, log_sums, g), None


attend.defvjp(_attend_forward, _attend_backward)
