"""Full-catalogue ranking evaluation of a recommender."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking import planning
from xrec_jax.evaluation.ranking.metrics import ranking_metrics
from xrec_jax.evaluation.ranking.protocol import RankingProtocol, rows_of
from xrec_jax.evaluation.ranking.ranks import Ranks, target_ranks, top_k
from xrec_jax.parallel.mesh import batch_divisor, gather, must_wait, put_replicated, use_mesh

CACHED_CELLS = 1 << 26  # batches up to this size in all stay on the device between evaluations


class Model(Protocol):
    """Interface of a recommender for ranking (see `recommenders.Recommender`)."""

    @property
    def num_items(self) -> int: ...
    @property
    def num_users(self) -> int: ...
    @property
    def history_length(self) -> int: ...
    def tables(self, params: Any, frozen: Mapping[str, jax.Array]) -> Any: ...
    def user_state(self, params: Any, tables: Any, batch: dict) -> jax.Array: ...
    def scores(self, user_state: jax.Array, item_table: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class PerUser:
    """Metrics of every evaluated user, or of every held-out event, for paired tests.

    Attributes:
      users: `[rows]` rows of the users, ascending; where a row is an event, with repeats.
      masked: values `[rows]` by metric name, with seen items masked, if the protocol masks them.
      unmasked: the same with every item as a candidate; empty if the protocol masks none.
      repeat: `[rows]` bool, whether the user has an earlier event with the held-out item; None
        where a row is a user.
      cold: `[rows]` bool, whether the model learns from no event of the held-out item; None if
        rows have several held-out items.
    """

    users: np.ndarray
    masked: dict[str, np.ndarray]
    unmasked: dict[str, np.ndarray]
    repeat: np.ndarray | None = None
    cold: np.ndarray | None = None

    def means(self, group: str) -> dict[str, float]:
        """Means over rows, named `group/metric` and `group_unmasked/metric`."""
        means = {f"{group}/{name}": float(v.mean()) for name, v in self.masked.items()}
        means |= {f"{group}_unmasked/{name}": float(v.mean()) for name, v in self.unmasked.items()}
        return means


class RankingEvaluator:
    """Ranks held-out items against the whole catalogue.

    Args:
      model: the recommender.
      seen: events before the held-out ones: users' histories, and the items to mask.
      held_out: held-out events, sorted by user, then time.
      mesh: devices.
      ks: cut-offs of the metrics.
      users_per_batch: largest number of rows of a batch (less for a large catalogue).
      protocol: what is ranked, and against what.
      learned: events that the model learns from; None: the first of `seen`.

    Raises:
      UserError: if there is no held-out event.
    """

    def __init__(
        self,
        model: Model,
        *,
        seen: Sequence[Interactions],
        held_out: Interactions,
        mesh: Mesh,
        ks: Sequence[int] = (5, 10, 20),
        users_per_batch: int = 4096,
        protocol: RankingProtocol = RankingProtocol(),  # noqa: B008 (immutable)
        learned: Interactions | None = None,
    ):
        if len(held_out) == 0:
            raise UserError("no held-out event to evaluate on")
        self._model, self._mesh, self._ks = model, mesh, tuple(ks)
        self._masks = protocol.mask_seen
        self._rows = rows_of(protocol, seen, held_out, model.num_users, learned=learned)
        self._targets = self._rows.targets
        self.users = self._rows.user
        self._plan = list(
            planning.plan(
                self._rows,
                num_items=model.num_items,
                history_length=model.history_length,
                narrow=getattr(model, "narrow_histories", False),
                mask_seen=self._masks,
                limit=users_per_batch,
                cpu=mesh.devices.flat[0].platform == "cpu",
            )
        )
        self._cache: list[dict[str, jax.Array]] | None = None

    def __call__(self, params: Any, frozen: Mapping[str, jax.Array]) -> PerUser:
        """Evaluates parameters; all processes get the same result.

        Raises:
          UserError: if a held-out item's score is NaN or infinite.
        """
        tables = item_and_user_tables(self._model, params, frozen)
        ranks = []
        for batch in self._batches():
            ranks.append(rank_batch(self._model, self._mesh, params, tables, batch))
            if must_wait(self._mesh):
                jax.block_until_ready(ranks[-1])
        # Batches are grouped by shape; ranks go back to the order of rows and their targets.
        per_target, scored = np.zeros((2, len(self._targets.items)), np.int64), 0
        for (rows, *_), batch in zip(self._plan, gather(ranks), strict=True):
            count = self._targets.lengths[rows]
            column = np.arange(batch.masked.shape[1])
            real = column < count[:, None]
            place = (self._targets.start[rows][:, None] + column)[real]
            per_target[0, place] = batch.masked[: len(rows)][real]
            per_target[1, place] = batch.unmasked[: len(rows)][real]
            scored += int(batch.scored[: len(rows)][real].sum())
        check_scored(scored, len(self._targets.items))
        if self._masks and self._rows.repeat is not None:  # a row has one target
            # Beyond every cut-off, also one beyond the catalogue: a miss.
            per_target[0, self._rows.repeat] = max(self._model.num_items, *self._ks) + 1
        masked, unmasked = (ranking_metrics(r, self._targets.start, self._ks) for r in per_target)
        unmasked = unmasked if self._masks else {}
        return PerUser(self.users, masked, unmasked, self._rows.repeat, self._rows.cold)

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of the plan; small ones stay on the device for the next call."""
        if self._cache is not None:
            yield from self._cache
            return
        cells = sum(len(rows) * sum(widths) for rows, *widths in self._plan)
        cache: list[dict[str, jax.Array]] = []
        for rows, seen, targets, history in self._plan:
            padded = _pad_rows(rows, self._mesh)
            batch = user_batch(
                self._model,
                self._rows.history,
                self.users[padded],
                seen,
                self._mesh,
                end=self._rows.end[padded],
                mask_seen=self._masks,
                length=history,
            )
            target = self._targets.padded(padded, targets, fill=-1)
            target[len(rows) :] = -1
            batch["target"] = put_replicated(target, self._mesh)
            if cells <= CACHED_CELLS:
                cache.append(batch)
            yield batch
        if cells <= CACHED_CELLS:
            self._cache = cache


def check_scored(scored: int, total: int) -> None:
    """Checks that a recommender's scores of held-out items are finite.

    Args:
      scored: number of held-out items whose score is neither NaN nor infinite.
      total: number of held-out items.

    Raises:
      UserError: if the two differ.
    """
    if scored < total:
        raise UserError(
            f"the recommender's scores of {total - scored:,} of {total:,} held-out items are NaN "
            "or infinite: its parameters are broken; lower its learning rate or set clip_norm"
        )


@functools.partial(jax.jit, static_argnums=0)
def item_and_user_tables(model: Model, params: Any, frozen: Mapping[str, jax.Array]) -> Any:
    """Computes `model.tables`, compiled once for equal models."""
    return model.tables(params, frozen)


@functools.partial(jax.jit, static_argnums=(0, 1))
def rank_batch(model: Model, mesh: Mesh, params: Any, tables: Any, batch: dict) -> Ranks:
    """Ranks of a batch's held-out items, compiled once for equal models and shapes."""
    state = model.user_state(params, tables, batch)
    return target_ranks(
        state,
        tables.item,
        batch["seen"],
        batch["target"],
        score=model.scores,
        num_items=model.num_items,
        mesh=mesh,
    )


def _pad_rows(users: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Repeats the last user until the mesh divides their number."""
    return np.pad(users, (0, -len(users) % batch_divisor(mesh)), mode="edge")


def user_batch(
    model: Model,
    history: Histories,
    users: np.ndarray,
    width: int,
    mesh: Mesh,
    *,
    end: np.ndarray | None = None,
    mask_seen: bool = True,
    length: int | None = None,
) -> dict[str, jax.Array]:
    """Ranking batch on the devices: `user`, `seen` `[batch, width]` and inputs of the model.

    The last user is repeated until the mesh divides the batch.

    Args:
      model: the recommender.
      history: events of all users.
      users: `[batch]` rows.
      width: size of the lists of seen items.
      mesh: devices.
      end: `[batch]`, where in `history.items` each user's history ends; by default at its end.
      mask_seen: False leaves the lists of seen items empty.
      length: width of the histories; the latest events are kept. None: `history_length`.
    """
    end = history.start[users + 1] if end is None else end
    rows, end = _pad_rows(users, mesh), _pad_rows(end, mesh)
    seen = np.full((len(rows), width), -1, np.int32)
    if mask_seen:
        seen = distinct(history.padded(rows, width, fill=-1, end=end))
    batch = {"user": rows.astype(np.int32), "seen": seen}
    if model.history_length:
        length = model.history_length if length is None else length
        batch["history"] = history.padded(rows, length, end=end)
        batch["length"] = np.minimum(end - history.start[rows], length).astype(np.int32)
        if getattr(model, "reads_times", False):
            batch |= history.clocks(rows, length, end=end)
    return put_replicated(batch, mesh)


def distinct(items: np.ndarray) -> np.ndarray:
    """Replaces repeats in the rows of `items` `[rows, width]` by -1 (padding); sorts each row."""
    order = np.sort(items, axis=1)
    order[:, 1:][order[:, 1:] == order[:, :-1]] = -1
    return order


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Top-k lists.

    Attributes:
      users: `[users]` rows.
      items: `[users, k]` rows, best first; -1 if there are fewer than k candidates.
      scores: `[users, k]` float32.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray


def recommend(
    model: Model,
    params: Any,
    frozen: Mapping[str, jax.Array],
    *,
    history: Histories,
    users: np.ndarray,
    k: int,
    mesh: Mesh,
    mask_seen: bool = True,
) -> Iterator[Recommendations]:
    """Yields the k best items of `users` in batches, in the order of `users`.

    Args:
      model: the recommender.
      params: its parameters.
      frozen: its frozen arrays.
      history: events of all users.
      users: `[users]` rows.
      k: length of a list.
      mesh: devices.
      mask_seen: leave out what a user has an event with.
    """
    with use_mesh(mesh):
        tables = item_and_user_tables(model, params, frozen)
    k = min(k, model.num_items)

    @jax.jit
    def best(params, tables, batch):
        state = model.user_state(params, tables, batch)
        return top_k(
            state,
            tables.item,
            batch["seen"],
            k=k,
            score=model.scores,
            num_items=model.num_items,
            mesh=mesh,
        )

    size = max(1, min(len(users), 1024, planning.CELLS // model.num_items))
    for first in range(0, len(users), size):
        rows = users[first : first + size]
        width = planning.bucket(int(history.lengths[rows].max(initial=1)), 64)
        # The last batch gets as many rows as the others, so it needs no compilation of its own.
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        with use_mesh(mesh):  # not across the yield: the caller's mesh is the caller's
            batch = user_batch(model, history, padded, width, mesh, mask_seen=mask_seen)
            items, scores = gather(best(params, tables, batch))
        yield Recommendations(rows, items[: len(rows)], scores[: len(rows)].astype(np.float32))
