"""Utility of a place for a user, as a sum of named contributions.

Sampling, reasons and the oracle all take the utility from here, so they cannot disagree.
"""

from __future__ import annotations

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.people import TASTE_SIZE, TASTE_SLICES, People, Tastes
from xrec_jax.data.world.places import Places
from xrec_jax.data.world.streams import Purpose

ATTRIBUTES = (
    "kind",
    "cuisine",
    "mood",
    "price",
    "distance",
    "popularity",
    "sequence",
    "idiosyncratic",
)
# Entries of one float64 work array; a few of them are alive at a time.
BLOCK_ENTRIES = 1 << 20


class Utility:
    """Contributions of each attribute, centred on the mean over the catalogue.

    The mean is taken for the same user in the same state, so a contribution is the advantage of a
    place over the average one in that respect, and each attribute sums to zero over the catalogue.
    Shapes broadcast: `users` and `items` of `[n]` give pairs, `[n, 1]` and `[items]` the whole
    catalogue.

    Attributes:
      config: parameters of the world.
      places: the catalogue.
      people: the users.
      tastes: states of their tastes.
      taste_scale: `[states]` float64, beta_T sqrt(r) / s, s the standard deviation of the described
        taste over the catalogue in that state.
    """

    def __init__(self, config: WorldConfig, places: Places, people: People, tastes: Tastes):
        self.config, self.places, self.people, self.tastes = config, places, people, tastes
        self._columns = {
            name: TASTE_SLICES[name].start + getattr(places, name) for name in TASTE_SLICES
        }
        one_hot = np.zeros((len(places), TASTE_SIZE))
        for columns in self._columns.values():
            one_hot[np.arange(len(places)), columns] = 1.0
        share = one_hot.mean(axis=0)
        # Var_i[T] = theta' C theta, C the covariance of the one-hot attributes: no [users, items].
        covariance = (one_hot - share).T @ (one_hot - share) / len(places)
        variance = np.einsum("sv,vw,sw->s", tastes.theta, covariance, tastes.theta, optimize=True)
        # If the likes and dislikes of a state occur nowhere in the catalogue, it has no taste term.
        flat = variance < 1e-9
        self.taste_scale = np.where(
            flat,
            0.0,
            config.taste_strength
            * np.sqrt(config.taste_recoverability)
            / np.sqrt(np.where(flat, 1.0, variance)),
        )
        self._taste_mean = {
            name: tastes.theta[:, taste_slice] @ share[taste_slice]
            for name, taste_slice in TASTE_SLICES.items()
        }
        # Catalogue means of |price - ideal|, from the four price levels, and of the distance.
        prices, ideal = np.array(words.PRICES), people.ideal_price
        price_share = np.bincount(places.price, minlength=5)[1:] / len(places)
        self._price_mean = np.abs(prices - ideal[:, None]) @ price_share
        self._distance_mean = self._mean_distance()
        # Centred over the catalogue for each last kind.
        sequence = words.sequence_matrix()
        self._sequence = sequence - (sequence @ share[TASTE_SLICES["kind"]])[:, None]

    def _mean_distance(self) -> np.ndarray:
        means = np.empty(len(self.people))
        for users in blocks(len(self.people), len(self.places)):
            means[users] = self.distance_km(users[:, None], np.arange(len(self.places))).mean(
                axis=1
            )
        return means

    def distance_km(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Distance from home to place in km; the two row arrays broadcast."""
        home, place = self.people.home, self.places.position
        east = home[users, 0] - place[items, 0]
        north = home[users, 1] - place[items, 1]
        return np.sqrt(east * east + north * north)

    def affinity(self, name: str, states: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Taste for the kind, cuisine or mood of a place: above 0 liked, below 0 disliked."""
        return self.tastes.theta[states, self._columns[name][items]]

    def taste(self, name: str, states: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Contribution of kind, cuisine or mood in a state of the tastes."""
        gap = self.affinity(name, states, items) - self._taste_mean[name][states]
        return self.taste_scale[states] * gap

    def price(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Contribution of the price."""
        gap = np.abs(self.places.price[items] - self.people.ideal_price[users])
        return self.config.price_strength * (self._price_mean[users] - gap)

    def distance(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Contribution of the distance from home."""
        slope = self.config.distance_strength * self.people.sensitivity[users]
        return slope * (self._distance_mean[users] - self.distance_km(users, items))

    def popularity(self, items: np.ndarray) -> np.ndarray:
        """Contribution of the popularity, common to all users."""
        centred = self.places.popularity - self.places.popularity.mean()
        return self.config.popularity_strength * centred[items]

    def sequence(self, last_kind: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Contribution of the kind visited last; -1 stands for no visit yet."""
        return self.config.sequence_strength * self._sequence[last_kind, self.places.kind[items]]

    def kind_bonus(self) -> np.ndarray:
        """`[kinds + 1, kinds]`: `sequence` by last kind (row -1: no visit yet) and kind."""
        return self.config.sequence_strength * self._sequence

    def idiosyncratic(self, users: np.ndarray) -> np.ndarray:
        """Idiosyncratic contribution, for the whole catalogue.

        Args:
          users: `[n]` rows.

        Returns:
          `[n, items]` float64, mean 0 and standard deviation beta_T sqrt(1 - r) in each row.
        """
        config = self.config
        scale = config.taste_strength * np.sqrt(1.0 - config.taste_recoverability)
        count = len(self.places)
        if scale == 0.0:
            return np.zeros((len(users), count))
        width = count + count % 2
        uniforms = np.empty((len(users), width))
        for row, user in enumerate(users):
            uniforms[row] = streams.uniform(
                config.seed, Purpose.IDIOSYNCRATIC, width, row=int(user)
            )
        values = streams.to_normal(uniforms)[:, :count]
        # Exactly centred and scaled, so that r is the recoverable share of the variance for every
        # user.
        values -= values.mean(axis=1, keepdims=True)
        return values * (scale / values.std(axis=1, keepdims=True))

    def fixed(self, users: np.ndarray) -> np.ndarray:
        """`[n, items]`: the terms that never change for a user: all but taste and sequence."""
        column, items = users[:, None], np.arange(len(self.places))
        total = self.price(column, items) + self.distance(column, items)
        return total + self.popularity(items) + self.idiosyncratic(users)

    def described_taste(self, states: np.ndarray) -> np.ndarray:
        """`[n, items]`: kind, cuisine and mood together, for `[n]` states."""
        column, items = states[:, None], np.arange(len(self.places))
        return sum((self.taste(name, column, items) for name in TASTE_SLICES), start=np.zeros(1))

    def term(
        self, name: str, users: np.ndarray, states: np.ndarray, last_kind: np.ndarray
    ) -> np.ndarray:
        """Contribution of one attribute for every place, `[n, items]`; see `catalogue`."""
        column, items = users[:, None], np.arange(len(self.places))
        if name in TASTE_SLICES:
            return self.taste(name, states[:, None], items)
        if name == "price":
            return self.price(column, items)
        if name == "distance":
            return self.distance(column, items)
        if name == "popularity":
            return np.broadcast_to(self.popularity(items), (len(users), len(items)))
        if name == "sequence":
            return self.sequence(last_kind[:, None], items)
        if name == "idiosyncratic":
            return self.idiosyncratic(users)
        raise ValueError(f"unknown attribute {name!r}")

    def catalogue(self, users: np.ndarray, states: np.ndarray, last_kind: np.ndarray) -> np.ndarray:
        """Utility of every place in the catalogue.

        Args:
          users: `[n]` rows.
          states: `[n]` rows of `tastes`.
          last_kind: `[n]` kind visited last, -1 for none.

        Returns:
          `[n, items]` float64.
        """
        sequence = self.sequence(last_kind[:, None], np.arange(len(self.places)))
        return self.described_taste(states) + self.fixed(users) + sequence

    def pairs(
        self, users: np.ndarray, items: np.ndarray, states: np.ndarray, last_kind: np.ndarray
    ) -> np.ndarray:
        """Contributions for pairs of a user and a place.

        Args:
          users: `[n]` rows.
          items: `[n]` rows.
          states: `[n]` rows of `tastes`.
          last_kind: `[n]` kind visited last, -1 for none.

        Returns:
          `[n, len(ATTRIBUTES)]` float64; a row sums to the utility.
        """
        columns = {name: self.taste(name, states, items) for name in TASTE_SLICES}
        columns["price"] = self.price(users, items)
        columns["distance"] = self.distance(users, items)
        columns["popularity"] = self.popularity(items)
        columns["sequence"] = self.sequence(last_kind, items)
        columns["idiosyncratic"] = self._idiosyncratic_pairs(users, items)
        return np.stack([columns[name] for name in ATTRIBUTES], axis=-1)

    def _idiosyncratic_pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        values = np.zeros(len(users))
        if self.config.taste_recoverability == 1.0 or not len(users):
            return values
        # A user's idiosyncratic row is drawn for the whole catalogue, so pairs are grouped by user
        # and each row is drawn once.
        order = np.argsort(users, kind="stable")
        unique, begin = np.unique(users[order], return_index=True)
        ends = np.append(begin[1:], len(users))
        for rows in blocks(len(unique), len(self.places)):
            table = self.idiosyncratic(unique[rows])
            pairs = order[begin[rows[0]] : ends[rows[-1]]]
            values[pairs] = table[np.searchsorted(unique[rows], users[pairs]), items[pairs]]
        return values


def blocks(rows: int, width: int) -> list[np.ndarray]:
    """Splits `range(rows)` so that `[block, width]` arrays stay within `BLOCK_ENTRIES`."""
    size = max(1, BLOCK_ENTRIES // max(width, 1))
    return [np.arange(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
