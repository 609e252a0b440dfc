"""The fused recommender where every candidate of a state has an explanation of its own.

A list is ranked as `recommenders.explained.reranking.rerank` says: the candidates first, by their
fused scores, then all other unseen items by the recommender alone. A candidate without a text keeps
the score of the recommender alone, so that without any text the list is that of the recommender
alone.

What a text of one candidate is worth is its leave-one-out gain: log p(y) among the candidates, with
the texts of all of them, minus the same where this one's text is taken away. The other texts are
those in the cache. A state whose target is no candidate says nothing of them and gains 0.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking.evaluator import PerUser, check_scored, distinct
from xrec_jax.evaluation.ranking.metrics import ranking_metrics
from xrec_jax.evaluation.ranking.planning import CELLS
from xrec_jax.evaluation.ranking.ranks import top_k
from xrec_jax.joint.recommender.fused import FusedTask
from xrec_jax.joint.recommender.rows import another, user_batch
from xrec_jax.joint.states.base import TEST, VALID
from xrec_jax.joint.states.candidates import JointCases
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.parallel.mesh import batch_divisor, gather, put_replicated
from xrec_jax.recommenders.explained.fused import Fused
from xrec_jax.recommenders.explained.reranking import rerank
from xrec_jax.training.recommender import RecommenderTask

_USER = ("user", "history", "length")  # what the recommender alone reads
_READ = ("encoding", "present", "features")


def retrieved(
    setup: StateSetup, task: RecommenderTask, params: Any, frozen: Any, *, count: int
) -> np.ndarray:
    """The best unseen items of the recommender alone for every state, from the history before it.

    Args:
      setup: whose states are plain states.
      task: of the recommender alone.
      params: its parameters.
      frozen: its frozen arrays.
      count: C; at most the catalogue.

    Returns:
      `[S, C]` int32, best first, -1 where fewer are unseen.
    """
    model, states = task.model, setup.states
    count = min(count, model.num_items)

    @jax.jit
    def best(params, frozen, batch):
        tables = model.tables(params, frozen)
        state = model.user_state(params, tables, batch)
        return top_k(
            state,
            tables.item,
            batch["seen"],
            k=count,
            score=model.scores,
            num_items=model.num_items,
            mesh=setup.shared.mesh,
        )[0]

    width = int(states.history.lengths.max(initial=1))
    size, batches = min(1024, max(8, CELLS // model.num_items)), []
    for first in range(0, len(states), size):
        rows = np.minimum(np.arange(first, first + size), len(states) - 1)
        batch = user_batch(setup, model, rows)
        batch["seen"] = distinct(states.history.padded(rows, width, fill=-1))
        batches.append(gather(best(params, frozen, put_replicated(batch, setup.shared.mesh))))
    return np.concatenate(batches)[: len(states)].astype(np.int32)


def _head(model: Fused, params: Any, tables: Any, batch: dict, old: jax.Array) -> jax.Array:
    """Scores of the candidates `[b, C]`: the fused ones, or the old ones where nothing is read."""
    candidates = batch["candidates"]
    inputs = {k: v for k, v in batch.items() if k in (*_USER, *_READ, "candidates")}
    plain = jnp.take_along_axis(old, jnp.maximum(candidates, 0), axis=1)
    if "features" in batch:
        return model.candidate_scores(params, {}, inputs, tables=tables)
    fused = model.candidate_scores(params, {}, inputs, tables=tables)
    return jnp.where(batch["present"].any(axis=-1) & (candidates >= 0), fused, plain)


def _alone(model: Fused, params: Any, tables: Any, batch: dict) -> jax.Array:
    """Scores of the whole catalogue without a text: `[b, items]`."""
    inputs = {k: v for k, v in batch.items() if k in _USER}
    return model.item_scores(params, {}, inputs, tables=tables)


@functools.partial(jax.jit, static_argnums=0)
def _tables(model: Fused, params: Any, frozen: Any) -> Any:
    return model.tables(params, frozen)


@functools.partial(jax.jit, static_argnums=0)
def _ranks(model: Fused, params: Any, tables: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Ranks `[b, T]` of the targets in the reranked lists, and whether all is scored `[b]`."""
    old = _alone(model, params, tables, batch)
    new = _head(model, params, tables, batch, old)
    rank_of_one = lambda target: rerank(old, batch["candidates"], new, target, batch["seen"])  # noqa: E731
    ranks = jax.vmap(rank_of_one, in_axes=1, out_axes=1)(batch["targets"])
    return ranks, jnp.all((new < jnp.inf) | (batch["candidates"] < 0), axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _gains(model: Fused, params: Any, tables: Any, batch: dict) -> dict[str, jax.Array]:
    """`log_prob` and `rank` with the case's own text, with none and with another user's."""
    old = _alone(model, params, tables, batch)
    candidates, target = batch["candidates"], batch["target"]
    place = batch["place"]
    hit = (candidates >= 0) & (candidates == target[:, None])
    rows = jnp.arange(len(target))
    figures = {}
    for name in ("", "_null", "_shuffled"):
        inputs = dict(batch)
        if name == "_null":
            inputs["present"] = batch["present"].at[rows, place].set(False)
        else:
            own = f"own{name}"
            inputs["encoding"] = batch["encoding"].at[rows, place].set(batch[f"{own}_encoding"])
            inputs["present"] = batch["present"].at[rows, place].set(batch[f"{own}_present"])
        new = _head(model, params, tables, inputs, old).astype(jnp.float32)
        log_probs = jax.nn.log_softmax(jnp.where(candidates >= 0, new, -1e30), axis=1)
        # Rows without their target among the candidates stay at 0: they say nothing of a text.
        figures[f"log_prob{name}"] = jnp.sum(jnp.where(hit, log_probs, 0.0), axis=1)
        figures[f"rank{name}"] = rerank(old, candidates, new, target, batch["seen"])
    return figures


class RerankTask(FusedTask):
    """`FusedTask` for cases: trains on, scores and ranks states with all their candidates.

    What is read has one row a case. The arguments are those of `FusedTask`.
    """

    reads_others: ClassVar[bool] = True

    @property
    def cases(self) -> JointCases:
        """The cases of the seed."""
        cases = self.setup.states
        assert isinstance(cases, JointCases)
        return cases

    # Training.

    def trained_rows(self) -> np.ndarray:
        """States, not cases; all have their target among the candidates."""
        return np.unique(self.cases.state[self.setup.learned])

    def batch(self, states: np.ndarray, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Training rows: states with all their candidates and what is read of each."""
        return self._states(states, read) | {
            "target": self.cases.states.target[states],
            "weight": np.ones(len(states), np.float32),
        }

    def _states(self, states: np.ndarray, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the recommender alone reads of states, their candidates, and their texts."""
        cases = self.cases
        slots = cases.slots[states]
        # Any case of a state has the state's user and history.
        batch = user_batch(self.setup, self.model, slots.max(axis=1))
        batch["candidates"] = cases.candidates[states]
        return batch | _of_slots(slots, read)

    def user_states(self, base: Any, frozen: Any) -> np.ndarray:
        """User states `[cases, D]`, computed once a state."""
        cases = self.cases
        first = cases.slots.max(axis=1)
        kept = first >= 0  # a state without a candidate has no case
        place = np.cumsum(kept) - 1
        return self._user_states_of(base, frozen, first[kept])[place[cases.state]]

    # Ranking.

    @functools.cached_property
    def _held_out(self) -> dict[str, tuple[Histories, Histories, np.ndarray]]:
        """Seen items, targets and users of each group."""
        groups, count = {}, self.shared.data.dataset.num_users
        for group, (seen, held_out) in self._groups().items():
            pairs = np.unique(np.stack([held_out.user, held_out.item], 1), axis=0)
            targets = Histories.of([Interactions(pairs[:, 0], pairs[:, 1])], count)
            users = np.flatnonzero(targets.lengths).astype(np.int32)
            groups[group] = Histories.of(seen, count), targets, users
        return groups

    def evaluate(
        self, group: str, params: Any, frozen: Any, read: dict[str, np.ndarray]
    ) -> PerUser:
        """Metrics of reranked lists; users without a case keep the list of the recommender alone.

        Args:
          group: "few" valid users, all of "valid", or "test".
          params: of the fused recommender.
          frozen: from `frozen`.
          read: `[cases, ...]` what there is to read of every case.
        """
        cases = self.cases
        seen, targets, users = self._held_out[group]
        states = cases.states
        rows = states.rows(TEST if group == "test" else VALID)
        slots = np.full((self.shared.data.dataset.num_users, cases.slots.shape[1]), -1, np.int32)
        slots[states.user[rows]] = cases.slots[rows]
        candidates = np.full_like(slots, -1)
        candidates[states.user[rows]] = cases.candidates[rows]
        most, width = (int(h.lengths[users].max(initial=1)) for h in (targets, seen))
        tables, parts = _tables(self.model, params, frozen), batch_divisor(self.shared.mesh)
        size = max(1, min(512, CELLS // (self.model.num_items * most)))
        size = -(-min(size, len(users)) // parts) * parts
        ranks, scored = np.zeros(len(targets.items), np.int64), np.zeros(len(users), bool)
        for first in range(0, len(users), size):
            places = np.minimum(np.arange(first, first + size), len(users) - 1)
            chosen = users[places]
            batch = {
                "user": chosen,
                "candidates": candidates[chosen],
                "targets": targets.padded(chosen, most, fill=-1),
                "seen": seen.padded(chosen, width, fill=-1),
            } | _of_slots(slots[chosen], read)
            length = self.model.history_length
            if length:
                batch["history"] = seen.padded(chosen, length)
                batch["length"] = np.minimum(seen.lengths[chosen], length).astype(np.int32)
            made, good = gather(_ranks(self.model, params, tables, self.shared.put(batch)))
            scored[first : first + size] = good[: len(users) - first]
            real = np.arange(most) < targets.lengths[chosen][:, None]
            place = targets.start[chosen][:, None] + np.arange(most)
            ranks[place[real]] = made[real]  # the repeated last user writes the same once more
        check_scored(int(scored.sum()), len(users))
        start = np.concatenate([[0], np.cumsum(targets.lengths[users])])
        ks = tuple(self.shared.config.ranking.ks)
        return PerUser(users, ranking_metrics(ranks, start, ks), {})

    # What rollouts are worth.

    def score(
        self,
        params: Any,
        frozen: Any,
        states: np.ndarray,
        encoding: np.ndarray,
        present: np.ndarray,
        *,
        key: int,
        read: dict[str, np.ndarray] | None = None,
        targets: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Leave-one-out worth of texts of cases, on frozen weights.

        Args:
          params: of the fused recommender.
          frozen: from `frozen`.
          states: `[n]` cases.
          encoding: `[n, 2, E]` of the texts to be scored.
          present: `[n, 2]`.
          key: of the draw of other users' texts.
          read: `[cases, ...]` encodings that all other candidates keep.
          targets: not read; a case has its own.

        Returns:
          `log_prob` among the candidates, `rank` in the reranked list, and both with `_null` and
          `_shuffled` in place of the text: `[n]` each.
        """
        assert read is not None
        del targets
        cases = self.cases
        parts = batch_divisor(self.shared.mesh)
        size = -(-min(256, len(states)) // parts) * parts
        others = another(cases.user[states], key)
        tables, scored = _tables(self.model, params, frozen), []
        for first in range(0, len(states), size):
            places = np.minimum(np.arange(first, first + size), len(states) - 1)
            chosen, other = states[places], others[places]
            rows = cases.state[chosen]
            batch = self._states(rows, read) | {
                "target": cases.target[chosen],
                "seen": cases.history.padded(chosen, self._seen_width, fill=-1),
                "place": (cases.slots[rows] == chosen[:, None]).argmax(axis=1).astype(np.int32),
                "own_encoding": encoding[places],
                "own_present": present[places],
                "own_shuffled_encoding": encoding[other],
                "own_shuffled_present": present[other],
            }
            scored.append(gather(_gains(self.model, params, tables, self.shared.put(batch))))
        return {
            name: np.concatenate([figures[name] for figures in scored])[: len(states)]
            for name in scored[0]
        }


def _of_slots(slots: np.ndarray, read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is read of cases, laid out as candidates: `[b, C, ...]`, zero where there is none."""
    real = slots >= 0
    laid_out = {}
    for name, array in read.items():
        rows = array[np.maximum(slots, 0)]
        nothing = np.zeros((), rows.dtype)
        laid_out[name] = np.where(real.reshape(*real.shape, *(1,) * (rows.ndim - 2)), rows, nothing)
    return laid_out
