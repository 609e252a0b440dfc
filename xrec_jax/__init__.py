"""Explainable recommendation with language models, in JAX and Flax."""

from __future__ import annotations

import typing

from xrec_jax.core import moved
from xrec_jax.core.version import __version__

__all__ = ["__version__", "load_llm", "restore"]

if typing.TYPE_CHECKING:
    from xrec_jax.api import restore
    from xrec_jax.llm.language_model import load_llm


moved.install()


def __getattr__(name: str) -> object:
    """Imports the public functions on first use, so that `import xrec_jax` stays instant."""
    if name == "restore":
        from xrec_jax.api import restore

        return restore
    if name == "load_llm":
        from xrec_jax.llm.language_model import load_llm

        return load_llm
    raise AttributeError(f"module 'xrec_jax' has no attribute {name!r}")
