"""Parameters of the planted world, validated on construction."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean


def _parameter(default: int | float, low: int | float, high: int | float) -> Any:
    """A dataclass field with the closed range its value must lie in."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Parameters of a world; `xrec_jax.data.world` gives the equations of the symbols.

    Strengths are in units of utility, the Gumbel noise of a choice has scale `noise` in the same
    units, so a strength twice the noise is a strong effect.

    Attributes:
      seed: seed of all random streams.
      num_users: users; user k is the same person in a larger world.
      num_items: places; place k is the same place in a larger world.
      mean_visits: mean number of visits of a user before the cap at half the catalogue. This sets
        how sparse the world is.
      min_visits: least number of visits of a user.
      noise: tau, the temperature of the choice.
      taste_strength: beta_T, standard deviation over the catalogue of a user's taste term.
      taste_recoverability: r, share of the variance of the taste term that described attributes
        carry; the rest is noise for each user and place that nothing else in the world predicts.
      profile_correlation: rho, share of the variance of the scores behind tastes and ideal price
        that the profile determines. At 0 the profile is uninformative, at 1 it determines both.
      price_strength: beta_P, utility lost for each step between a price and the user's ideal.
      distance_strength: beta_D, utility lost for each km from home, for a user of mean sensitivity.
      popularity_strength: beta_Q, standard deviation of the term that all users share.
      sequence_strength: beta_S, utility gained by a kind that usually follows the last kind visited
        and lost by that last kind itself.
      drift: probability, at each visit after the first, that the tastes for one attribute (kind,
        cuisine or mood) are drawn anew.
      time_resolution: seconds that timestamps are rounded down to. Visits lie at least an hour
        apart, so times are strictly increasing up to 3600 and may tie above.
      reason_threshold: least size of a contribution that counts as a reason.
      about_share: probability that a user's description of themselves states a taste, for each one.
      review_share: probability that a visit is followed by a review in the user's own words; the
        tastes stated in it are true and cannot be inferred without reading it.
      review_asides: probability that a review adds a remark on another taste, half of the time a
        dislike, and so on places hardly ever visited.
    """

    seed: int = _parameter(0, 0, 2**63 - 1)
    num_users: int = _parameter(1000, 1, 10_000_000)
    num_items: int = _parameter(600, 4, 1_000_000)
    mean_visits: float = _parameter(40.0, 1, 100_000)
    min_visits: int = _parameter(5, 1, 100_000)
    noise: float = _parameter(1.0, 0.05, 100)
    taste_strength: float = _parameter(3.0, 0, 10)
    taste_recoverability: float = _parameter(0.9, 0, 1)
    profile_correlation: float = _parameter(0.5, 0, 1)
    price_strength: float = _parameter(0.8, 0, 10)
    distance_strength: float = _parameter(0.4, 0, 10)
    popularity_strength: float = _parameter(1.2, 0, 10)
    sequence_strength: float = _parameter(1.5, 0, 10)
    drift: float = _parameter(0.015, 0, 1)
    time_resolution: int = _parameter(1, 1, 366 * 86_400)
    reason_threshold: float = _parameter(0.5, 0, 100)
    about_share: float = _parameter(0.0, 0, 1)
    review_share: float = _parameter(0.0, 0, 1)
    review_asides: float = _parameter(0.5, 0, 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            integral = isinstance(field.default, int)
            kind: Any = numbers.Integral if integral else numbers.Real
            low, high = field.metadata["low"], field.metadata["high"]
            if isinstance(value, bool) or not isinstance(value, kind):
                raise UserError(
                    f"world.{field.name} must be {'an integer' if integral else 'a number'} "
                    f"from {low} to {high}, got {value!r}"
                )
            if not low <= value <= high:  # not a number fails too
                raise UserError(f"world.{field.name} must lie from {low} to {high}, got {value!r}")
            # Plain Python numbers: a NumPy scalar in a config would not survive JSON.
            object.__setattr__(self, field.name, int(value) if integral else float(value))
        most = self.num_items / 2
        if not self.min_visits <= self.mean_visits <= most:
            raise UserError(
                f"world.mean_visits must lie from world.min_visits ({self.min_visits}) to half of "
                f"world.num_items ({most:g}), got {self.mean_visits:g}"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> WorldConfig:
        """Builds the parameters from a plain dict or a `ml_collections.ConfigDict`.

        Args:
          mapping: parameter values by name; missing ones keep their defaults.

        Raises:
          UserError: on an unknown name or a value out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for key in mapping:
            if key not in names:
                raise UserError(f"unknown key world.{key}{did_you_mean(key, names)}")
        return cls(**{key: mapping[key] for key in mapping})

    @property
    def max_visits(self) -> int:
        """Cap on a user's visits, so that a choice always has half the catalogue to choose from."""
        return self.num_items // 2
