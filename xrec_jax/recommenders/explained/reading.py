"""What a fused recommender reads: encodings of texts, standardised for its two ways to use them.

Dimension letters: p part, e encoding, k feature of the match; `...` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError

# Names of the frozen arrays that `read` takes.
CONSTANTS = ("mean", "std", "basis", "temperature", "projection", "query_scale")
SIDES = {"both": (True, True), "why": (True, False), "why_not": (False, True)}


class Reading(NamedTuple):
    """What is read of some rows.

    Attributes:
      encoding: `[..., p, components or e]` standardised, zero for parts that are not read.
      present: `[..., p]` bool, parts that are read.
      query: `[..., p, k]` for the match, zero likewise; None without a match.
    """

    encoding: jax.Array
    present: jax.Array
    query: jax.Array | None

    @classmethod
    def nothing(cls, lead: tuple[int, ...], inputs: int, match: int) -> Reading:
        """Rows of shape `[*lead]`, the parts included, of which nothing is read."""
        query = jnp.zeros((*lead, match)) if match else None
        return cls(jnp.zeros((*lead, inputs)), jnp.zeros(lead, bool), query)


def identity_constants(
    parts: int, encoding: int, components: int, match: int
) -> dict[str, np.ndarray]:
    """Constants that leave encodings, or their first features, as they are; see `Fused`."""
    constants = {"mean": np.zeros((parts, encoding), np.float32)}
    if components:
        basis = np.eye(encoding, components, dtype=np.float32)
        constants["basis"] = np.broadcast_to(basis, (parts, *basis.shape)).copy()
    else:
        constants["std"] = np.ones((parts, encoding), np.float32)
    if match:
        constants["projection"] = np.eye(encoding, match, dtype=np.float32)
        constants["query_scale"] = np.ones((parts, 1), np.float32)
    return constants


def read(
    encoding: jax.Array,
    present: jax.Array,
    constants: Mapping[str, Any],
    *,
    shape: tuple[int, int],
    sides: str,
    components: int,
    match: int,
) -> Reading:
    """Standardises encodings.

    Args:
      encoding: `[..., p, e]`.
      present: `[..., p]` bool, parts that are there.
      constants: frozen arrays by name.
      shape: p and e.
      sides: which parts are read, a key of `SIDES`.
      components: principal components, by `constants["basis"]`; 0 for all features.
      match: k, by `constants["projection"]`; 0 for no query.

    Raises:
      UserError: for encodings of another shape, or a constant that is missing.
    """
    if encoding.shape[-2:] != shape:
        raise UserError(
            f"fused: encodings have shape {list(encoding.shape)}, but their last two sizes "
            f"must be {shape[0]} and {shape[1]}"
        )
    present = present.astype(bool) & np.array(SIDES[sides][: shape[0]])
    mask = present[..., None]
    encoding = jnp.where(mask, encoding.astype(jnp.float32), 0.0)
    if "mean" in constants:
        encoding = encoding - constants["mean"]

    # In the space of the items' texts, apart from the directions in which the texts differ.
    query = None
    if match:
        if "projection" not in constants:
            raise UserError("fused: a match needs `projection` among the frozen arrays")
        projection = constants["projection"]
        query = jnp.einsum("...pe,ek->...pk", encoding, projection, precision="highest")
        query = jnp.where(mask, query * constants["query_scale"], 0.0)

    if components:
        basis = constants.get("basis")
        if basis is None:
            raise UserError("fused: components need `basis` among the frozen arrays")
        encoding = jnp.einsum("...pe,pek->...pk", encoding, basis, precision="highest")
    elif "std" in constants:
        encoding = encoding / constants["std"]
    return Reading(jnp.where(mask, encoding, 0.0), present, query)
