"""The mesh of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from xrec_jax.parallel.mesh import make_mesh, use_mesh


@contextlib.contextmanager
def open_mesh(config: Any) -> Iterator[Mesh]:
    """The mesh of a config, current inside the block."""
    with use_mesh(make_mesh(**dict(config.mesh))) as mesh:
        yield mesh
