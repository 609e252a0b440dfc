"""Faithfulness to planted reasons: precision, recall and F1 of a text's claims.

The claims of a text (`text.claims`) are compared with the reasons that the world planted for the
pair. A claim is right if a planted reason has the same attribute and direction and, for kind,
cuisine, mood, price and sequence, the same value: "likes bars" is not "likes cafes". For distance
and popularity the direction suffices, as a text may well say "closer than most" without the km. A
text that calls a cheaper place pricier is wrong, though both speak against it.

For one text, with C claims, T planted reasons and M right claims: precision M / C, recall (planted
reasons that are claimed) / T, F1 their harmonic mean. With neither claims nor reasons all three are
1, as there was nothing to say and nothing was said; if only one of the two is empty all are 0, so
that silence never scores.

`planted/precision` and so on are means over texts; `planted/micro_precision` pools the claims of
all texts, so that a text has the weight of its claims. A breakdown pools the claims of one
attribute, or of one direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS
from xrec_jax.evaluation.statistics.intervals import (
    Estimate,
    bootstrap_means,
    estimates,
    exact,
    owners,
    paired_difference,
    user_sums,
)
from xrec_jax.evaluation.statistics.significance import sign_flip
from xrec_jax.text.claims.reader import Claim, Vocabulary, read_claims

METRICS = ("precision", "recall", "f1")
ATTRIBUTES = ("kind", "cuisine", "mood", "price", "distance", "popularity", "sequence")
BREAKDOWN = (*ATTRIBUTES, "for", "against")
Users = Sequence[Hashable] | None  # user of each pair; None: each has a user of its own
# Attributes for which the direction suffices.
_NO_VALUE = ("distance", "popularity")


def world_vocabulary() -> Vocabulary:
    """Vocabulary of claims about the generated world, with the synonyms of its texts."""
    return {
        "kind": KIND_WORDS,
        "cuisine": [cuisine for cuisine in words.CUISINES if cuisine != "none"],
        "mood": MOOD_WORDS,
        "price": words.PRICES,
        "distance": (),
        "popularity": words.POPULARITY_BANDS,
        "sequence": KIND_WORDS,
    }


def planted_claims(planted: Any) -> frozenset[Claim]:
    """Converts planted reasons to claims.

    Args:
      planted: `world.Reasons`, or the mapping of a pairs file with lists "for" and "against" of
        mappings `attribute`, `value`, `phrase`.

    Raises:
      UserError: if it is neither.
    """
    claims = set()
    for direction, name in (("for", "for_"), ("against", "against")):
        try:
            reasons = planted[direction] if isinstance(planted, Mapping) else getattr(planted, name)
            for reason in reasons:
                get = reason.__getitem__ if isinstance(reason, Mapping) else reason.__getattribute__
                attribute, value, phrase = (get(key) for key in ("attribute", "value", "phrase"))
                # The value of a price does not say on which side of the taste it lies.
                sense = None
                if attribute == "price" and direction == "against":
                    sense = next((s for s in ("pricier", "cheaper") if s in phrase), None)
                claims.add(Claim(attribute, direction, str(value), sense))  # type: ignore[arg-type]
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(
                "planted reasons need lists 'for' and 'against' of attribute, value and phrase: "
                f"{error}"
            ) from error
    return frozenset(claims)


def agrees(claim: Claim, reason: Claim) -> bool:
    """True if a claim states a planted reason (see the module)."""
    if (claim.attribute, claim.direction) != (reason.attribute, reason.direction):
        return False
    if claim.attribute in _NO_VALUE:
        return True
    # A sense that one of the two leaves open contradicts nothing.
    if claim.sense and reason.sense and claim.sense != reason.sense:
        return False
    return str(claim.value).lower() == str(reason.value).lower()


@dataclasses.dataclass(frozen=True)
class PlantedScores:
    """Scores of texts against planted reasons.

    Attributes:
      precision: `[texts]` float64, as the next two.
      recall: share of the planted reasons that are claimed.
      f1: harmonic mean of both.
      counts: `[texts, 1 + len(BREAKDOWN), 4]` int64: claims, right claims, planted reasons and
        claimed planted reasons; first of all together, then in the order of `BREAKDOWN`.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    counts: np.ndarray

    def means(
        self, *, users: Users = None, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Estimate]:
        """Means over texts with intervals: `planted/precision`, `planted/recall`, `planted/f1`."""
        values = {f"planted/{name}": getattr(self, name)[None] for name in METRICS}
        return estimates(values, users=users, resamples=resamples, seed=seed)

    def pooled(
        self, *, users: Users = None, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Estimate]:
        """Pooled metrics: `planted/micro_f1` of all claims, `planted/kind_f1` of a breakdown.

        Intervals resample texts, those of one user together. The count is that of the claims for a
        precision, of the planted reasons for a recall, and of both for F1. Breakdowns without
        claims and planted reasons are omitted.

        Args:
          users: user of each pair; by default each pair has a user of its own.
          resamples: bootstrap samples.
          seed: seed of the resamples.
        """
        texts = len(self.counts)
        totals = self.counts.sum(axis=0)
        # `[groups, counts, 1, texts]`: the bootstrap wants seeds before cases. Means of counts
        # suffice, as the number of texts cancels in every ratio.
        stacked = np.moveaxis(self.counts, 0, -1)[:, :, None].astype(np.float64)
        drawn = None
        numbers = owners(users)
        if resamples and (texts if numbers is None else numbers.max() + 1) > 1:
            drawn = bootstrap_means(stacked, users=numbers, resamples=resamples, seed=seed)
        result: dict[str, Estimate] = {}
        for place, group in enumerate(("micro", *BREAKDOWN)):
            claimed, _, planted, _ = totals[place]
            if claimed + planted == 0:
                continue
            value = _ratios(*totals[place].astype(np.float64))
            bounds = None
            if drawn is not None:
                bounds = [np.quantile(r, [0.025, 0.975]) for r in _ratios(*drawn[place])]
            for row, (metric, count) in enumerate(
                zip(METRICS, (claimed, planted, claimed + planted), strict=True)
            ):
                entry = exact(float(value[row]), int(count))
                if bounds is not None:
                    entry["low"], entry["high"] = map(float, bounds[row])
                result[f"planted/{group}_{metric}"] = entry
        return result

    def estimates(
        self, *, users: Users = None, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Estimate]:
        """Metrics of `means` and `pooled`."""
        options: Any = {"users": users, "resamples": resamples, "seed": seed}
        return self.means(**options) | self.pooled(**options)


def _ratios(claimed: Any, right: Any, planted: Any, recalled: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 from counts, with the module's convention for empty sides."""
    claimed, right, planted, recalled = (
        np.asarray(x, np.float64) for x in (claimed, right, planted, recalled)
    )
    # To claim nothing is right only where nothing was planted. 1e-300 stands for a zero below,
    # so that 0 / 0 is 0.
    nothing = (claimed == 0) & (planted == 0)
    precision = np.where(nothing, 1.0, right / np.maximum(claimed, 1e-300))
    recall = np.where(nothing, 1.0, recalled / np.maximum(planted, 1e-300))
    total = precision + recall
    f1 = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)
    return precision, recall, f1


def score_claims(
    claims: Sequence[Iterable[Claim]], planted: Sequence[Iterable[Claim]]
) -> PlantedScores:
    """Compares the claims of each text with its planted reasons.

    Raises:
      UserError: if their numbers differ, or there are none.
    """
    if len(claims) != len(planted) or not len(claims):
        raise UserError(
            f"{len(claims)} texts and {len(planted)} sets of planted reasons: one of each is "
            "needed for every pair"
        )
    counts = np.zeros((len(claims), 1 + len(BREAKDOWN), 4), np.int64)
    for row, (stated, true) in enumerate(zip(claims, planted, strict=True)):
        stated, true = _distinct(stated), _distinct(true)
        for claim in stated:
            _count(counts[row], claim, 0, any(agrees(claim, reason) for reason in true))
        # Counted from both sides, as several claims may state one reason.
        for reason in true:
            _count(counts[row], reason, 2, any(agrees(claim, reason) for claim in stated))
    precision, recall, f1 = _ratios(*counts[:, 0].T)
    return PlantedScores(precision, recall, f1, counts)


def _distinct(claims: Iterable[Claim]) -> list[Claim]:
    """Drops claims that are equal in comparisons: "closer" and "1.2 km, closer" are one."""
    by_content: dict[tuple[str | None, ...], Claim] = {}
    # Sorted, so that which of equal claims stays does not depend on the order of a set.
    for claim in sorted(claims, key=lambda c: tuple(str(part) for part in c)):
        value = None if claim.attribute in _NO_VALUE else str(claim.value).lower()
        by_content.setdefault((claim.attribute, claim.direction, value, claim.sense), claim)
    return list(by_content.values())


def _count(counts: np.ndarray, claim: Claim, column: int, right: bool) -> None:
    """Adds a claim to the totals of its attribute, its direction and all together."""
    for name in ("", claim.attribute, claim.direction):
        if name == "" or name in BREAKDOWN:
            place = 1 + BREAKDOWN.index(name) if name else 0
            counts[place, column] += 1
            counts[place, column + 1] += right


def score_texts(
    texts: Sequence[str], planted: Sequence[Any], *, vocabulary: Vocabulary | None = None
) -> PlantedScores:
    """Reads the claims of texts and compares them with the planted reasons.

    Args:
      texts: explanations.
      planted: reasons of each, in a form that `planted_claims` accepts.
      vocabulary: vocabulary of claims; by default that of the generated world.
    """
    known = world_vocabulary() if vocabulary is None else vocabulary
    return score_claims(
        [read_claims(text, known) for text in texts],
        [planted_claims(reasons) for reasons in planted],
    )


def compare(
    first: PlantedScores,
    second: PlantedScores,
    *,
    users: Users = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Differences `first - second` of two explainers on the same pairs.

    Args:
      first: scores of one explainer.
      second: scores of another.
      users: user of each pair. Pairs of one user are resampled together, and their signs flipped
        together.
      resamples: bootstrap samples.
      seed: seed of resamples and sign flips.

    Returns:
      `planted/f1_difference` with its interval, likewise of precision and recall, and `planted/p`
      of F1, `planted/precision_p`, `planted/recall_p` by sign flips of the pairs.

    Raises:
      UserError: if the two have different numbers of pairs.
    """
    result: dict[str, Estimate] = {}
    numbers = owners(users)
    for name in METRICS:
        a, b = getattr(first, name), getattr(second, name)
        difference = paired_difference(a, b, users=users, resamples=resamples, seed=seed)
        if numbers is not None:
            a, b = user_sums(a, numbers), user_sums(b, numbers)
        p = sign_flip(a, b, seed=seed)
        result[f"planted/{name}_difference"] = difference
        result["planted/p" if name == "f1" else f"planted/{name}_p"] = exact(p, len(a))
    return result
