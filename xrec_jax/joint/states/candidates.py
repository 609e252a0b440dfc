"""Cases of the `joint` stage where every candidate of a state is explained, to be reranked.

A case is a state with one of its candidates: the C best unseen items of the recommender alone, by
the history before the state. A training state whose target is not among them gets it in place of
the last one, as nothing could be learned from it otherwise; held-out states never do. Candidates
stand in the order of their ids, so no place among them tells anything, and a case is made of user,
history and candidate alone: nothing in it depends on which candidate is the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.histories import Histories
from xrec_jax.joint.states.base import PARTS, TRAIN, JointStates


class CaseTexts(NamedTuple):
    """What a source has to say of cases.

    Attributes:
      prompts: of all cases.
      teacher: good pairs of the cases that may teach (index to text).
      planted: true reasons of each case; None where unknown.
      said: the same in words; None where unknown.
      template: made by rule, no model.
      summary: what was visited, without reasons.
    """

    prompts: Sequence[str]
    teacher: Mapping[int, str]
    planted: Sequence[Any] | None
    said: Sequence[str] | None
    template: Sequence[str]
    summary: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointCases(JointStates):
    """Cases in the form of states, so that all that writes and keeps texts serves both.

    Cases of a state stand together, in the order of the states. `user`, `before`, `target`, `part`,
    `history` and `group` are the state's; texts and `features` are the case's own.

    Attributes:
      states: the states, S of them.
      state: `[cases]` int32 rows of `states`.
      candidate: `[cases]` int32 items.
      candidates: `[S, C]` int32 items in ascending order, -1 at the end where fewer are unseen.
      slots: `[S, C]` int32, the case of each candidate; -1 where there is none.
      said: planted reasons in words; None where unknown.
    """

    states: JointStates
    state: np.ndarray
    candidate: np.ndarray
    candidates: np.ndarray
    slots: np.ndarray
    said: Sequence[str] | None

    @property
    def unshown_target(self) -> np.ndarray:
        """-1 where the case's own candidate is the target: every prompt shows its candidate."""
        return np.where(self.target == self.candidate, -1, self.target)

    def records(self, cases: np.ndarray, items: np.ndarray) -> list[dict[str, str]]:
        """What names cases in files; `items` are the ids of all items."""
        return [{"item": str(items[i])} for i in self.candidate[cases].tolist()]


def placed(best: np.ndarray, states: JointStates) -> np.ndarray:
    """Candidates of states in the order of their ids.

    Args:
      best: `[S, C]` retrieved items, best first, -1 behind them.
      states: S states; only training states get their target.

    Returns:
      `[S, C]` int32.
    """
    candidates = np.array(best, np.int32)
    missing = (states.part == TRAIN) & (states.target >= 0)
    missing &= ~(candidates == states.target[:, None]).any(axis=1)
    last = np.maximum((candidates >= 0).sum(axis=1) - 1, 0)
    rows = np.flatnonzero(missing)
    candidates[rows, last[rows]] = states.target[rows]
    order = np.where(candidates < 0, np.iinfo(np.int32).max, candidates)
    order.sort(axis=1)
    return np.where(order == np.iinfo(np.int32).max, -1, order).astype(np.int32)


def slots_of(candidates: np.ndarray) -> np.ndarray:
    """`[S, C]` int32: numbers of the real candidates, row after row; -1 elsewhere."""
    real = candidates >= 0
    return np.where(real, np.cumsum(real.reshape(-1)).reshape(real.shape) - 1, -1).astype(np.int32)


def cases_of(states: JointStates, candidates: np.ndarray, write: Any) -> JointCases:
    """Cases of states.

    Args:
      states: of the run.
      candidates: `[S, C]` from `placed`.
      write: `(state [cases], candidate [cases]) -> CaseTexts`.
    """
    slots = slots_of(candidates)
    state, column = np.nonzero(slots >= 0)
    candidate = candidates[state, column]
    texts = write(state, candidate)
    history, lengths = states.history, states.history.lengths[state]
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    events = np.repeat(history.start[state] - start[:-1], lengths) + np.arange(int(start[-1]))
    features = np.concatenate([states.features[state], states.item_features[candidate]], axis=1)
    return JointCases(
        user=states.user[state],
        before=states.before[state],
        target=states.target[state],
        part=states.part[state],
        history=Histories(history.items[events], start),
        prompts=texts.prompts,
        teacher=texts.teacher,
        planted=texts.planted,
        template=texts.template,
        summary=texts.summary,
        features=features,
        item_features=states.item_features,
        item_texts=states.item_texts,
        titles=states.titles,
        groups=states.groups,
        group=None if states.group is None else states.group[state],
        notes=_notes(states, candidates),
        states=states,
        state=state.astype(np.int32),
        candidate=candidate.astype(np.int32),
        candidates=candidates,
        slots=slots,
        said=texts.said,
    )


def _notes(states: JointStates, candidates: np.ndarray) -> tuple[str, ...]:
    """How often the target is among the candidates: what no reranking can exceed."""
    hit = (candidates == states.target[:, None]).any(axis=1) & (states.target >= 0)
    shares = []
    for number, name in enumerate(PARTS):
        rows = states.rows(number)
        if number != TRAIN and len(rows):
            shares.append(f"{hit[rows].mean():.0%} of {name} states")
    return (*states.notes, f"the target is among the candidates in {' and '.join(shares)}")


def drawn_teachers(cases: np.ndarray, count: int) -> np.ndarray:
    """`count` of the cases that may teach, drawn by key, in ascending order.

    Raises:
      UserError: if there are fewer.
    """
    if len(cases) < count:
        raise UserError(
            f"joint.sft.examples={count}, but only {len(cases)} training cases can teach; lower it"
        )
    return np.sort(
        cases[rng.permutation(rng.fold(0, Stream.CANDIDATE_TEACHERS), len(cases))[:count]]
    )
