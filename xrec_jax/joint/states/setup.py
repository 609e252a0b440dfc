"""What a joint run derives from its states: prompts, divisions, targets and training rows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.joint.monitors import Monitors
from xrec_jax.joint.rewards import EvidenceContext, Measure, evidence_of
from xrec_jax.joint.rollout import Prompts, tokenized
from xrec_jax.joint.setup import JointSetup, placeholder_of
from xrec_jax.joint.states.base import TRAIN, VALID, JointStates
from xrec_jax.joint.states.files import file_states
from xrec_jax.joint.states.world import world_states
from xrec_jax.llm import run_base
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.parallel.mesh import put_replicated
from xrec_jax.recommenders.explained.match import item_projection

SOURCES = {"world": world_states, "file": file_states}


def states_of(config: Any, data: RunData) -> JointStates:
    """The states of a run.

    Raises:
      UserError: on an unknown source, or what the source refuses.
    """
    source = config.joint.states.source
    if source not in SOURCES:
        raise UserError(f"joint.states.source={source!r} is not valid; valid: world, file")
    return SOURCES[source](config, data)


def prompts_of(config: Any, states: JointStates, tokenizer: Tokenizer) -> Prompts:
    """Prompts as tokens, with places for soft vectors at their end.

    Raises:
      UserError: if the tokenizer has no token for those places.
    """
    text, placeholder = placeholder_of(config, tokenizer)
    vectors, template = config.joint.soft_prompt.vectors, run_base.template(config)
    # Soft vectors come last: prompts then share what stands before, and it is read once.
    suffix = text * vectors + "\n" if vectors else ""
    ids = [
        tokenizer.prompt(prompt.rstrip("\n") + "\n" + suffix, template=template)
        for prompt in states.prompts
    ]
    return tokenized(ids, placeholder=placeholder, vectors=vectors)


def check_lengths(config: Any, prompts: Prompts, most: int) -> None:
    """Refuses prompts that leave no place for an answer in `most` positions.

    Raises:
      UserError: says what is too long.
    """
    longest, size = prompts.ids.shape[1], config.joint.explain.max_new_tokens
    if longest + size > most:
        raise UserError(
            f"joint: a prompt of {longest} tokens and {size} more of an answer do not fit the "
            f"{most} that the model takes; lower joint.states.history or "
            "joint.explain.max_new_tokens"
        )


class TrainingRows(NamedTuple):
    """Training rows of the recommender.

    Attributes:
      state: `[n]` whose text is read.
      target: `[n]` int32 item that comes next.
      history: events before the target, the latest ones included; one row each.
    """

    state: np.ndarray
    target: np.ndarray
    history: Histories


@dataclasses.dataclass(frozen=True, eq=False)
class StateSetup:
    """What depends on the states of a run, or on the candidates of one of its seeds.

    Attributes:
      shared: what does not.
      states: all of them, S.
      learned: training states that the recommender learns from.
      rolled_out: training states that answers are sampled for.
      cached: training states whose explanations are kept, to be read.
      tracked_users: validation users whose figures are taken every round.
    """

    shared: JointSetup
    states: JointStates
    learned: np.ndarray
    rolled_out: np.ndarray
    cached: np.ndarray
    tracked_users: np.ndarray

    def check_lengths(self) -> None:
        """Refuses prompts that leave no place for an answer.

        Raises:
          UserError: says what is too long.
        """
        # Before anything is trained: a sampler would find it only rounds later.
        most = self.shared.base.model.config.max_positions
        check_lengths(self.shared.config, self.prompts, most)

    @functools.cached_property
    def prompts(self) -> Prompts:
        """Prompts as tokens, with places for soft vectors at their end."""
        return prompts_of(self.shared.config, self.states, self.shared.base.tokenizer)

    @functools.cached_property
    def monitors(self) -> Monitors:
        """Monitors against reward hacking; the warm start's texts are their reference."""
        marker = "Why not:" if self.shared.cfg.recommender.sides != "why" else None
        return Monitors(list(self.states.teacher.values()), self.states.titles, marker=marker)

    @property
    def match_features(self) -> int:
        """Features of the match with the items' texts; 0 where no item has one."""
        if not any(self.states.item_texts):
            return 0
        return min(self.shared.cfg.recommender.match, self.shared.encoder.width)

    @functools.cached_property
    def item_encoding(self) -> tuple[np.ndarray, np.ndarray]:
        """The items' own texts, encoded as explanations are: `[items, E]`, and which have one."""
        return self.shared.encoder(self.states.item_texts)

    def item_projection(self, features: int) -> np.ndarray:
        """The directions in which the items' own texts differ: `[E, features]`."""
        return item_projection(*self.item_encoding, features)

    def history_reading(self) -> dict[str, np.ndarray]:
        """What a recommender reads in place of explanations: the items of each state's history.

        Returns:
          `encoding` `[S, 2, E]` float32, the mean over the items with a text as the first part, and
          `present` `[S, 2]`; the second part is never there.
        """
        history, (encoding, present) = self.states.history, self.item_encoding
        shape = len(self.states), 2
        mean, known = np.zeros((*shape, encoding.shape[1]), np.float32), np.zeros(shape, bool)
        # State by state: all events at once would take much memory.
        for state in range(len(self.states)):
            items = history.items[history.start[state] : history.start[state + 1]]
            items = items[present[items]]
            if len(items):
                mean[state, 0], known[state, 0] = encoding[items].mean(axis=0), True
        return {"encoding": mean, "present": known}

    @functools.cached_property
    def evidence(self) -> dict[str, Measure]:
        """What measures the evidence of reward parts, by their names.

        Raises:
          UserError: if some cannot be measured, such as by a judge that was trained on other
            weights.
        """
        shared = self.shared
        ctx = EvidenceContext(
            shared.config, self.states, shared.base, mesh=shared.mesh, rundir=shared.rundir
        )
        return {name: e.load(ctx) for name, e in evidence_of(shared.cfg.rewards).items()}

    @functools.cached_property
    def taught_users(self) -> np.ndarray:
        """Users of the warm start's texts; no figure counts them, because they may be known."""
        return taught_users(self.states)

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """`[S, reach]` int32: the training items that a state's text serves for; -1 for none.

        The item that comes next is the first. What a user writes today helps with what they choose
        later, and nothing that is chosen later stands in the text.
        """
        data, states, reach = self.shared.data, self.states, self.shared.cfg.states.reach
        targets = np.full((len(states), reach), -1, np.int32)
        targets[:, 0] = states.target
        if reach == 1 or data.world is None:
            return targets
        trained = Histories.of([data.split.train], data.dataset.num_users)
        rows = states.rows(TRAIN)
        for place, s in enumerate(rows):
            user, before = states.user[s], int(states.before[s])
            after = rows[place + 1 : place + 2]
            last = int(trained.lengths[user])
            # A text serves until the user's next one, which is newer, takes its place.
            if len(after) and states.user[after[0]] == user:
                last = int(states.before[after[0]])
            last = min(last, before + reach)
            first = trained.start[user]
            targets[s, : last - before] = trained.items[first + before : first + last]
        return targets

    @functools.cached_property
    def training_rows(self) -> TrainingRows:
        """What the recommender is trained on: each learned state with each of its targets."""
        states, pieces, ends = self.states, [], [0]
        which, target = [], []
        for s in self.learned.tolist():
            past = states.history.items[states.history.start[s] : states.history.start[s + 1]]
            own = self.targets[s][self.targets[s] >= 0]
            # The text stays as it was written; the history grows by the targets before.
            for number, item in enumerate(own.tolist()):
                which.append(s)
                target.append(item)
                pieces += [past, own[:number]]
                ends.append(ends[-1] + len(past) + number)
        items = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        return TrainingRows(
            np.array(which, np.int64),
            np.array(target, np.int32),
            Histories(items.astype(np.int32), np.array(ends, np.int64)),
        )

    @functools.cached_property
    def content(self) -> jax.Array:
        """`[vocab]` bool: tokens of the words that texts of the warm start and prompts share.

        They carry facts: what a good explanation says and its prompt shows.
        """
        base = self.shared.base
        content = np.zeros(base.model.config.vocab_size, bool)
        for state, text in self.states.teacher.items():
            shown = set(self.prompts.ids[state, : self.prompts.length[state]].tolist())
            ids = base.tokenizer.encode(text, bos=False)
            content[[token for token in ids if token in shown]] = True
        return put_replicated(content, self.shared.mesh)


def state_setup(shared: JointSetup, states: JointStates) -> StateSetup:
    """The setup of the plain states of a run.

    Raises:
      UserError: if `joint.rollout.held_out` leaves a side without a state.
    """
    learned, rolled_out = states.divided(shared.cfg.rollout.held_out)
    return StateSetup(
        shared,
        states,
        learned=learned,
        rolled_out=rolled_out,
        cached=learned,
        tracked_users=tracked_users(states, shared.cfg.valid_users),
    )


def taught_users(states: JointStates) -> np.ndarray:
    """Users that the warm start has a text of."""
    return np.unique(states.user[sorted(states.teacher)])


def tracked_users(states: JointStates, count: int) -> np.ndarray:
    """Draws validation users whose figures are taken every round, by key.

    Args:
      states: of the run.
      count: how many; 0 for all.
    """
    users = states.user[states.rows(VALID)]
    users = users[~np.isin(users, taught_users(states))]
    # Under seed 0, so that all seeds of a run track the same users and their figures compare.
    order = rng.permutation(rng.fold(0, Stream.SHARED_53), len(users))
    return np.sort(users[order[: count or len(users)]])
