"""Users: profiles, homes and hidden tastes that drift along their visits."""

from __future__ import annotations

import dataclasses

import numpy as np

from xrec_jax.data.world import streams
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.streams import Purpose

# Columns of a taste vector, by attribute.
TASTE_SLICES = {
    "kind": slice(0, len(words.KINDS)),
    "cuisine": slice(len(words.KINDS), len(words.KINDS) + len(words.CUISINES)),
    "mood": slice(
        len(words.KINDS) + len(words.CUISINES),
        len(words.KINDS) + len(words.CUISINES) + len(words.MOODS),
    ),
}
TASTE_SIZE = TASTE_SLICES["mood"].stop
TASTE_WORDS = {"kind": words.KINDS, "cuisine": words.CUISINES, "mood": words.MOODS}
LIKES = (1.0, 0.7)
DISLIKE = -1.0
# Spread of the number of visits beyond the minimum (log scale): a long tail, as in real logs.
_VISITS_SIGMA = 0.8


@dataclasses.dataclass(frozen=True)
class People:
    """Users as indices into the vocabulary.

    Attributes:
      age: `[users]` int64 into `AGE_BANDS`.
      gender: `[users]` int64 into `GENDERS`.
      occupation: `[users]` int64 into `OCCUPATIONS`.
      home_district: `[users]` int64 into `DISTRICTS`.
      home: `[users, 2]` km, hidden; only the district shows.
      ideal_price: `[users]` float64 from 1 to 4, hidden.
      sensitivity: `[users]` float64 from 0.5 to 1.5, of distance, hidden.
      num_visits: `[users]` int64.
    """

    age: np.ndarray
    gender: np.ndarray
    occupation: np.ndarray
    home_district: np.ndarray
    home: np.ndarray
    ideal_price: np.ndarray
    sensitivity: np.ndarray
    num_visits: np.ndarray

    def __len__(self) -> int:
        return len(self.age)


@dataclasses.dataclass(frozen=True)
class Tastes:
    """Hidden tastes, one row a state; consecutive states of a user are separated by a drift.

    Attributes:
      user: `[states]` int64, user of each state.
      first: `[users + 1]` int64; states of user u are rows `first[u]` to `first[u + 1] - 1`.
      theta: `[states, TASTE_SIZE]` float64, affinities: 1 and 0.7 for likes, -1 for the dislike of
        each attribute (`TASTE_SLICES`), else 0.
    """

    user: np.ndarray
    first: np.ndarray
    theta: np.ndarray


def draw_people(config: WorldConfig) -> People:
    """Draws profiles, homes and budgets; the first users of a larger world are the same."""
    uniforms = streams.uniform(config.seed, Purpose.PEOPLE, (config.num_users, 12))
    normal = streams.to_normal(uniforms[:, 6:])
    age = streams.to_category(uniforms[:, 0], words.AGE_WEIGHTS)
    occupation = streams.to_category(uniforms[:, 2], words.OCCUPATION_WEIGHTS[age])
    home_district = streams.to_category(uniforms[:, 3], words.HOME_DISTRICT_WEIGHTS)
    known, unknown = np.sqrt([config.profile_correlation, 1 - config.profile_correlation])
    wealth = known * words.OCCUPATION_INCOME[occupation] + unknown * normal[:, 0]
    # A log-normal of mean 1, so that `mean_visits` is met before the cap.
    extra = np.exp(_VISITS_SIGMA * normal[:, 3] - _VISITS_SIGMA**2 / 2)
    visits = config.min_visits + (config.mean_visits - config.min_visits) * extra
    return People(
        age=age,
        gender=streams.to_category(uniforms[:, 1], words.GENDER_WEIGHTS),
        occupation=occupation,
        home_district=home_district,
        home=words.DISTRICT_CENTRES[home_district] + words.DISTRICT_SPREAD_KM * normal[:, 1:3],
        ideal_price=np.clip(2.4 + 0.8 * wealth, 1.0, 4.0),
        sensitivity=0.5 + uniforms[:, 4],
        num_visits=np.minimum(np.rint(visits).astype(np.int64), config.max_visits),
    )


def profile_scores(config: WorldConfig, people: People) -> np.ndarray:
    """Component of the taste scores determined by the profile, of unit variance over worlds.

    Returns:
      `[users, TASTE_SIZE]` float64: (age row + gender row + occupation row) / sqrt(3).
    """
    sizes = (len(words.AGE_BANDS), len(words.GENDERS), len(words.OCCUPATIONS))
    width = TASTE_SIZE + TASTE_SIZE % 2
    uniforms = streams.uniform(config.seed, Purpose.PROFILE_TASTES, (sum(sizes), width))
    age, gender, occupation = np.split(
        streams.to_normal(uniforms)[:, :TASTE_SIZE], np.cumsum(sizes)[:-1]
    )
    return (age[people.age] + gender[people.gender] + occupation[people.occupation]) / np.sqrt(3.0)


def draw_tastes(config: WorldConfig, people: People, changed: np.ndarray) -> Tastes:
    """Draws the tastes of every state.

    Args:
      config: `profile_correlation` is used.
      people: the users.
      changed: `[users]` int64, number of drifts of each user.
    """
    first = np.concatenate([[0], np.cumsum(changed + 1)])
    user = np.repeat(np.arange(len(people)), changed + 1)
    own = np.empty((len(user), TASTE_SIZE))
    slices = list(TASTE_SLICES.values())
    for row, owner in enumerate(user):
        state = row - first[owner]
        # The first number chooses the drifting attribute; those from the third on are the scores.
        uniforms = streams.uniform(
            config.seed,
            Purpose.TASTES,
            2 + TASTE_SIZE + TASTE_SIZE % 2,
            row=int(owner),
            sub=int(state),
        )
        scores = streams.to_normal(uniforms[2:])[:TASTE_SIZE]
        if state == 0:
            own[row] = scores
        else:
            drifting = slices[int(uniforms[0] * len(slices))]
            own[row] = own[row - 1]
            own[row, drifting] = scores[drifting]
    known, unknown = np.sqrt([config.profile_correlation, 1 - config.profile_correlation])
    scores = known * profile_scores(config, people)[user] + unknown * own
    return Tastes(user=user, first=first, theta=_likes_and_dislike(scores))


def _likes_and_dislike(scores: np.ndarray) -> np.ndarray:
    """Affinities: the highest scores of each attribute are liked, the lowest is disliked."""
    theta = np.zeros_like(scores)
    rows = np.arange(len(scores))
    for name, columns in TASTE_SLICES.items():
        # Nobody has a taste for "none".
        begin = columns.start + (name == "cuisine")
        order = begin + np.argsort(scores[:, begin : columns.stop], axis=1, kind="stable")
        for place, affinity in enumerate(LIKES):
            theta[rows, order[:, -1 - place]] = affinity
        theta[rows, order[:, 0]] = DISLIKE
    return theta


def named_tastes(theta: np.ndarray) -> dict[str, dict[str, list[str]]]:
    """A taste vector `[TASTE_SIZE]` as words: likes and dislikes by attribute, strongest first."""
    words_by_side: dict[str, dict[str, list[str]]] = {"likes": {}, "dislikes": {}}
    for name, columns in TASTE_SLICES.items():
        own = theta[columns]
        order = np.argsort(-np.abs(own), kind="stable")
        for sign, side in ((1, "likes"), (-1, "dislikes")):
            words_by_side[side][name] = [TASTE_WORDS[name][i] for i in order if sign * own[i] > 0]
    return words_by_side
