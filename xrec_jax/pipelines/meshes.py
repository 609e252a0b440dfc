"""The mesh of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import say
from xrec_jax.parallel.distributed import is_first
from xrec_jax.parallel.mesh import make_mesh, use_mesh


def saved_mesh(config: Any) -> Mesh:
    """The mesh of a finished run, or all devices here where they are not those of the run."""
    try:
        return make_mesh(**dict(config.mesh))
    except UserError as error:
        if is_first():
            say(f"{error}; using all devices along the batch instead")
        return make_mesh()


@contextlib.contextmanager
def open_mesh(config: Any) -> Iterator[Mesh]:
    """The mesh of a config, current inside the block."""
    with use_mesh(make_mesh(**dict(config.mesh))) as mesh:
        yield mesh
