"""Probability of a language model's choice between two answers, computed without sampling.

p(first) = exp(l_1) / (exp(l_1) + exp(l_2)) with the logits l of the two answer tokens after the
prompt; the probability of other tokens is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation.prefixes import bucket, common
from xrec_jax.llm.model.layers import FullAttention, PrefixAttention
from xrec_jax.llm.model.llama import Llama, positions_of
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import batch_divisor, gather, put_batch, put_replicated

_WORTH = 64  # tokens of a shared beginning from which it is read separately
_WIDTH = 64  # shared beginnings are padded to a multiple of four times this, the rest of this
Row = Sequence[int]


class AnswerReader:
    """Computes the probability of the first of two answer tokens after each row of tokens.

    Rows that share a beginning (a prompt whose answers are compared in many pairs and orders) can
    be passed as a group, whose beginning is read once.

    Args:
      model: the model's functions.
      params: parameters of the base, on the mesh.
      adapter: adapter of the judge; None for the base itself.
      answers: the two answer tokens.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      batch: global rows per batch; divisible by the devices along the batch.

    Raises:
      UserError: if the batch cannot be split, or both answers are the same token.
    """

    def __init__(
        self,
        model: Llama,
        params: Any,
        adapter: Adapter | None,
        answers: tuple[int, int],
        *,
        mesh: Mesh,
        batch: int = 16,
    ):
        parts = batch_divisor(mesh)
        if batch < 1 or batch % parts:
            raise UserError(
                f"batch={batch} must be divisible by the {parts} devices along the batch"
            )
        if answers[0] == answers[1]:
            raise UserError(f"both answers are token {answers[0]}: they cannot be told apart")
        self._model, self._params, self._adapter = model, params, adapter
        self._mesh, self._batch, self._parts = mesh, batch, parts
        columns = np.array(answers)
        layers = model.config.num_layers

        def choose(params: Any, hidden: jax.Array, last: jax.Array) -> jax.Array:
            states = hidden[jnp.arange(len(hidden)), last]
            logits = model.project(params, states)[:, columns]
            return jax.nn.sigmoid(logits[:, 0] - logits[:, 1])

        def whole(params, adapter, batch):
            hidden = model.hidden(params, batch["ids"], segments=batch["segments"], adapter=adapter)
            return choose(params, hidden, batch["last"])

        # The key-value cache of a group's beginning, which all its rows then extend.
        def begin(params, adapter, ids, segments):
            lora = None if adapter is None else adapter.scaled()["layers"]
            x = model.embed(params, ids)
            contexts = [FullAttention(segments)] * layers
            _, caches = model.cached(params, x, positions_of(segments), contexts, lora=lora)
            # All rows are equal; there are several only because the batch is split over devices.
            return jax.tree.map(lambda cache: cache[:1], caches)

        def extend(params, adapter, caches, batch, start):
            lora = None if adapter is None else adapter.scaled()["layers"]
            ids, length = batch["ids"], batch["ids"].shape[1]
            slots = caches[0].v.shape[2]
            # Cache slots from `start` on are padding, which no token may attend to.
            before = jnp.broadcast_to(jnp.arange(slots) < start, (length, slots))
            causal = jnp.tril(jnp.ones((length, length), bool))
            mask = jnp.concatenate([before, causal], axis=1)[None]
            mask = jnp.broadcast_to(mask, (len(ids), *mask.shape[1:]))
            positions = jnp.broadcast_to(start + jnp.arange(length), ids.shape)
            contexts = [PrefixAttention(cache, mask) for cache in caches]
            x = model.embed(params, ids)
            hidden, _ = model.cached(params, x, positions, contexts, lora=lora)
            return choose(params, hidden, batch["last"])

        self._whole, self._begin, self._extend = jax.jit(whole), jax.jit(begin), jax.jit(extend)

    def __call__(self, rows: Sequence[Row], *, groups: Sequence[Sequence[int]] = ()) -> np.ndarray:
        """Computes the probability of the first answer after each row.

        Args:
          rows: token ids, none empty.
          groups: indices of rows with a common beginning; other rows are read whole.

        Returns:
          `[rows]` float64.

        Raises:
          UserError: if a row is empty or longer than the model allows.
        """
        max_positions = self._model.config.max_positions
        for number, row in enumerate(rows):
            if not 0 < len(row) <= max_positions:
                raise UserError(
                    f"row {number} has {len(row)} tokens; the model takes 1 to {max_positions}"
                )
        probabilities = np.full(len(rows), np.nan)
        alone = np.ones(len(rows), bool)
        for members in groups:
            # A pass of its own for the beginning does not pay for the two orders of one pair.
            shared = _shared([rows[i] for i in members]) if len(members) > 2 else 0
            if shared >= _WORTH:
                self._read_group(rows, members, shared, probabilities)
                alone[list(members)] = False
        self._read_whole(rows, np.flatnonzero(alone), probabilities)
        return probabilities

    def _read_whole(
        self, rows: Sequence[Row], numbers: np.ndarray, probabilities: np.ndarray
    ) -> None:
        """Fills in the probabilities of rows that are read from their first token."""
        # Rows of similar length go together, so that batches are padded little.
        order = sorted(numbers.tolist(), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self._batch):
            members = order[start : start + self._batch]
            width = min(bucket(len(rows[members[-1]])), self._model.config.max_positions)
            batch = self._put([rows[i] for i in members], width)
            chosen = self._whole(self._params, self._adapter, batch)
            probabilities[members] = gather(chosen)[: len(members)]

    def _read_group(
        self, rows: Sequence[Row], members: Sequence[int], shared: int, probabilities: np.ndarray
    ) -> None:
        """Fills in the probabilities of rows whose first `shared` tokens are read once."""
        width = min(_up(shared, 4 * _WIDTH), self._model.config.max_positions)
        ids, segments = (np.zeros((self._parts, width), np.int32) for _ in range(2))
        ids[:, :shared], segments[:, :shared] = rows[members[0]][:shared], 1
        beginning = put_replicated({"ids": ids, "segments": segments}, self._mesh)
        caches = self._begin(self._params, self._adapter, beginning["ids"], beginning["segments"])
        order = sorted(members, key=lambda i: len(rows[i]))
        start = put_replicated(np.int32(shared), self._mesh)
        for first in range(0, len(order), self._batch):
            chunk = order[first : first + self._batch]
            ends = [rows[i][shared:] for i in chunk]
            batch = self._put(ends, _up(len(ends[-1]), _WIDTH))
            chosen = self._extend(self._params, self._adapter, caches, batch, start)
            probabilities[chunk] = gather(chosen)[: len(chunk)]

    def _put(self, rows: Sequence[Row], width: int) -> dict[str, jax.Array]:
        """Puts this process's rows of a global batch on its devices; the last row fills it up."""
        processes, process = jax.process_count(), jax.process_index()
        local = self._batch // processes
        ids, segments = (np.zeros((local, width), np.int32) for _ in range(2))
        last = np.zeros(local, np.int32)
        for place in range(local):
            row = rows[min(process * local + place, len(rows) - 1)]
            ids[place, : len(row)], segments[place, : len(row)] = row, 1
            last[place] = len(row) - 1
        return put_batch({"ids": ids, "segments": segments, "last": last}, self._mesh)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _shared(rows: Sequence[Row]) -> int:
    """Length of the common beginning of all rows, which leaves at least one token of each."""
    first = rows[0]
    shared = min(min(common(first, row) for row in rows[1:]), *(len(row) - 1 for row in rows))
    return shared
