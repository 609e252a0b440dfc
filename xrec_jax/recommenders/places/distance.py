"""Baseline of places: the nearest to the last one."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from xrec_jax.core.errors import UserError
from xrec_jax.recommenders.base import register
from xrec_jax.recommenders.counting.baselines import Counted
from xrec_jax.recommenders.places import geography


@register("distance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance(Counted):
    """The places nearest to the last one, itself included; then, by popularity, unknown places.

    Where the last place is not known, popularity decides alone.

    Attributes:
      length: number of latest history items; the last one decides.
      latitude: column of the item table with degrees.
      longitude: the other one.
    """

    length: int = 1
    latitude: str = "latitude"
    longitude: str = "longitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Both may be empty, as in a smoke test on a world: then it is popularity.
        if bool(self.latitude) != bool(self.longitude):
            raise UserError("distance: latitude and longitude must both be given, or neither")

    def describe_items(self, columns):
        names = {"latitude": self.latitude, "longitude": self.longitude}
        geography.check_columns("distance", names, columns)
        return geography.located("distance", columns, self.latitude, self.longitude, self.num_items)

    def counted(self, history, real, frozen):
        last = jnp.take_along_axis(history, jnp.maximum(real.sum(1) - 1, 0)[:, None], axis=1)[:, 0]
        ways = geography.kilometres(frozen["place"][last][:, None], frozen["place"])
        known = frozen["located"][last][:, None] * frozen["located"] * real[:, :1]
        # At most 1, as no way of `kilometres` is longer. The share of events, below 1, is added to
        # what is returned: taking it off leaves the plain distance; -3 is behind all others.
        return jnp.where(known > 0, -ways / 30_000.0 - frozen["share"], -3.0)
