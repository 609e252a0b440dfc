"""Exact upper bound of the metrics that any recommender can reach on a world.

At the choice that led to an event the probability of every unvisited place is known: p = softmax(
utility / tau). Ranking by p is Bayes-optimal for every metric that falls with the rank, and its
expected value is a sum over the ranks, no sampling needed:

    E[recall@k] = sum_{r <= k} p_(r)
    E[ndcg@k]   = sum_{r <= k} p_(r) / log2(r + 1)
    E[mrr@k]    = sum_{r <= k} p_(r) / r

with p_(r) the probability of the place at rank r. A ranking that lacks some attributes is bounded
in the same way: rank without them, take p with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.world.utility import ATTRIBUTES, blocks

if TYPE_CHECKING:
    from xrec_jax.data.world.world import World


@dataclasses.dataclass(frozen=True)
class OracleReport:
    """Metrics of the oracle on held-out events.

    Attributes:
      expected: `[events]` float64 by metric, the exact expectation before the choice is made.
      realised: `[events]` float64 by metric, the value for the place that was chosen; ties are
        ranked pessimistically.
    """

    expected: dict[str, np.ndarray]
    realised: dict[str, np.ndarray]

    def mean_expected(self) -> dict[str, float]:
        """Mean over events of the expectations."""
        return {name: float(values.mean()) for name, values in self.expected.items()}

    def mean_realised(self) -> dict[str, float]:
        """Mean over events of the realised values."""
        return {name: float(values.mean()) for name, values in self.realised.items()}


def oracle(
    world: World,
    events: Interactions,
    ks: Sequence[int] = (5, 10, 20),
    *,
    without: Sequence[str] = (),
) -> OracleReport:
    """Bounds every recommender on `events`: recall@k, ndcg@k and mrr@k.

    Each event is predicted in the state of its user just before it, with the places visited earlier
    masked. With the last event of every user this is leave-one-out testing, where recall is hit
    rate.

    Args:
      world: the world.
      events: visits of this world, in any order.
      ks: cut-offs.
      without: attributes that the ranking ignores. `("idiosyncratic",)` bounds what can be learned
        from attributes and history; `("sequence",)` shows the value of the order of visits.

    Raises:
      UserError: for an unknown attribute, a cut-off below 1, an event that is not a visit of this
        world, or no event at all.
    """
    for name in without:
        if name not in ATTRIBUTES:
            raise UserError(f"unknown attribute {name!r}{did_you_mean(name, ATTRIBUTES)}")
    if not ks or min(ks) < 1:
        raise UserError(f"ks must hold cut-offs of at least 1, got {list(ks)}")
    if not len(events):
        raise UserError("the oracle needs at least one event")
    # Gain of rank r (from 0): 1 for recall, 1 / log2(r + 2) for NDCG, 1 / (r + 1) for MRR.
    made = world.visits_made(events)
    depth = max(ks)
    discounts = {"recall": np.ones(depth), "ndcg": 1 / np.log2(np.arange(depth) + 2.0)}
    discounts["mrr"] = 1 / (np.arange(depth) + 1.0)
    names = [(metric, k) for k in ks for metric in discounts]
    expected = {f"{metric}@{k}": np.empty(len(events)) for metric, k in names}
    realised = {name: np.empty(len(events)) for name in expected}
    # In blocks, since utilities are dense `[events, items]` arrays.
    for rows in blocks(len(events), world.config.num_items):
        users, items = events.user[rows].astype(np.int64), events.item[rows].astype(np.int64)
        seen = world.seen(users, made[rows])
        utility = world.utilities(users, made[rows])
        probability = choice_probabilities(utility, seen, world.config.noise)
        score = np.where(seen, -np.inf, utility)
        # The ranking ignores some attributes, the probabilities do not: that is the bound for a
        # model without them.
        for name in set(without):
            score -= world.utility.term(name, users, *world.state(users, made[rows]))
        ranked = _top(score, probability, depth)
        own = np.take_along_axis(score, items[:, None], axis=1)
        rank = (score >= own).sum(axis=1) - 1  # from 0; counts itself once, so ties rank above it
        for metric, k in names:
            discount = discounts[metric][:k]
            expected[f"{metric}@{k}"][rows] = ranked[:, :k] @ discount[: ranked.shape[1]]
            # Ranks beyond k are masked below; the minimum only keeps the index valid.
            gain = discount[np.minimum(rank, k - 1)]
            realised[f"{metric}@{k}"][rows] = np.where(rank < k, gain, 0.0)
    return OracleReport(expected=expected, realised=realised)


def choice_probabilities(utility: np.ndarray, seen: np.ndarray, noise: float) -> np.ndarray:
    """Softmax of utility / noise over the places not seen, `[n, items]`."""
    logits = np.where(seen, -np.inf, utility / noise)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _top(score: np.ndarray, probability: np.ndarray, depth: int) -> np.ndarray:
    """`[n, min(depth, items)]` probabilities of the places with the highest scores, best first."""
    depth = min(depth, score.shape[1])
    best = np.argpartition(-score, depth - 1, axis=1)[:, :depth]
    order = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(probability, np.take_along_axis(best, order, axis=1), axis=1)
