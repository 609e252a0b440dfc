"""Loss of a language model on held-out text."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.trees import host_value
from xrec_jax.data.packing import PackedRows
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.parallel.mesh import put_batch
from xrec_jax.training.instruct import summed_loss


class HeldOutLoss:
    """Mean `-log p` over the trained tokens of a held-out set.

    Args:
      model: the model's functions.
      rows: the held-out set.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      batch_size: global rows per batch; divisible by the number of processes.
    """

    def __init__(self, model: Llama, rows: PackedRows, *, mesh: Mesh, batch_size: int):
        self._rows, self._mesh, self._batch = rows, mesh, batch_size
        options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

        def score(trained, base, batch, lora):
            loss = summed_loss(trained, base, batch, None, model=model, lora=lora)
            return loss, jnp.sum(batch["weights"])

        self._score = jax.jit(score, static_argnums=3, compiler_options=options)

    def __call__(self, trained: Any, base: Any, lora: LoraConfig | None) -> float:
        """Computes the loss in nats per token.

        Args:
          trained: parameters of the adapter, or of the whole model if `lora` is None.
          base: frozen parameters under an adapter.
          lora: the adapter's configuration.
        """
        local = self._batch // jax.process_count()
        first = jax.process_index() * local
        total = tokens = 0.0
        for start in range(0, self._rows.num_rows, self._batch):
            # The last batch repeats a row to keep its shape; the repeats have weight 0.
            numbers = np.arange(start + first, start + first + local)
            batch = self._rows.rows(0, np.minimum(numbers, self._rows.num_rows - 1))
            batch["weights"] *= (numbers < self._rows.num_rows)[:, None]
            loss, count = self._score(trained, base, put_batch(batch, self._mesh), lora)
            total += float(host_value(loss))
            tokens += float(host_value(count))
        return total / tokens


def perplexity(loss: float) -> float:
    """`exp(loss)`; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
