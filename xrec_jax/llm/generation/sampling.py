"""Sampling of the next token from logits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.core.values import finite_number, whole_number

_TINY = 1e-4  # temperatures below it: logits 0.003 apart are already 30 nats apart
_LEAST = 1e-30  # below it float32 has no normal numbers to divide by


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling options, applied in this order, as in Hugging Face.

    Attributes:
      repetition_penalty: logits of tokens in the prompt or the answer are divided by it if
        positive, multiplied if negative; 1 is off.
      temperature: softmax temperature; 0, or below 0.0001, is greedy.
      top_k: keep the k most likely tokens, the first among ties; 0 is off.
      top_p: keep the most likely tokens that together reach this probability; 1 is off.
      min_p: keep tokens of at least this share of the highest probability; 0 is off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            least = 0.0 if name == "temperature" else -math.inf
            number = finite_number(getattr(self, name), name, least=least)
            object.__setattr__(self, name, number)  # NumPy scalars become Python numbers
        object.__setattr__(self, "top_k", whole_number(self.top_k, "top_k", least=0))
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1; 1 is off")
        if not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min_p={self.min_p} must be from 0 to 1; 0 is off")
        if not self.repetition_penalty > 0.0:
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be positive")

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always chosen."""
        return self.temperature < _TINY

    @property
    def penalises(self) -> bool:
        """True if tokens seen before must be tracked."""
        return self.repetition_penalty != 1.0


def choose(
    logits: jax.Array,
    options: Sampling,
    *,
    seeds: jax.Array,
    counts: jax.Array,
    seen: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses the next token of every row.

    The choice depends only on the row's logits, seed and number of generated tokens, not on the
    rest of the batch.

    Args:
      logits: `[batch, vocab]` float32.
      options: sampling options.
      seeds: `[batch]` uint32.
      counts: `[batch]` int32, number of tokens generated before this one.
      seen: `[batch, vocab]` bool, tokens that the repetition penalty applies to.

    Returns:
      Tokens `[batch]` int32, and their log-probability `[batch]` float32 under the whole
      distribution at the sampling temperature (1 if that is 0), before truncation and penalty, as a
      policy gradient needs it.
    """
    temperature = options.temperature or 1.0
    if temperature < _TINY:  # divided by it, logits would leave float32's range
        best = jnp.max(logits, axis=-1, keepdims=True)
        log_p = jax.nn.log_softmax((logits - best) / max(temperature, _LEAST), axis=-1)
    else:
        log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
    # Scores are for the choice alone; the reported log-probability ignores penalty and filters.
    scores = logits
    if options.penalises and seen is not None:
        penalty = options.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    if options.greedy:
        tokens = _best(scores)
    else:
        tokens = _sample(scores / temperature, options, seeds, counts)
    chosen = jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen


def _best(scores: jax.Array) -> jax.Array:
    """As `argmax` over the last axis, the first among equals; faster on a CPU."""
    ids = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    top = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(scores >= top, ids, scores.shape[-1] - 1), axis=-1)


def _sample(scores: jax.Array, options: Sampling, seeds: jax.Array, counts: jax.Array) -> jax.Array:
    """Samples by Gumbel-max from the filtered distribution."""
    # A key for each (seed, position): equal for a prompt in any batch.
    keys = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))(
        seeds, counts
    )
    sort = 0 < options.top_k < scores.shape[-1] or options.top_p < 1.0
    ids = None
    if sort:  # best first, so that both filters are prefixes
        k = min(options.top_k, scores.shape[-1]) or scores.shape[-1]
        scores, ids = jax.lax.top_k(scores, k)
    if options.top_p < 1.0:
        shares = jax.nn.softmax(scores, axis=-1)
        # Probability of all more likely tokens; the first token is always kept.
        before = jnp.cumsum(shares, axis=-1) - shares
        scores = jnp.where(before < options.top_p, scores, -jnp.inf)
    if options.min_p > 0.0:
        floor = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(options.min_p)
        scores = jnp.where(scores >= floor, scores, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:]))(keys)
    picked = _best(scores + noise)
    return picked if ids is None else jnp.take_along_axis(ids, picked[:, None], axis=-1)[:, 0]
