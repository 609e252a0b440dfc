"""Log-probabilities of given continuations of a prompt, for constrained choices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.generation import engine
from xrec_jax.llm.generation.engine import Prefix
from xrec_jax.llm.generation.prefixes import bucket
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.llm.model.layers import PrefixAttention
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import current_parts, gather

_FEWEST = 8  # rows of the smallest compiled batch


def continuation_log_probs(
    model: Llama, params: PyTree, lora: PyTree, prefix: Prefix, ids: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Log-probabilities of continuations of one prefix.

    Args:
      model: the model.
      params: parameters of the base.
      lora: scaled adapter layers, or None.
      prefix: common prefix of all rows.
      ids: `[rows, width]` int32, padded on the right; the first token of a row is conditioned on,
        the others count.
      lengths: `[rows]` int32, number of tokens of each row.

    Returns:
      `[rows]` float32, sums over the tokens of a row.
    """
    count, width = ids.shape
    column = jnp.arange(width)
    shared = prefix.caches[0].v.shape[2]
    # A token sees the real part of the left-padded prefix and its own row up to itself.
    before = jnp.broadcast_to(jnp.arange(shared) >= shared - prefix.length, (count, width, shared))
    own = jnp.broadcast_to(column <= column[:, None], (count, width, width))
    mask = jnp.concatenate([before, own], axis=2)
    positions = jnp.broadcast_to(column + prefix.length, (count, width))
    contexts = [PrefixAttention(cache, mask) for cache in prefix.caches]
    hidden, _ = model.cached(params, model.embed(params, ids), positions, contexts, lora=lora)
    logits = model.project(params, hidden[:, :-1])
    picked = jnp.take_along_axis(logits, ids[:, 1:, None], axis=2)[..., 0]
    log_p = picked - jax.nn.logsumexp(logits, axis=2)
    return jnp.sum(jnp.where(column[1:] < lengths[:, None], log_p, 0.0), axis=1)


@functools.lru_cache(maxsize=8)
def _compiled(model: Llama) -> tuple[Any, Any]:
    """Jitted functions, shared by all readouts of one model."""
    read = jax.jit(functools.partial(engine.read_prefix, model))
    return read, jax.jit(functools.partial(continuation_log_probs, model))


class Readout:
    """Scores continuations of prompts under one model; each prompt is computed once.

    Args:
      model: the model's functions.
      params: parameters of the base, unboxed.
      tokenizer: the model's tokenizer.
      adapter: None for the base itself.
      template: use the chat template; None lets the tokenizer decide.
    """

    def __init__(
        self,
        model: Llama,
        params: PyTree,
        tokenizer: Tokenizer,
        *,
        adapter: Adapter | None = None,
        template: bool | None = None,
    ):
        self._model, self._params, self._tokenizer = model, params, tokenizer
        self._lora = None if adapter is None else adapter.scaled()["layers"]
        self._template = template
        self._read, self._score = _compiled(model)

    def open(self, prompt: str) -> Opened:
        """Computes a prompt.

        Raises:
          UserError: if it is too long for the model.
        """
        ids = self._tokenizer.prompt(prompt, template=self._template)
        most = self._model.config.max_positions
        if len(ids) >= most:
            raise UserError(f"a prompt has {len(ids)} tokens, but the model takes {most}")
        # The last token is computed with the continuations: its state predicts their first one.
        context = ids[:-1]
        row = [0] * (bucket(max(len(context), 1)) - len(context)) + context
        padded = np.tile(row, (current_parts("batch"), 1)).astype(np.int32)
        prefix = self._read(self._params, self._lora, padded, jnp.int32(len(context)))
        return Opened(self, prompt, ids, prefix)

    def answer_ids(self, prompt: str, count: int, text: str) -> list[int]:
        """Token ids of an answer to a prompt of `count` tokens, without the end-of-text token."""
        rendered = self._tokenizer.render((prompt, text), template=self._template)
        ids = [
            token
            for token, mine in zip(rendered.ids[count:], rendered.trained[count:], strict=True)
            if mine
        ]
        while ids and ids[-1] in self._tokenizer.eos_ids:
            ids.pop()
        return ids

    def score(self, prefix: Prefix, rows: Sequence[Sequence[int]], before: int) -> np.ndarray:
        """Log-probability of each row after the prefix, given its first token: `[rows]`."""
        longest = max(map(len, rows))
        most = self._model.config.max_positions
        if before + longest > most:
            raise UserError(
                f"a prompt and its answer have {before + longest} tokens, but the model takes "
                f"{most}; shorten the history"
            )
        count = current_parts("batch")
        while count < max(len(rows), _FEWEST):  # few shapes, so that few are compiled
            count *= 2
        ids, lengths = np.zeros((count, bucket(longest)), np.int32), np.ones(count, np.int32)
        for number, row in enumerate(rows):
            ids[number, : len(row)], lengths[number] = row, len(row)
        log_probs = gather(self._score(self._params, self._lora, prefix, ids, lengths))
        return np.asarray(log_probs[: len(rows)])


class Opened:
    """A computed prompt, returned by `Readout.open`."""

    def __init__(self, readout: Readout, prompt: str, ids: list[int], prefix: Prefix):
        self._readout, self._prompt, self._ids, self._prefix = readout, prompt, ids, prefix

    def log_probs(self, texts: Sequence[str]) -> np.ndarray:
        """Log-probability that the answer begins with each text: `[texts]` float32."""
        rows = [
            [self._ids[-1], *self._readout.answer_ids(self._prompt, len(self._ids), text)]
            for text in texts
        ]
        return self._readout.score(self._prefix, rows, len(self._ids) - 1)
