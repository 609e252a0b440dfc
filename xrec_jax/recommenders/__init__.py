"""Level 2: recommenders behind one functional interface, `base.Recommender`, with a registry."""

from xrec_jax.recommenders import counting, lightgcn, mf, next_place, sasrec  # noqa: F401 (register)
from xrec_jax.recommenders.base import (
    Frozen,
    Recommender,
    Tables,
    create,
    get,
    hyperparameters,
    names,
    register,
)

__all__ = [
    "Frozen",
    "Recommender",
    "Tables",
    "create",
    "get",
    "hyperparameters",
    "names",
    "register",
]
