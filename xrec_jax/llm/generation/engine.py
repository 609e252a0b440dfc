"""The device side of generation: a ring of cache slots that every row writes in step.

A batch has a fixed number of rows, each with a cache of `slots` places. At every step all rows
write their token into the same place, `tick % slots`, so one slice update serves the whole batch
whatever the rows' lengths are; what a row may see are the `length` places behind it. Keys carry
their position, so where they lie does not matter. A finished row can therefore be replaced at any
step by a new one, whose prompt is laid into the places just behind the current one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from xrec_jax.llm.generation.sampling import Sampling, choose
from xrec_jax.llm.model.layers import Cache, Extend, Sequence, Step, join
from xrec_jax.llm.model.llama import Llama, SoftPrompt
from xrec_jax.parallel.mesh import constrain


class Rows(flax.struct.PyTreeNode):
    """State of a batch in generation.

    Attributes:
      caches: one a layer.
      tick: int32 scalar, steps so far.
      token: `[batch]` int32, chosen last, not in the cache yet.
      length: `[batch]` int32, tokens in the cache; also the position of `token`.
      count: `[batch]` int32, tokens generated.
      limit: `[batch]` int32, most tokens to generate.
      seed: `[batch]` uint32.
      done: `[batch]` bool: nothing is left to do, the row is free.
      tokens: `[batch, most]` int32, what was generated.
      log_probs: `[batch, most]` float32.
      seen: `[batch, vocab]` bool, or `[batch, 0]` where no penalty needs it.
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
      lengths: `[new]` int32, tokens of each, without a shared prefix.
      rows: `[new]` int32 rows of the batch to replace; one past the end for none.
      limits: `[new]` int32.
      seeds: `[new]` uint32.
      soft: embeddings to replace, or None.
      seen: `[new, vocab]` bool, or `[new, 0]`.
    """

    ids: Any
    lengths: Any
    rows: Any
    limits: Any
    seeds: Any
    soft: SoftPrompt | None
    seen: Any


class Prefix(NamedTuple):
    """What prompts have in common, computed once.

    Attributes:
      caches: one a layer, of one row, padded on the left.
      length: int32 scalar.
    """

    caches: tuple[Cache, ...]
    length: jax.Array


def empty_rows(model: Llama, *, batch: int, slots: int, most: int, vocab: int) -> Rows:
    """A batch in which every row is free.

    Args:
      model: the model.
      batch: rows.
      slots: places of the cache: at least the longest prompt and answer together.
      most: longest answer.
      vocab: vocabulary size where a repetition penalty needs it, else 0.
    """
    config = model.config
    heads, dim = config.num_kv_heads, config.head_dim

    def zeros(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
        return constrain(jnp.zeros(shape, dtype), "batch", *[None] * (len(shape) - 1))

    def cache() -> Cache:
        k = jnp.zeros((batch, heads, dim, slots), model.dtype)
        v = jnp.zeros((batch, heads, slots, dim), model.dtype)
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
    """Whether each token ends its row."""
    ends = jnp.zeros(tokens.shape, bool)
    for token in eos:
        ends |= tokens == token
    return ends


def read_prefix(model: Llama, params: Any, lora: Any, ids: jax.Array, length: jax.Array) -> Prefix:
    """Keys and values of a shared prefix, padded on the left.

    Args:
      model: the model.
      params: of the base.
      lora: scaled adapter layers, or None.
      ids: `[copies, width]`, the same in every row: a mesh wants a row for each device.
      length: int32 scalar, tokens that are not padding.
    """
    column = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    segments = (column >= ids.shape[1] - length).astype(jnp.int32)
    positions = jnp.maximum(column - (ids.shape[1] - length), 0)
    contexts = [Sequence(segments)] * model.config.num_layers
    x = model.embed(params, ids)
    caches = model.cached(params, x, positions, contexts, lora=lora)[1]
    return Prefix(tuple(Cache(cache.k[:1], cache.v[:1]) for cache in caches), length)


def admit(
    model: Llama,
    sampling: Sampling,
    eos: tuple[int, ...],
    params: Any,
    lora: Any,
    rows: Rows,
    new: Prompts,
    prefix: Prefix | None,
) -> Rows:
    """Reads prompts, chooses their first tokens and puts them into the rows they replace."""
    count, width = new.ids.shape
    pad = (width - new.lengths)[:, None]
    column = jnp.arange(width)[None]
    before = jnp.int32(0) if prefix is None else prefix.length
    positions = jnp.maximum(column - pad, 0) + before
    contexts: list[Any]
    if prefix is None:
        segments = (column >= pad).astype(jnp.int32)
        contexts = [Sequence(segments)] * model.config.num_layers
    else:
        shared = prefix.caches[0].v.shape[2]
        own = (column >= pad)[:, None] & (column[0] <= column[0][:, None])
        behind = jnp.broadcast_to(
            jnp.arange(shared) >= shared - prefix.length, (count, width, shared)
        )
        mask = jnp.concatenate([behind, own], axis=2)
        contexts = [Extend(cache, mask) for cache in prefix.caches]
    x = model.embed(params, new.ids, new.soft)
    hidden, caches = model.cached(params, x, positions, contexts, lora=lora)
    token, log_prob = choose(
        model.project(params, hidden[:, -1]),
        sampling,
        seeds=new.seeds,
        counts=jnp.zeros(count, jnp.int32),
        seen=new.seen if sampling.penalises else None,
    )
    place = _places(rows, new.lengths, width, prefix)
    merged = []
    for layer, (old, fresh) in enumerate(zip(rows.caches, caches, strict=True)):
        both = fresh if prefix is None else join(prefix.caches[layer], fresh)
        k = jnp.take_along_axis(both.k, place[:, None, None, :], axis=3)
        v = jnp.take_along_axis(both.v, place[:, None, :, None], axis=2)
        merged.append(
            Cache(*(o.at[new.rows].set(n, mode="drop") for o, n in zip(old, (k, v), strict=True)))
        )
    tokens = jnp.zeros((count, rows.tokens.shape[1]), jnp.int32).at[:, 0].set(token)
    log_probs = jnp.zeros(tokens.shape, jnp.float32).at[:, 0].set(log_prob)
    seen = new.seen
    if sampling.penalises:
        seen = seen.at[jnp.arange(count), token].set(True)
    put = {
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
        for name, value in put.items()
    }
    return rows.replace(caches=tuple(merged), **changed)


def _places(rows: Rows, lengths: jax.Array, width: int, prefix: Prefix | None) -> jax.Array:
    """For every cache slot of a new row the prompt column it takes: `[new, slots]`."""
    slots = rows.caches[0].v.shape[2]
    age = (rows.tick - 1 - jnp.arange(slots)) % slots + 1  # 1 is the place written last
    own = lengths[:, None]
    shared = 0 if prefix is None else prefix.caches[0].v.shape[2]
    column = jnp.where(age <= own, shared + width - age, shared + own - age)
    return jnp.clip(column, 0, shared + width - 1)


def decode(
    model: Llama,
    sampling: Sampling,
    eos: tuple[int, ...],
    params: Any,
    lora: Any,
    rows: Rows,
    steps: jax.Array,
    wanted: jax.Array,
) -> Rows:
    """Generates until `steps` are done or `wanted` rows are free.

    Args:
      model: the model.
      sampling: how tokens are chosen.
      eos: tokens that end a row.
      params: of the base.
      lora: scaled adapter layers, or None.
      rows: the batch.
      steps: int32 scalar.
      wanted: int32 scalar.
    """
    slots = rows.caches[0].v.shape[2]
    stop = rows.tick + steps
    slot_ids, answer_ids = jnp.arange(slots), jnp.arange(rows.tokens.shape[1])

    def step(rows: Rows) -> Rows:
        slot = rows.tick % slots
        age = (rows.tick - slot_ids) % slots
        mask = (age <= rows.length[:, None])[:, None]
        contexts = [Step(cache, slot, mask) for cache in rows.caches]
        x = model.embed(params, rows.token[:, None])
        hidden, caches = model.cached(params, x, rows.length[:, None], contexts, lora=lora)
        token, log_prob = choose(
            model.project(params, hidden[:, 0]),
            sampling,
            seeds=rows.seed,
            counts=rows.count,
            seen=rows.seen if sampling.penalises else None,
        )
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

    def goes_on(rows: Rows) -> jax.Array:
        return (rows.tick < stop) & (jnp.sum(rows.done) < wanted)

    return jax.lax.while_loop(goes_on, step, rows)
