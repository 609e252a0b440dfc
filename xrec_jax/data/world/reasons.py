"""True reasons of a choice: its strongest contributions, with phrases that cite them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.people import TASTE_SLICES
from xrec_jax.data.world.utility import ATTRIBUTES, Utility

MAX_FOR = 3
MAX_AGAINST = 2
# The idiosyncratic term, the last one, is not observable and never cited.
CITABLE = len(ATTRIBUTES) - 1
_PLURALS = {"gallery": "galleries", "bakery": "bakeries"}


class Reason(NamedTuple):
    """One attribute in favour of or against a place.

    Attributes:
      attribute: one of `ATTRIBUTES`, never "idiosyncratic".
      value: value of the place: "quiet", "Thai", the price "3", the distance "1.2 km", the
        popularity band; for "sequence" the kind visited last.
      contribution: contribution to the utility, relative to the catalogue mean.
      phrase: the reason in words, with its direction ("pricier than usual").
    """

    attribute: str
    value: str
    contribution: float
    phrase: str


@dataclasses.dataclass(frozen=True)
class Reasons:
    """Reasons for and against a place, for one user.

    Attributes:
      user: row of the user.
      item: row of the place.
      for_: at most three, strongest first.
      against: at most two, strongest first.
      utility: sum of all contributions.
      unexplained: the idiosyncratic term of `utility`, which no reason can name.
    """

    user: int
    item: int
    for_: tuple[Reason, ...]
    against: tuple[Reason, ...]
    utility: float
    unexplained: float

    def describe(self) -> str:
        """One line, such as "likes quiet places; likes Thai food; against: pricier than usual"."""
        phrases = [reason.phrase for reason in self.for_] or ["no particular reason"]
        if self.against:
            phrases.append("against: " + ", ".join(reason.phrase for reason in self.against))
        return "; ".join(phrases)


def pick_reasons(
    contributions: np.ndarray, threshold: float, citable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the attributes to cite.

    Args:
      contributions: `[n, len(ATTRIBUTES)]`, centred.
      threshold: least absolute contribution that counts, inclusive; zero never counts.
      citable: `[n, len(ATTRIBUTES)]` bool; "idiosyncratic" is never cited either way.

    Returns:
      `[n, MAX_FOR]` and `[n, MAX_AGAINST]` int64 columns into `ATTRIBUTES`, largest size first,
      ties in the order of `ATTRIBUTES`, -1 for unused places.
    """
    allowed = np.zeros(contributions.shape, bool)
    allowed[:, :CITABLE] = True if citable is None else citable[:, :CITABLE]

    def strongest(signed: np.ndarray, most: int) -> np.ndarray:
        counts = allowed & (signed >= threshold) & (signed > 0)
        # A stable sort keeps ties in the order of `ATTRIBUTES`.
        order = np.argsort(np.where(counts, -signed, np.inf), axis=1, kind="stable")[:, :most]
        return np.where(np.take_along_axis(counts, order, axis=1), order, -1)

    return strongest(contributions, MAX_FOR), strongest(-contributions, MAX_AGAINST)


def build_reasons(
    utility: Utility,
    users: np.ndarray,
    items: np.ndarray,
    states: np.ndarray,
    last_kind: np.ndarray,
) -> list[Reasons]:
    """Builds the reasons for pairs in given states; the arguments are those of `Utility.pairs`."""
    contributions = utility.pairs(users, items, states, last_kind)
    # A cafe also gains on the average place if the user dislikes restaurants, but "likes cafes"
    # would be untrue: a taste is cited only if its own sign agrees with the contribution.
    citable = np.ones(contributions.shape, bool)
    for name in TASTE_SLICES:
        column = ATTRIBUTES.index(name)
        citable[:, column] = utility.affinity(name, states, items) * contributions[:, column] > 0
    # The same holds for the kind visited last.
    column, effect = ATTRIBUTES.index("sequence"), words.sequence_matrix()
    effect = effect[last_kind, utility.places.kind[items]]
    citable[:, column] = effect * contributions[:, column] > 0
    chosen, rejected = pick_reasons(contributions, utility.config.reason_threshold, citable)
    # Python lists once: the loop below is a scalar one, and NumPy scalars would dominate it.
    pairs = zip(
        users.tolist(),
        items.tolist(),
        utility.distance_km(users, items).tolist(),
        last_kind.tolist(),
        strict=True,
    )
    records = []
    for pair, values, columns_for, columns_against in zip(
        map(_Pair._make, pairs),
        contributions.tolist(),
        chosen.tolist(),
        rejected.tolist(),
        strict=True,
    ):
        records.append(
            Reasons(
                user=pair.user,
                item=pair.item,
                for_=tuple(_reason(utility, pair, c, values[c]) for c in columns_for if c >= 0),
                against=tuple(
                    _reason(utility, pair, c, values[c]) for c in columns_against if c >= 0
                ),
                utility=sum(values),
                unexplained=values[-1],
            )
        )
    return records


class _Pair(NamedTuple):
    user: int
    item: int
    km: float
    last_kind: int


def _reason(utility: Utility, pair: _Pair, column: int, contribution: float) -> Reason:
    value, phrase = _words(utility, pair, ATTRIBUTES[column], positive=contribution > 0)
    return Reason(ATTRIBUTES[column], value, contribution, phrase)


def _words(utility: Utility, pair: _Pair, attribute: str, *, positive: bool) -> tuple[str, str]:
    """Value of an attribute, and the phrase that cites it."""
    places, item = utility.places, pair.item
    likes = "likes" if positive else "dislikes"
    kind = words.KINDS[places.kind[item]]
    if attribute == "kind":
        return kind, f"{likes} {_PLURALS.get(kind, kind + 's')}"
    if attribute == "cuisine":
        cuisine = words.CUISINES[places.cuisine[item]]
        return cuisine, f"{likes} {cuisine} food"
    if attribute == "mood":
        mood = words.MOODS[places.mood[item]]
        return mood, f"{likes} {mood} places"
    if attribute == "price":
        price = int(places.price[item])
        if positive:
            return str(price), "the price suits the budget"
        pricier = price > utility.people.ideal_price[pair.user]
        return str(price), f"{'pricier' if pricier else 'cheaper'} than usual"
    if attribute == "distance":
        value = f"{pair.km:.1f} km"
        return value, f"{'closer to' if positive else 'farther from'} home than most ({value})"
    if attribute == "popularity":
        band = words.POPULARITY_BANDS[places.popularity_band[item]]
        return band, f"{'more' if positive else 'less'} popular than most places"
    before = words.KINDS[pair.last_kind]
    if positive:
        return before, f"goes well after a visit to a {before}"
    return before, f"the last visit was to a {before} too"
