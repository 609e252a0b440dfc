"""Counterfactual faithfulness: effect of the cited history items on the recommender.

After ERASER (DeYoung et al., ACL 2020), with a control of equal size. For a pair of a user with
history H and a recommended item, let l(S) be the item's log-probability over the catalogue for a
user with history S; all items of H are excluded from the catalogue, for every subset S. With C the
cited entries and R as many uncited ones, drawn at random several times:

    comprehensiveness = (l(H) - l(H without C)) - mean_R (l(H) - l(H without R))
    sufficiency       = l(only C) - mean_R l(only R)

Both are in nats, 0 for citations no better than random ones and higher for better ones. (ERASER's
sufficiency is l(H) - l(only C), where less is better; as a difference to the control, the sign is
reversed so that more is always better.) R is drawn from the entries that the explanation could have
cited, those shown in the prompt: recent entries matter more to a sequential model, and a control
from all of a long history would flatter every explanation. Some of this advantage is real: an
explanation that names only the last visit does name what moved such a model. Compare both measures
with those of texts that cite at random.

A sequential model reads the edited history, in which older entries move into its window. A model
with a user table estimates the user anew, for whole and edited histories alike (`fold_in`). A
popularity model does not depend on the history, so nothing can be measured.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.evaluation.ranking.evaluator import Model, distinct, item_and_user_tables
from xrec_jax.evaluation.ranking.fold_in import Prior, fold_in, user_prior
from xrec_jax.evaluation.ranking.log_probs import target_log_probs
from xrec_jax.evaluation.ranking.planning import CELLS
from xrec_jax.evaluation.statistics.intervals import Estimate, estimates, exact, owners
from xrec_jax.parallel.mesh import batch_divisor, gather, put_replicated, use_mesh


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """Log-probabilities of recommended items under edited histories, `[pairs]` float64 each.

    All but `full` are NaN if nothing is cited or fewer uncited than cited entries were shown.

    Attributes:
      full: l(H).
      without_cited: l(H without C).
      without_others: mean of l(H without R).
      only_cited: l(only C).
      only_others: mean of l(only R).
    """

    full: np.ndarray
    without_cited: np.ndarray
    without_others: np.ndarray
    only_cited: np.ndarray
    only_others: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        """Mask `[pairs]` of the pairs for which both measures exist."""
        return ~np.isnan(self.without_cited)

    @property
    def comprehensiveness(self) -> np.ndarray:
        """Comprehensiveness relative to the control, `[pairs]` nats."""
        return self.without_others - self.without_cited

    @property
    def sufficiency(self) -> np.ndarray:
        """Sufficiency relative to the control, `[pairs]` nats."""
        return self.only_cited - self.only_others

    def estimates(
        self, *, users: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Estimate]:
        """Means over the measured pairs with intervals, and the share of measured pairs.

        Pairs of one user are resampled together. `counterfactual/fall` is l(H) - l(H without C),
        without the control. If no pair is measured, only `counterfactual/measured` is returned.

        Args:
          users: user of each pair; by default each pair has a user of its own.
          resamples: bootstrap samples.
          seed: seed of the resamples.
        """
        measured = self.measured
        result = {"counterfactual/measured": exact(float(measured.mean()), len(measured))}
        if measured.any():
            values = {
                "comprehensiveness": self.comprehensiveness,
                "sufficiency": self.sufficiency,
                "fall": self.full - self.without_cited,
            }
            numbers = owners(users)
            result |= estimates(
                {f"counterfactual/{name}": v[None, measured] for name, v in values.items()},
                users=None if numbers is None else numbers[measured].tolist(),
                resamples=resamples,
                seed=seed,
            )
        return result


def counterfactual(
    model: Model,
    params: Any,
    frozen: Mapping[str, jax.Array],
    *,
    users: Sequence[int] | np.ndarray,
    items: Sequence[int] | np.ndarray,
    histories: Sequence[Sequence[int] | np.ndarray],
    cited: Sequence[Sequence[int] | np.ndarray],
    shown: Sequence[Sequence[int] | np.ndarray] | None = None,
    mesh: Mesh,
    draws: int = 8,
    seed: int = 0,
) -> Counterfactual:
    """Measures the effect of cited history items on recommendations.

    Args:
      model: the recommender.
      params: its parameters.
      frozen: its arrays from the training data.
      users: `[pairs]` rows of the users.
      items: `[pairs]` rows of the recommended items.
      histories: item rows that the recommender read for each pair, oldest first.
      cited: item rows that each explanation cites; those that are not in the history (a matter of
        grounding) or were not shown are ignored.
      shown: item rows that each explanation could have cited; by default the whole history.
      mesh: devices.
      draws: random sets of uncited entries per pair.
      seed: seed of the draws; those of a pair depend only on the seed and the pair.

    Raises:
      UserError: if the recommender does not depend on users, the lists differ in length or are
        empty, or `draws` is not positive.
    """
    lengths = {len(users), len(items), len(histories), len(cited)}
    if shown is not None:
        lengths.add(len(shown))
    if len(lengths) > 1 or not len(users):
        raise UserError(
            "counterfactual faithfulness needs one user, item, history and list of cited items for "
            f"every pair, and at least one pair: got {sorted(lengths)}"
        )
    if draws < 1:
        raise UserError(f"draws={draws} must be positive")
    with use_mesh(mesh):
        tables = item_and_user_tables(model, params, frozen)
        # Only a sequential model reads an edited history; others need the user estimated anew.
        prior = None
        if not model.history_length:
            if tables.user is None:
                raise UserError(
                    f"{type(model).__name__} scores every user alike: no history item can have "
                    "moved it, so counterfactual faithfulness does not apply; choose a recommender "
                    "with users"
                )
            prior = user_prior(tables.user, model.num_users)
        # All versions of all histories are scored as one list, in batches of equal shape.
        edited: list[np.ndarray] = []
        owner: list[int] = []
        places: list[slice] = []
        for pair, (user, item, history) in enumerate(zip(users, items, histories, strict=True)):
            versions = _versions(
                np.asarray(history, np.int64),
                cited[pair],
                None if shown is None else shown[pair],
                draws,
                (seed, int(user), int(item)),
            )
            places.append(slice(len(edited), len(edited) + len(versions)))
            edited += versions
            owner += [pair] * len(versions)
        values = _log_probs(
            model, mesh, params, tables, prior, users, items, histories, np.array(owner), edited
        )
    result = np.full((5, len(users)), np.nan)
    for pair, place in enumerate(places):
        version_values = values[place]
        result[0, pair] = version_values[0]
        if len(version_values) > 1:
            # In the order of `_versions`: whole, without C, only C, draws without R, draws of R.
            others = version_values[3:].reshape(2, draws).mean(axis=1)
            result[1:, pair] = version_values[1], others[0], version_values[2], others[1]
    return Counterfactual(*result)


def _versions(
    history: np.ndarray,
    cited: Sequence[int] | np.ndarray,
    shown: Sequence[int] | np.ndarray | None,
    draws: int,
    key: tuple[int, int, int],
) -> list[np.ndarray]:
    """Whole history; without C; only C; for all draws without R; for all draws only R."""
    # An entry that the prompt did not show cannot be cited, so it is no fair control either.
    citable = np.ones(len(history), bool) if shown is None else np.isin(history, list(shown))
    chosen = citable & np.isin(history, list(cited))
    count, others = int(chosen.sum()), np.flatnonzero(citable & ~chosen)
    if count == 0 or len(others) < count:  # no control of equal size
        return [history]
    drawn = [np.zeros(len(history), bool) for _ in range(draws)]
    for number, mask in enumerate(drawn):
        order = rng.permutation(rng.fold(key[0], Stream.SHARED_53, *key[1:], number), len(others))
        mask[others[order[:count]]] = True
    return [
        history,
        history[~chosen],
        history[chosen],
        *(history[~mask] for mask in drawn),
        *(history[mask] for mask in drawn),
    ]


def _log_probs(
    model, mesh, params, tables, prior, users, items, histories, owner, edited
) -> np.ndarray:
    """Log-probabilities `[versions]` of the owners' items, computed in batches."""
    width = _wide(max((len(history) for history in histories), default=1))
    # Bounds the scores `[size, items]` of a batch; the mesh must divide it.
    size = max(1, min(_wide(len(edited)), 1024, CELLS // max(model.num_items, width)))
    size += -size % batch_divisor(mesh)
    users, items = np.asarray(users), np.asarray(items)
    # Masked items are those of the whole history, so that versions share one catalogue.
    seen = distinct(_padded(histories, width, width))
    results = []
    for first in range(0, len(edited), size):
        # The last version fills up the last batch, so that all have one compiled shape.
        rows = np.arange(first, first + size).clip(max=len(edited) - 1)
        pairs = owner[rows]
        length = model.history_length or width
        kept = _padded([edited[row] for row in rows], length, length)
        batch = {
            "user": users[pairs].astype(np.int32),
            "target": items[pairs].astype(np.int32),
            "seen": seen[pairs],
            # A sequential model goes by `length`; `fold_in` takes -1 for padding.
            "history": np.maximum(kept, 0) if model.history_length else kept,
            "length": (kept >= 0).sum(axis=1).astype(np.int32),
        }
        batch = put_replicated(batch, mesh)
        results.append(_batch_log_probs(model, mesh, params, tables, prior, batch))
    return np.concatenate(gather(results)).astype(np.float64)[: len(edited)]


def _wide(length: int) -> int:
    """Smallest size of a coarse grid that is at least `length`, to compile few shapes."""
    width = 64
    while width < length:
        width *= 4
    return width


def _padded(lists: Sequence[Any], last: int, width: int) -> np.ndarray:
    """Pads the last members of lists with -1: `[lists, width]` int32."""
    rows = np.full((len(lists), width), -1, np.int32)
    for row, members in zip(rows, lists, strict=True):
        kept = np.asarray(members, np.int32)[-last:]
        row[: len(kept)] = kept
    return rows


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_log_probs(
    model: Model, mesh: Mesh, params: Any, tables: Any, prior: Prior | None, batch: dict
) -> jax.Array:
    if prior is None:
        state = model.user_state(params, tables, batch)
    else:
        state = fold_in(tables.item, batch["history"], model.num_items, prior)
    return target_log_probs(
        state,
        tables.item,
        batch["seen"],
        batch["target"],
        score=model.scores,
        num_items=model.num_items,
        mesh=mesh,
    )
