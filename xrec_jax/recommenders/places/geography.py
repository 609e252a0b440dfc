"""Where items are: columns of degrees, distances in kilometres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import padded_rows
from xrec_jax.recommenders.base import Frozen


def kilometres(first: jax.Array, second: jax.Array) -> jax.Array:
    """Distances of points `[..., 2]` of latitude and longitude in degrees, for short ways.

    On a plane that touches the Earth between them: right to a percent up to some hundred
    kilometres away from the poles.
    """
    middle = jnp.deg2rad((first[..., 0] + second[..., 0]) / 2)
    north = first[..., 0] - second[..., 0]
    # The shorter way around.
    east = jnp.mod(first[..., 1] - second[..., 1] + 180.0, 360.0) - 180.0
    return 111.2 * jnp.sqrt(north**2 + (east * jnp.cos(middle)) ** 2)


def check_columns(
    owner: str, names: Mapping[str, str], columns: Mapping[str, Sequence[Any]] | None
) -> None:
    """Raises a `UserError` if a column that a hyper-parameter names is not in the item table.

    Args:
      owner: name of the recommender.
      names: column by hyper-parameter, "" for none.
      columns: of the item table; None without a table.
    """
    for key, name in names.items():
        if name and name not in (columns or {}):
            raise UserError(
                f"{owner}: {key}={name!r}, but the item table has "
                f"{', '.join(columns) if columns else 'no column, as there is none'}"
            )


def located(
    owner: str,
    columns: Mapping[str, Sequence[Any]] | None,
    latitude: str,
    longitude: str,
    num_items: int,
) -> Frozen:
    """Arrays `place` `[padded_items, 2]`, in degrees, and `located`, 0 where it is not known.

    Args:
      owner: name of the recommender, for messages.
      columns: values of the item table by column; None without a table.
      latitude: a column; "" if no place is known.
      longitude: likewise.
      num_items: items in the catalogue.

    Raises:
      UserError: for a value that is no number of degrees; names the column and the row.
    """
    rows = padded_rows(num_items)
    arrays = {"place": np.zeros((rows, 2), np.float32), "located": np.zeros(rows, np.float32)}
    if columns and latitude:
        both = [
            _degrees(owner, name, columns[name], most)
            for name, most in ((latitude, 90.0), (longitude, 360.0))
        ]
        pairs = np.stack(both, axis=1)
        known = ~np.isnan(pairs).any(axis=1)
        arrays["place"][: len(pairs)] = np.where(known[:, None], pairs, 0.0)
        arrays["located"][: len(pairs)] = known
    return Frozen(arrays, {"place": (None, None), "located": (None,)})


def _degrees(owner: str, name: str, values: Sequence[Any], most: float) -> np.ndarray:
    """A column as float64 `[items]`, NaN where it has nothing."""
    out = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        try:
            out[row] = float(value)
        except (TypeError, ValueError):
            out[row] = np.inf
        if not abs(out[row]) <= most:
            raise UserError(
                f"{owner}: column {name!r} of the item table must hold degrees from {-most:g} to "
                f"{most:g}, but item {row + 1} has {value!r}; leave it empty where the place is "
                "not known"
            )
    return out
