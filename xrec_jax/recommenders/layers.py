"""Linen layers shared by several recommenders."""

from __future__ import annotations

import flax.linen as nn
import jax

from xrec_jax.parallel.lookup import take_rows
from xrec_jax.parallel.mesh import logical, padded_rows


class Table(nn.Module):
    """An embedding table, split by rows over all devices.

    Attributes:
      rows: number of rows in use; the table itself is padded (`padded_rows`).
      dim: features of a row.
      stddev: standard deviation of the normal initial values.
    """

    rows: int
    dim: int
    stddev: float

    def setup(self) -> None:
        init = logical(nn.initializers.normal(self.stddev), "table_rows", "features")
        self.embedding = self.param("embedding", init, (padded_rows(self.rows), self.dim))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks up rows: `[batch, ...]` int32 -> `[batch, ..., dim]`."""
        return take_rows(self.embedding, ids)

    def padded(self) -> jax.Array:
        """The padded table, `[padded_rows, dim]`."""
        return self.embedding
