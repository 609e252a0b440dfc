"""Device side of generation: a ring of cache slots that all rows write in lockstep.

A batch has a fixed number of rows, each with a cache of `slots` slots. At every step all rows write
their token into the same slot, `tick % slots`, so one slice update serves the whole batch whatever
the lengths of the rows; a row sees the `length` slots behind it. Keys carry their position, so
their slot does not matter. A finished row can therefore be replaced at any step by a new one, whose
prompt is copied into the slots just behind the current one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xrec_jax.core.trees import PyTree
from xrec_jax.llm.generation.sampling import Sampling, choose
from xrec_jax.llm.model.layers import (
    Cache,
    Context,
    DecodeStep,
    FullAttention,
    PrefixAttention,
    join,
)
from xrec_jax.llm.model.llama import Llama, SoftPrompt
from xrec_jax.parallel.mesh import constrain

Array: TypeAlias = Any  # of the host or of a device


class Rows(flax.struct.PyTreeNode):
    """State of a batch in generation.

    Attributes:
      caches: one cache a layer.
      tick: int32 scalar, steps so far.
      token: `[batch]` int32, chosen last, not in the cache yet.
      length: `[batch]` int32, number of tokens in the cache; also the position of `token`.
      count: `[batch]` int32, number of generated tokens.
      limit: `[batch]` int32, most tokens to generate.
      seed: `[batch]` uint32.
      done: `[batch]` bool, true if the row is free.
      tokens: `[batch, most]` int32, generated tokens.
      log_probs: `[batch, most]` float32, their log-probabilities.
      seen: `[batch, vocab]` bool, tokens to penalise; `[batch, 0]` without a penalty.
    """

    caches: tuple[Cache, ...]
    tick: jax.Array
    token: jax.Array
    length: jax.Array
    count: jax.Array
    limit: jax.Array
    seed: jax.Array
    done: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    seen: jax.Array


class Prompts(NamedTuple):
    """Prompts to admit, padded on the left; host or device arrays.

    Attributes:
      ids: `[new, width]` int32.
      lengths: `[new]` int32, number of tokens of each, without a shared prefix.
      rows: `[new]` int32, rows of the batch to replace; one past the end for padding.
      limits: `[new]` int32, most tokens to generate.
      seeds: `[new]` uint32.
      soft: soft prompt vectors, or None.
      seen: `[new, vocab]` bool, or `[new, 0]`.
    """

    ids: Array
    lengths: Array
    rows: Array
    limits: Array
    seeds: Array
    soft: SoftPrompt | None
    seen: Array


class Prefix(NamedTuple):
    """Cache of a shared prompt prefix, computed once.

    Attributes:
      caches: one cache a layer, of one row, padded on the left.
      length: int32 scalar, number of tokens.
    """

    caches: tuple[Cache, ...]
    length: jax.Array


def empty_rows(model: Llama, *, batch: int, slots: int, most: int, vocab: int) -> Rows:
    """Creates a batch in which every row is free.

    Args:
      model: the model.
      batch: number of rows.
      slots: slots of the cache, at least the longest prompt and answer together.
      most: most tokens of an answer.
      vocab: vocabulary size if a repetition penalty needs it, else 0.
    """
    config = model.config
    heads, dim = config.num_kv_heads, config.head_dim

    def zeros(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.Array:
        return constrain(jnp.zeros(shape, dtype), "batch", *[None] * (len(shape) - 1))

    def cache() -> Cache:
        k = jnp.zeros((batch, heads, dim, slots), model.cache_dtype)
        v = jnp.zeros((batch, heads, slots, dim), model.cache_dtype)
        return Cache(*(constrain(x, "batch", "heads", None, None) for x in (k, v)))

    return Rows(
        caches=tuple(cache() for _ in range(config.num_layers)),
        tick=jnp.int32(0),
        token=zeros(batch),
        length=zeros(batch),
        count=zeros(batch),
        limit=zeros(batch),
        seed=zeros(batch, dtype=jnp.uint32),
        done=constrain(jnp.ones(batch, bool), "batch"),
        tokens=zeros(batch, most),
        log_probs=zeros(batch, most, dtype=jnp.float32),
        seen=zeros(batch, vocab, dtype=bool),
    )


def _last(tokens: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    """Marks the tokens that end their row."""
    is_end = jnp.zeros(tokens.shape, bool)
    for token in eos:
        is_end |= tokens == token
    return is_end


def read_prefix(
    model: Llama, params: PyTree, lora: PyTree, ids: jax.Array, length: jax.Array
) -> Prefix:
    """Computes keys and values of a shared prefix, padded on the left.

    Args:
      model: the model.
      params: parameters of the base.
      lora: scaled adapter layers, or None.
      ids: `[copies, width]`, equal rows: a mesh needs one for each batch shard.
      length: int32 scalar, number of tokens without padding.
    """
    column = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    segments = (column >= ids.shape[1] - length).astype(jnp.int32)
    positions = jnp.maximum(column - (ids.shape[1] - length), 0)
    contexts = [FullAttention(segments)] * model.config.num_layers
    x = model.embed(params, ids)
    caches = model.cached(params, x, positions, contexts, lora=lora)[1]
    return Prefix(tuple(Cache(cache.k[:1], cache.v[:1]) for cache in caches), length)


def admit(
    model: Llama,
    sampling: Sampling,
    eos: tuple[int, ...],
    params: PyTree,
    lora: PyTree,
    rows: Rows,
    new: Prompts,
    prefix: Prefix | None,
) -> Rows:
    """Computes prompts, chooses their first tokens and puts both into the rows to be replaced."""
    count, width = new.ids.shape
    # Padding on the left puts the last token of every prompt into the last column.
    pad = (width - new.lengths)[:, None]
    column = jnp.arange(width)[None]
    before = jnp.int32(0) if prefix is None else prefix.length
    positions = jnp.maximum(column - pad, 0) + before
    contexts: list[Context]
    if prefix is None:
        segments = (column >= pad).astype(jnp.int32)
        contexts = [FullAttention(segments)] * model.config.num_layers
    else:
        # A token sees the real part of the prefix and its own prompt up to itself.
        shared = prefix.caches[0].v.shape[2]
        own = (column >= pad)[:, None] & (column[0] <= column[0][:, None])
        behind = jnp.broadcast_to(
            jnp.arange(shared) >= shared - prefix.length, (count, width, shared)
        )
        mask = jnp.concatenate([behind, own], axis=2)
        contexts = [PrefixAttention(cache, mask) for cache in prefix.caches]
    # Forward pass over the prompts, and the first token of each answer.
    x = model.embed(params, new.ids, new.soft)
    hidden, caches = model.cached(params, x, positions, contexts, lora=lora)
    token, log_prob = choose(
        model.project(params, hidden[:, -1]),
        sampling,
        seeds=new.seeds,
        counts=jnp.zeros(count, jnp.int32),
        seen=new.seen if sampling.penalises else None,
    )
    # Copy keys and values into the ring. Rows of padding prompts lie out of bounds and are dropped.
    columns = _places(rows, new.lengths, width, prefix)
    merged = []
    for layer, (old, fresh) in enumerate(zip(rows.caches, caches, strict=True)):
        both = fresh if prefix is None else join(prefix.caches[layer], fresh)
        k = jnp.take_along_axis(both.k, columns[:, None, None, :], axis=3)
        v = jnp.take_along_axis(both.v, columns[:, None, :, None], axis=2)
        pairs = zip(old, (k, v), strict=True)
        merged.append(
            Cache(*(o.at[new.rows].set(n.astype(o.dtype), mode="drop") for o, n in pairs))
        )
    # State of the new rows, of which one token is generated already.
    tokens = jnp.zeros((count, rows.tokens.shape[1]), jnp.int32).at[:, 0].set(token)
    log_probs = jnp.zeros(tokens.shape, jnp.float32).at[:, 0].set(log_prob)
    seen = new.seen
    if sampling.penalises:
        seen = seen.at[jnp.arange(count), token].set(True)
    values = {
        "token": token,
        "length": new.lengths + before,
        "count": jnp.ones(count, jnp.int32),
        "limit": new.limits,
        "seed": new.seeds,
        "done": _last(token, eos) | (new.limits <= 1),
        "tokens": tokens,
        "log_probs": log_probs,
        "seen": seen,
    }
    changed = {
        name: getattr(rows, name).at[new.rows].set(value, mode="drop")
        for name, value in values.items()
    }
    return rows.replace(caches=tuple(merged), **changed)


def _places(rows: Rows, lengths: jax.Array, width: int, prefix: Prefix | None) -> jax.Array:
    """Prompt column that each cache slot of a new row is filled from: `[new, slots]`."""
    slots = rows.caches[0].v.shape[2]
    age = (rows.tick - 1 - jnp.arange(slots)) % slots + 1  # 1 is the slot written last
    own = lengths[:, None]
    shared = 0 if prefix is None else prefix.caches[0].v.shape[2]
    # The newest `own` slots hold the prompt, older ones the prefix before it; both end in their
    # last column. What lies beyond is never visible.
    column = jnp.where(age <= own, shared + width - age, shared + own - age)
    return jnp.clip(column, 0, shared + width - 1)


def decode(
    model: Llama,
    sampling: Sampling,
    eos: tuple[int, ...],
    params: PyTree,
    lora: PyTree,
    rows: Rows,
    steps: jax.Array,
    wanted: jax.Array,
) -> Rows:
    """Generates until `steps` are done or `wanted` rows are free.

    Args:
      model: the model.
      sampling: sampling options.
      eos: tokens that end a row.
      params: parameters of the base.
      lora: scaled adapter layers, or None.
      rows: the batch.
      steps: int32 scalar, most steps.
      wanted: int32 scalar, number of free rows to stop at.
    """
    slots = rows.caches[0].v.shape[2]
    stop = rows.tick + steps
    slot_ids, answer_ids = jnp.arange(slots), jnp.arange(rows.tokens.shape[1])

    def step(rows: Rows) -> Rows:
        slot = rows.tick % slots
        # Age 0 is the slot written in this step; a row sees its own `length` tokens before it.
        age = (rows.tick - slot_ids) % slots
        mask = (age <= rows.length[:, None])[:, None]
        contexts = [DecodeStep(cache, slot, mask) for cache in rows.caches]
        x = model.embed(params, rows.token[:, None])
        hidden, caches = model.cached(params, x, rows.length[:, None], contexts, lora=lora)
        token, log_prob = choose(
            model.project(params, hidden[:, 0]),
            sampling,
            seeds=rows.seed,
            counts=rows.count,
            seen=rows.seen if sampling.penalises else None,
        )
        # Free rows run along, but their state does not change.
        live = ~rows.done
        here = (answer_ids == rows.count[:, None]) & live[:, None]
        count = rows.count + live
        seen = rows.seen
        if sampling.penalises:
            seen = seen.at[jnp.arange(len(token)), token].max(live)
        return rows.replace(
            caches=caches,
            tick=rows.tick + 1,
            token=token,
            length=rows.length + live,
            count=count,
            done=rows.done | _last(token, eos) | (count >= rows.limit),
            tokens=jnp.where(here, token[:, None], rows.tokens),
            log_probs=jnp.where(here, log_prob[:, None], rows.log_probs),
            seen=seen,
        )

    def condition(rows: Rows) -> jax.Array:
        return (rows.tick < stop) & (jnp.sum(rows.done) < wanted)

    return jax.lax.while_loop(condition, step, rows)
