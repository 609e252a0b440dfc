"""Level 2: recommenders behind one functional interface, `base.Recommender`, with a registry."""

from xrec_jax.recommenders import counting, lightgcn, mf, places, sasrec  # noqa: F401 (they register)
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
