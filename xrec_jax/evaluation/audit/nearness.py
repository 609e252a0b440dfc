"""TF-IDF similarity of profiles and descriptions of places."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.evaluation.audit.findings import percent
from xrec_jax.text.records.profiles import PairText, content_words
from xrec_jax.text.titles.mask import TitleMasks

TOP = 10  # best matching places among which a held-out one counts as revealed
_DIGITS = 9  # of a similarity; smaller differences are ties, for any order of summation


class Texts:
    """Profiles of users `0 .. U-1` and descriptions of places `0 .. P-1`, with masked place names.

    Args:
      rows: records of the profile file.
      dataset: data set with their ids.
    """

    def __init__(self, rows: Sequence[PairText], dataset: Dataset):
        self.rows, self.dataset = rows, dataset
        by_user, by_item = {row.user: row for row in rows}, {row.item: row for row in rows}
        self.users = {user: number for number, user in enumerate(by_user)}
        self.items = {item: number for number, item in enumerate(by_item)}
        self.titles = [by_item[item].title for item in self.items]
        masks = TitleMasks(self.titles)
        self.named = [set(masks.found(by_user[user].profile)) for user in self.users]
        # Without names: that a profile names a place is a finding of its own (`names_held_out`).
        self.profiles = [masks.mask(by_user[user].profile, by=" ") for user in self.users]
        self.places = [masks.mask(by_item[item].item_text, by=" ") for item in self.items]

    @functools.cached_property
    def _rare(self) -> dict[str, float]:
        """Inverse document frequency of the content words of descriptions."""
        counts = Counter(word for text in self.places for word in set(content_words(text)))
        return {word: math.log(len(self.places) / count) for word, count in counts.items()}

    @functools.cached_property
    def bags(self) -> list[dict[str, float]]:
        """Weights of the content words of each description, normalised to unit length."""
        bags = []
        for weights in map(self.weights, self.places):
            length = math.sqrt(sum(value**2 for value in weights.values())) or 1.0
            bags.append({word: weights[word] / length for word in sorted(weights)})
        return bags

    @functools.cached_property
    def _columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Inverted index: places with a word, and its weights there."""
        places: dict[str, list[int]] = {}
        for place, bag in enumerate(self.bags):
            for word in bag:
                places.setdefault(word, []).append(place)
        return {
            word: (np.array(holders), np.array([self.bags[place][word] for place in holders]))
            for word, holders in places.items()
        }

    def weights(self, text: str) -> dict[str, float]:
        """Inverse document frequencies of the content words of a text."""
        words = sorted(set(content_words(text)))  # sums must not depend on the order of a set
        return {word: self._rare[word] for word in words if word in self._rare}

    def scores(self, weights: Mapping[str, float]) -> np.ndarray:
        """Cosine similarities `[P]` of words with each description, up to a constant factor."""
        scores = np.zeros(len(self.bags))
        for word in sorted(weights):
            places, values = self._columns[word]
            scores[places] += weights[word] * values
        return scores.round(_DIGITS)

    @functools.cached_property
    def _numbers(self) -> list[np.ndarray]:
        """Text numbers of the rows of users and of items; -1 without a text."""
        sides = ((self.dataset.user_ids, self.users), (self.dataset.item_ids, self.items))
        return [np.array([known.get(str(name), -1) for name in ids]) for ids, known in sides]

    def held_out(self, split: Split) -> np.ndarray:
        """Pairs (see `pairs`) of validation and test events."""
        both = [self.pairs(events) for events in (split.valid, split.test)]
        return np.unique(np.concatenate(both), axis=0)

    def pairs(self, events: Interactions) -> np.ndarray:
        """Distinct pairs `[n, 2]` of events whose user and place have texts."""
        user, item = self._numbers
        pairs = np.stack([user[events.user], item[events.item]], axis=1)
        return np.unique(pairs[(pairs >= 0).all(axis=1)], axis=0)

    def another(self, seed: int) -> np.ndarray:
        """Random other user for each user, `[U]`."""
        order = rng.permutation(rng.fold(seed, Stream.AUDIT_PAIRS), len(self.users))
        # Next in a random cycle: nobody gets their own profile, and each profile is used once.
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        return other

    def named_pair(self, pair: np.ndarray) -> str:
        """Formats as `user 13, item 'Blue Bar' (7)`."""
        user, item = list(self.users)[pair[0]], list(self.items)[pair[1]]
        title = self.titles[pair[1]]
        return f"user {user}, item {f'{title!r} ({item})' if title else item}"


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Similarity of texts and places, for pairs of a user and a place.

    Attributes:
      users: `[n]` numbers of the users.
      area: `[n]` area under the ROC curve: share of the places unknown to the user that match worse
        than the pair's place, ties count half.
      rank: `[n]` rank of the place among them, from 1; ties count against it.
    """

    users: np.ndarray
    area: np.ndarray
    rank: np.ndarray

    @property
    def in_top(self) -> np.ndarray:
        """Mask `[n]` of the pairs whose place is among the `TOP` best."""
        return self.rank <= TOP

    def describe(self) -> str:
        """Formats as `9.1 % (area 0.585)`."""
        return f"{percent(self.in_top.sum(), len(self.in_top))} (area {self.area.mean():.3f})"


def overlaps(texts: Texts, split: Split, *, seed: int = 0) -> dict[str, Overlap]:
    """Computes similarities of texts and places for the comparisons of `audit.profiles`.

    Returns:
      `held_out` and `train` for the profile; `other` for another user's profile, `visits` for the
      descriptions of training places, both with held-out places. Empty without a held-out pair.
    """
    trains, held_out = texts.pairs(split.train), texts.held_out(split)
    if not len(held_out):
        return {}
    # `known` are no competitors in a ranking; `trained` is what a writer may have seen.
    known: list[set[int]] = [set() for _ in texts.users]
    trained: list[set[int]] = [set() for _ in texts.users]
    for user, place in np.concatenate([trains, held_out]).tolist():
        known[user].add(place)
    for user, place in trains.tolist():
        trained[user].add(place)
    # Beside a profile, two controls on the same held-out places: chance and mere taste.
    other = texts.another(seed)

    def profile(user: int) -> np.ndarray:
        return texts.scores(texts.weights(texts.profiles[user]))

    def visits(user: int) -> np.ndarray:
        words: dict[str, float] = {}
        for place in sorted(trained[user]):
            for word, weight in texts.bags[place].items():
                words[word] = words.get(word, 0.0) + weight
        return texts.scores(words)

    result = {}
    for name, pairs, score in (
        ("held_out", held_out, profile),
        ("train", trains, profile),
        ("other", held_out, lambda user: profile(int(other[user]))),
        ("visits", held_out, visits),
    ):
        area, rank = np.zeros(len(pairs)), np.zeros(len(pairs), np.int64)
        for user in np.unique(pairs[:, 0]).tolist():
            scores = score(user)
            # Places that the random user knows are no fair competitors of the held-out one.
            seen = known[user] | (known[int(other[user])] if name == "other" else set())
            rest = np.delete(scores, sorted(seen))
            for row in np.flatnonzero(pairs[:, 0] == user):
                value = scores[pairs[row, 1]]
                above, equal = int((rest > value).sum()), int((rest == value).sum())
                area[row] = 1.0 - (above + 0.5 * equal) / len(rest) if len(rest) else 0.5
                rank[row] = 1 + above + equal
        result[name] = Overlap(pairs[:, 0], area, rank)
    return result
