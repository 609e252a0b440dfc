"""What the `joint` stage explains: states of users, with their prompts, targets and controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.text.prompts.templates import Template

PARTS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


@dataclasses.dataclass(frozen=True)
class StatesConfig:
    """Section `joint.states`, without the keys of a file's records.

    Attributes:
      template: registered template of the prompts.
      history: number of entries in a prompt.
      train_states: largest number of states of a user's training events.
      reach: number of events after a training state that its text serves for.
      min_history: number of events before a user's first state.
      max_users: number of explained users, drawn by key; 0: all.
      group: user column of the reward part `group_disparity`; "": none.
    """

    template: str
    history: int
    train_states: int
    reach: int
    min_history: int
    max_users: int
    group: str


@dataclasses.dataclass(frozen=True)
class JointStates:
    """Explained states; S of them, training states first, then valid, then test.

    A user has one valid and one test state at most; their explanations serve all held-out items of
    that user. Users without a state are ranked by the recommender alone.

    Attributes:
      user: `[S]` int32 rows.
      before: `[S]` events of the user that lie before the state; they are its history.
      target: `[S]` int32, the item that comes next; -1 where several are held out.
      part: `[S]` int8, index into `PARTS`.
      history: events before each state, oldest first, whole; rows are states.
      prompts: texts that ask for an explanation pair; they never hold the target as the answer.
      teacher: a good explanation of some training states (index to text), for the warm start.
      planted: true reasons of each state as `evaluation.planted` takes them; None where unknown.
      template: a text made by rule from the attributes in the history, no model.
      summary: a text that says what was visited, without reasons.
      features: `[S, F]` float32, the same facts of user and history as plain numbers.
      item_features: `[items, F2]` float32, attributes of items as plain numbers.
      titles: of all items.
      item_texts: what each item is, in words and without its name, for a recommender to match texts
        with; "" for nothing.
      stated: the tastes that each prompt states, read without a mistake; None where unknown.
      groups: names of user groups.
      group: `[S]` int32 into `groups`, -1 for none.
      notes: what was left out or cut, in words.
    """

    user: np.ndarray
    before: np.ndarray
    target: np.ndarray
    part: np.ndarray
    history: Histories
    prompts: Sequence[str]
    teacher: Mapping[int, str]
    planted: Sequence[Any] | None
    template: Sequence[str]
    summary: Sequence[str]
    features: np.ndarray
    item_features: np.ndarray
    titles: Sequence[str]
    item_texts: Sequence[str] = ()
    stated: Sequence[str] | None = None
    groups: tuple[str, ...] = ()
    group: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.user)

    @property
    def unshown_target(self) -> np.ndarray:
        """`[S]` targets that no text may name, as no prompt shows them; -1 for none."""
        return self.target

    def records(self, states: np.ndarray, items: np.ndarray) -> list[dict[str, str]]:
        """What names states in files beside user and part; `items` are the ids of all items."""
        del items
        return [{} for _ in states]

    def divided(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Training states that the recommender learns from, and those that are rolled out.

        A gain is only worth a reward where the recommender has not learned the answer, so the users
        of rollouts are others than those it is trained on.

        Args:
          share: of the explained users whose states are rolled out; 0: all states serve for both.

        Raises:
          UserError: if either side is left without a state.
        """
        rows = self.rows(TRAIN)
        if not share:
            return rows, rows
        users = np.unique(self.user[rows])
        order = rng.permutation(rng.fold(0, Stream.STATE_SPLIT), len(users))
        kept = users[order[: round(share * len(users))]]
        out = np.isin(self.user[rows], kept)
        if out.all() or not out.any():
            raise UserError(
                f"joint.rollout.held_out={share} leaves no user to train on or to roll out; it "
                "must be from 0 to below 1"
            )
        return rows[~out], rows[out]

    def rows(self, part: int) -> np.ndarray:
        """Indices of the states of a part."""
        return np.flatnonzero(self.part == part)


def check_template(config: Any, template: Template, *, user: str, user_item: str) -> None:
    """Refuses a template that does not ask about what is explained.

    Args:
      config: the whole config.
      template: what `joint.states.template` names.
      user: templates that ask about a user alone.
      user_item: templates that ask about a candidate.

    Raises:
      UserError: names the ones that do.
    """
    cfg = config.joint
    wanted = cfg.granularity == "user_item"
    if bool(template.item) != wanted:
        about = "the user alone" if wanted else "one place"
        raise UserError(
            f"joint.states.template={template.name!r} asks about {about}, but "
            f"joint.granularity={cfg.granularity!r} needs another one: "
            f"{user_item if wanted else user}"
        )


def chosen_states(
    data: RunData,
    *,
    train_states: int,
    min_history: int,
    reach: int = 1,
    users: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Histories]:
    """States of leave-one-out data: `user`, `before`, `target`, `part`, and their histories.

    Args:
      data: of the run.
      train_states: states of a user's training events that are explained, the latest ones.
      reach: events between one of them and the next.
      min_history: events before the first one that is explained.
      users: only these; default all.

    Raises:
      UserError: if nothing is left to train on.
    """
    split, count = data.split, data.dataset.num_users
    trained = Histories.of([split.train], count)
    whole = Histories.of([split.train, split.valid, split.test], count)
    valid, test = (np.bincount(p.user, minlength=count) for p in (split.valid, split.test))
    rows: list[tuple[int, int, int, int]] = []
    learned = np.zeros(count, bool)
    learned[data.learned.user] = True
    chosen = range(count) if users is None else users
    for part, known in ((TRAIN, None), (VALID, valid), (TEST, test)):
        for user in chosen:
            first, seen = int(whole.start[user]), int(trained.lengths[user])
            if known is None and learned[user]:
                steps = {max(min_history, seen - reach * k) for k in range(1, train_states + 1)}
                for before in sorted(step for step in steps if step < seen):
                    rows.append((user, before, int(whole.items[first + before]), part))
            elif known is not None and known[user]:
                before = seen + (int(valid[user]) if part == TEST else 0)
                target = int(whole.items[first + before]) if known[user] == 1 else -1
                rows.append((user, before, target, part))
    users_, lengths, targets, parts = (np.array(column) for column in zip(*rows, strict=True))
    if not (parts == TRAIN).any():
        raise UserError(
            f"joint: no user has {min_history} events before a training event; lower "
            "joint.states.min_history"
        )
    start = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(
        [
            whole.items[whole.start[u] : whole.start[u] + b]
            for u, b in zip(users_, lengths, strict=True)
        ]
    )
    return (
        users_.astype(np.int32),
        lengths.astype(np.int64),
        targets.astype(np.int32),
        parts.astype(np.int8),
        Histories(items.astype(np.int32), start.astype(np.int64)),
    )
