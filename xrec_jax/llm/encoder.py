"""Text encoder: mean hidden states of a language model over the tokens of a text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.generation.prefixes import bucket
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import constrain, current_parts, gather

_FEWEST = 8  # rows of the smallest compiled batch


LAYERS = ("last", "embedding")


def mean_states(
    model: Llama, params: PyTree, ids: jax.Array, lengths: jax.Array, *, layer: str = "last"
) -> jax.Array:
    """Mean of hidden states over the tokens of every row.

    Args:
      model: the model's functions.
      params: parameters of the base, unboxed.
      ids: `[rows, width]` int32, padded on the right.
      lengths: `[rows]` int32, number of tokens of each row; an empty row gives zeros.
      layer: "last", the normalised states before the output layer; or "embedding", those before the
        first layer. The last states of a small model describe the next token more than their own.

    Returns:
      `[rows, hidden]` float32, split over "batch".
    """
    real = jnp.arange(ids.shape[1]) < lengths[:, None]
    if layer == "embedding":
        states = model.embed(params, ids).astype(jnp.float32)
    else:
        states = model.hidden(params, ids, segments=real.astype(jnp.int32)).astype(jnp.float32)
    total = jnp.sum(jnp.where(real[..., None], states, 0.0), axis=1)
    return constrain(total / jnp.maximum(lengths, 1)[:, None], "batch", None)


@functools.lru_cache(maxsize=8)
def _compiled(model: Llama, layer: str) -> Callable[..., jax.Array]:
    """Jitted `mean_states`, shared by all encoders of one model."""
    return jax.jit(functools.partial(mean_states, model, layer=layer))


class TextEncoder:
    """Encodes texts, as token ids, with the frozen base, without adapter or prompt.

    Texts are sorted by length and cut into batches of few shapes; the other texts of a batch affect
    an encoding by rounding only. Inside `parallel.mesh.use_mesh` the rows of a batch are
    split over the devices.

    Args:
      model: the model's functions.
      params: parameters of the base, unboxed.
      batch: most rows at a time; rounded up to a multiple of the batch shards.
      layer: one of `LAYERS`; see `mean_states`.

    Raises:
      UserError: if `batch` is not positive, or on an unknown layer.
    """

    def __init__(self, model: Llama, params: PyTree, *, batch: int = 64, layer: str = "last"):
        if layer not in LAYERS:
            raise UserError(f"layer={layer!r} is not valid{did_you_mean(layer, LAYERS)}")
        if batch < 1:
            raise UserError(f"batch={batch} must be at least 1")
        if model.attention not in ("xla", "blocked"):  # others may not support every width
            model = dataclasses.replace(model, attention="auto")
        self._model, self._params, self._batch = model, params, batch
        self._encode = _compiled(model, layer)

    @property
    def width(self) -> int:
        """Number of features of an encoding."""
        return self._model.config.hidden_size

    def __call__(self, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts.

        Args:
          texts: token ids of each text, without special tokens.

        Returns:
          `[texts, hidden]` float32, zeros for an empty text, and `[texts]` bool, false for an empty
          text.

        Raises:
          UserError: for a text that is too long for the model, or an id outside its vocabulary.
        """
        rows = [np.asarray(text, np.int32).reshape(-1) for text in texts]
        lengths = np.array([len(row) for row in rows], np.int32)
        self._check(rows, lengths)
        results = [(chosen, self._run(rows, chosen)) for chosen in self._batches(lengths)]
        encoding = np.zeros((len(rows), self.width), np.float32)
        for chosen, values in results:  # fetched only now, so that batches queue on the device
            encoding[chosen] = gather(values)[: len(chosen)]
        return encoding, lengths > 0

    def _check(self, rows: list[np.ndarray], lengths: np.ndarray) -> None:
        config = self._model.config
        for number in np.flatnonzero(lengths):
            if lengths[number] > config.max_positions:
                raise UserError(
                    f"text {number} has {lengths[number]} tokens, but the model takes "
                    f"{config.max_positions}; cut it"
                )
            if not 0 <= rows[number].min() <= rows[number].max() < config.vocab_size:
                raise UserError(f"text {number} must hold ids from 0 to {config.vocab_size - 1}")

    def _batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Groups the indices of non-empty texts into batches of equal width."""
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        widths = np.array([bucket(length) for length in lengths[order]])
        return [
            same[first : first + self._batch]
            for width in np.unique(widths)
            for same in [order[widths == width]]
            for first in range(0, len(same), self._batch)
        ]

    def _run(self, rows: list[np.ndarray], chosen: np.ndarray) -> jax.Array:
        """Encodes a batch on the device; padding rows follow those of the texts."""
        shards = current_parts("batch")
        # A power of two times the minimum: few shapes, so few compilations.
        count = min(self._batch, _FEWEST)
        while count < len(chosen):
            count = min(2 * count, self._batch)
        count = -(-count // shards) * shards
        ids = np.zeros((count, bucket(len(rows[chosen[-1]]))), np.int32)
        lengths = np.zeros(count, np.int32)
        for place, number in enumerate(chosen):
            ids[place, : len(rows[number])], lengths[place] = rows[number], len(rows[number])
        encoded: jax.Array = self._encode(self._params, ids, lengths)
        return encoded
