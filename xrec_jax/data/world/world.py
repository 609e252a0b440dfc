"""The generated world: its data set, and the ground truth behind it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import polars as pl

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Dataset, Interactions
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.people import People, Tastes, draw_people, draw_tastes, named_tastes
from xrec_jax.data.world.places import Places, draw_places
from xrec_jax.data.world.reasons import Reasons, build_reasons
from xrec_jax.data.world.reviews import Review, write_about, write_reviews
from xrec_jax.data.world.text import item_texts, user_texts
from xrec_jax.data.world.utility import Utility
from xrec_jax.data.world.visits import Timeline, draw_choices, draw_timeline


@dataclasses.dataclass(frozen=True)
class World:
    """A world with its ground truth.

    A user's state is given by `made`, the number of visits made before a choice: 0 is the choice of
    the first visit, the number of visits of the user the choice after the last.

    Attributes:
      config: its parameters.
      places: the catalogue.
      people: the users.
      tastes: hidden tastes.
      utility: contributions of each attribute.
      timeline: times of the visits, sorted by user, then time.
      choice: `[visits]` int64, place of each visit of `timeline`.
    """

    config: WorldConfig
    places: Places
    people: People
    tastes: Tastes
    utility: Utility
    timeline: Timeline
    choice: np.ndarray

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Observable data for models; events sorted by user, then time."""
        return Dataset(
            name="world",
            interactions=Interactions(
                user=self.timeline.user.astype(np.int32),
                item=self.choice.astype(np.int32),
                timestamp=self.timeline.timestamp,
            ),
            user_ids=np.array([f"u{row:05d}" for row in range(len(self.people))]),
            item_ids=np.array([f"p{row:05d}" for row in range(len(self.places))]),
            users=self._users_table(),
            items=self._items_table(),
            reviews={pair: review.text for pair, review in self.reviews.items()},
        )

    @functools.cached_property
    def about(self) -> list[Review]:
        """Users' descriptions of themselves, one a user; empty if `about_share` is 0."""
        if not self.config.about_share:
            return []
        return write_about(self.config, self.tastes.theta[self.tastes.first[:-1]])

    @functools.cached_property
    def reviews(self) -> dict[tuple[int, int], Review]:
        """Reviews by (user row, place row); empty if `review_share` is 0."""
        if not self.config.review_share:
            return {}
        users = self.timeline.user
        states, _ = self.state(users, np.arange(len(users)) - self.timeline.first[users])
        made = write_reviews(self.config, self.utility, users, self.choice, states)
        visits = zip(users.tolist(), self.choice.tolist(), made, strict=True)
        return {(user, item): review for user, item, review in visits if review is not None}

    def _users_table(self) -> pl.DataFrame:
        people = self.people
        own = {"about": [review.text for review in self.about]} if self.about else {}
        return pl.DataFrame(
            {
                "user_id": [f"u{row:05d}" for row in range(len(people))],
                "age_band": [words.AGE_BANDS[index] for index in people.age],
                "gender": [words.GENDERS[index] for index in people.gender],
                "occupation": [words.OCCUPATIONS[index] for index in people.occupation],
                "home_district": [words.DISTRICTS[index] for index in people.home_district],
                "user_text": user_texts(self.config, people),
                **own,
            }
        )

    def _items_table(self) -> pl.DataFrame:
        places = self.places
        return pl.DataFrame(
            {
                "item_id": [f"p{row:05d}" for row in range(len(places))],
                "name": places.name.tolist(),
                "kind": [words.KINDS[index] for index in places.kind],
                "cuisine": [words.CUISINES[index] for index in places.cuisine],
                "mood": [words.MOODS[index] for index in places.mood],
                "price": places.price,
                "district": [words.DISTRICTS[index] for index in places.district],
                "popularity": [words.POPULARITY_BANDS[index] for index in places.popularity_band],
                "item_text": item_texts(self.config, places),
            }
        )

    def visits_made(self, events: Interactions) -> np.ndarray:
        """Number of visits that the user of each event had made before it.

        Args:
          events: visits of this world, in any order.

        Returns:
          `[events]` int64.

        Raises:
          UserError: if an event is not a visit of this world.
        """
        keys, rows = self._visit_index
        wanted = events.user.astype(np.int64) * len(self.places) + events.item
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        wrong = np.flatnonzero(keys[place] != wanted)
        if len(wrong):
            user, item = int(events.user[wrong[0]]), int(events.item[wrong[0]])
            raise UserError(f"user row {user} never visits item row {item} in this world")
        visit = rows[place]
        return visit - self.timeline.first[self.timeline.user[visit]]

    @functools.cached_property
    def _visit_index(self) -> tuple[np.ndarray, np.ndarray]:
        # No user visits a place twice, so (user, place) names a visit.
        keys = self.timeline.user * len(self.places) + self.choice
        rows = np.argsort(keys, kind="stable")
        return keys[rows], rows

    def last_choice(self, users: np.ndarray) -> np.ndarray:
        """`[n]` visits made before the last one: the state of leave-one-out testing."""
        return self.people.num_visits[users] - 1

    def state(self, users: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State of the tastes, and the kind visited last.

        Args:
          users: `[n]` rows.
          made: `[n]` visits made before the choice, from 0 to the user's number of visits.

        Returns:
          `[n]` rows of `tastes`, and `[n]` indices into `KINDS` with -1 for no visit yet.
        """
        timeline, count = self.timeline, self.people.num_visits[users]
        if np.any((made < 0) | (made > count)):
            raise UserError("made must lie from 0 to the user's number of visits")
        first = timeline.first[users]
        # After the last visit the tastes stay as they were at it.
        states = self.tastes.first[users] + timeline.change[first + np.minimum(made, count - 1)]
        last = self.places.kind[self.choice[first + np.maximum(made, 1) - 1]]
        return states, np.where(made > 0, last, -1)

    def seen(self, users: np.ndarray, made: np.ndarray) -> np.ndarray:
        """`[n, items]` bool: the first `made` visits of each user."""
        mask = np.zeros((len(users), len(self.places)), bool)
        # One entry for each visit made: its user's row, and its number within the user.
        row = np.repeat(np.arange(len(users)), made)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(made) - made, made)
        mask[row, self.choice[self.timeline.first[users][row] + nth]] = True
        return mask

    def utilities(self, users: np.ndarray, made: np.ndarray | None = None) -> np.ndarray:
        """True utility of every place, `[n, items]` float64; mean 0 over the catalogue.

        Args:
          users: `[n]` rows; memory is of the order of n x items, so call it in blocks.
          made: `[n]` visits made before the choice; by default the choice of the last visit.
        """
        users = np.asarray(users)
        made = self.last_choice(users) if made is None else np.asarray(made)
        return self.utility.catalogue(users, *self.state(users, made))

    def contributions(
        self, users: np.ndarray, items: np.ndarray, made: np.ndarray | None = None
    ) -> np.ndarray:
        """Contribution of each of `ATTRIBUTES` for pairs, `[n, len(ATTRIBUTES)]`.

        Args:
          users: `[n]` rows.
          items: `[n]` rows, visited or not.
          made: as in `utilities`.
        """
        users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
        made = self.last_choice(users) if made is None else np.asarray(made)
        return self.utility.pairs(users, items, *self.state(users, made))

    def reasons(
        self, users: np.ndarray, items: np.ndarray, made: np.ndarray | None = None
    ) -> list[Reasons]:
        """True reasons for (user, place) pairs; the arguments are those of `contributions`.

        By default in the state in which the last visit was chosen, so that reasons for a place
        recommended from the history before it and reasons for the visit itself refer to one moment.
        """
        users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
        made = self.last_choice(users) if made is None else np.asarray(made)
        return build_reasons(self.utility, users, items, *self.state(users, made))

    def tastes_at(self, users: np.ndarray, made: np.ndarray) -> list[dict[str, dict[str, list]]]:
        """Likes and dislikes of users in given states, as words.

        Args:
          users: `[n]` rows.
          made: `[n]` visits made before, as in `state`.

        Returns:
          For each user `{"likes": {attribute: values}, "dislikes": {attribute: values}}` of kind,
          cuisine and mood, strongest first.
        """
        states, _ = self.state(np.asarray(users), np.asarray(made))
        return [named_tastes(theta) for theta in self.tastes.theta[states]]

    def reasons_for_visits(self, events: Interactions) -> list[Reasons]:
        """True reasons of visits, each in the state in which it was chosen."""
        return self.reasons(events.user, events.item, self.visits_made(events))


def generate(config: WorldConfig) -> World:
    """Generates the world that `config` describes; the same config gives the same world."""
    places = draw_places(config)
    people = draw_people(config)
    timeline = draw_timeline(config, people)
    tastes = draw_tastes(config, people, changed=timeline.change[timeline.first[1:] - 1])
    utility = Utility(config, places, people, tastes)
    return World(
        config=config,
        places=places,
        people=people,
        tastes=tastes,
        utility=utility,
        timeline=timeline,
        choice=draw_choices(config, utility, timeline),
    )
