"""What the seeds of a joint run share: base, prompts, sampler, encoder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.joint.guards import GuardOptions
from xrec_jax.joint.monitors import Monitors
from xrec_jax.joint.rewards import parts as rewards
from xrec_jax.joint.rewards.judge import RewardJudge, reward_judge
from xrec_jax.joint.rollout import Prompts, tokenized
from xrec_jax.joint.states.base import TRAIN, VALID, JointStates
from xrec_jax.joint.states.files import file_states
from xrec_jax.joint.states.world import world_states
from xrec_jax.llm import run_base
from xrec_jax.llm.encoder import TextEncoder
from xrec_jax.llm.generation.sampler import Sampler
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.llm.model.lora import LoraConfig
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import put_replicated, put_sharded, sharding
from xrec_jax.text.synthetic.taste_pairs import split_pair
from xrec_jax.training import language as train_language

SOURCES = {"world": world_states, "file": file_states}
ROUNDS_AT = 1 << 19  # steps after those before a seed, more than its warm start has
# Texts of one token each that may stand for soft vectors; the first that a tokenizer has is taken.
_PLACEHOLDERS = (" _", " *", " ~", " #", ".", " -", ",")


def states_of(config: Any, data: RunData) -> JointStates:
    """The states of a run.

    Raises:
      UserError: on an unknown source, or what the source refuses.
    """
    source = config.joint.states.source
    if source not in SOURCES:
        raise UserError(f"joint.states.source={source!r} is not valid; valid: world, file")
    return SOURCES[source](config, data)


def placeholder_of(config: Any, tokenizer: Tokenizer) -> tuple[str, int]:
    """Text and id of the token that soft vectors replace; "" and -1 for no soft prompt.

    Raises:
      UserError: if the tokenizer has no such token.
    """
    asked, count = config.joint.soft_prompt.placeholder, config.joint.soft_prompt.vectors
    if not count:
        return "", -1
    for text in (asked,) if asked else _PLACEHOLDERS:
        ids = tokenizer.encode("x" + text * count, bos=False)[-count:]
        if len(ids) == count and len(set(ids)) == 1 and tokenizer.decode(ids).strip():
            return text, int(ids[0])
    raise UserError(
        f"joint.soft_prompt.placeholder={asked!r}: {count} of it in a row are not {count} equal "
        "tokens of this tokenizer; choose another, or joint.soft_prompt.vectors=0"
    )


def prompts_of(config: Any, states: JointStates, tokenizer: Tokenizer) -> Prompts:
    """Prompts as tokens, with places for soft vectors at their end.

    Raises:
      UserError: if the tokenizer has no token for those places.
    """
    text, placeholder = placeholder_of(config, tokenizer)
    vectors, template = config.joint.soft_prompt.vectors, run_base.template(config)
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


def cut_off(config: Any) -> int:
    """Cut-off of the NDCG that stands for all: 10 where it is measured, else the first."""
    ks = tuple(config.ranking.ks)
    return 10 if 10 in ks else int(ks[0])


class Lessons(NamedTuple):
    """Training rows of the recommender.

    Attributes:
      state: `[n]` whose text is read.
      target: `[n]` int32 item that comes next.
      history: events before the target, the latest ones included; rows are lessons.
    """

    state: np.ndarray
    target: np.ndarray
    history: Histories


class JointSetup:
    """Built once a run.

    Args:
      config: of the run.
      data: of the run.
      base: loaded.
      mesh: devices; use the object inside `use_mesh(mesh)`.
      rundir: the run directory.
      steps_before: updates of earlier stages of the run; see `training.loop.LoopOptions`.
    """

    def __init__(
        self,
        config: Any,
        data: RunData,
        base: LoadedBase,
        *,
        mesh: Mesh,
        rundir: RunDir,
        steps_before: int = 0,
    ):
        self._steps_before = steps_before
        self.config, self.asked, self.data = config, config.joint, data
        self.base, self.mesh, self.rundir = base, mesh, rundir
        self.states = states_of(config, data)
        self.size = self.asked.explain.max_new_tokens
        self.guards = GuardOptions.of(self.asked.guards)
        self.weights = rewards.read_weights(self.asked.rewards)
        self.encoder = TextEncoder(base.model, base.params, batch=64, layer=self.asked.encoder)
        self.placeholder = placeholder_of(config, base.tokenizer)[1]
        if self.asked.granularity == "user":  # else a seed's cases have prompts, and states none
            self.check_lengths()

    def check_lengths(self) -> None:
        """Refuses prompts that leave no place for an answer.

        Raises:
          UserError: says what is too long.
        """
        check_lengths(self.config, self.prompts, self.base.model.config.max_positions)

    @functools.cached_property
    def prompts(self) -> Prompts:
        """Prompts as tokens, with places for soft vectors at their end."""
        return prompts_of(self.config, self.states, self.base.tokenizer)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Of the base, for every role that writes."""
        return Sampler(
            self.base.model,
            self.base.params,
            eos=self.base.tokenizer.eos_ids,
            batch=self.config.llm.generation_batch,
        )

    @functools.cached_property
    def lora(self) -> LoraConfig:
        """Of the policy."""
        return train_language.lora_config(self.asked.lora)

    @functools.cached_property
    def critic_lora(self) -> LoraConfig:
        """Of the critic."""
        return train_language.lora_config(self.asked.critic)

    @property
    def sampling(self) -> Sampling:
        """Of the texts that the recommender reads."""
        return Sampling(temperature=self.asked.explain.temperature)

    @property
    def exploring(self) -> Sampling:
        """Of rollouts: nothing but a temperature, so that log-probabilities are the policy's."""
        return Sampling(temperature=self.asked.rollout.temperature)

    @functools.cached_property
    def monitors(self) -> Monitors:
        """Measured against the texts of the warm start."""
        marker = "Why not:" if self.asked.recommender.sides != "why" else None
        return Monitors(list(self.states.teacher.values()), self.states.titles, marker=marker)

    @functools.cached_property
    def learned(self) -> np.ndarray:
        """Training states that the recommender learns from."""
        return self.states.divided(self.asked.rollout.held_out)[0]

    @property
    def cached(self) -> np.ndarray:
        """Training states whose explanations are kept, to be read."""
        return self.learned

    @functools.cached_property
    def rolled_out(self) -> np.ndarray:
        """Training states that explanations are sampled for."""
        return self.states.divided(self.asked.rollout.held_out)[1]

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """`[S, reach]` int32: the training items that a state's text serves for; -1 for none.

        The item that comes next is the first. What a user writes today helps with what they choose
        later, and nothing that is chosen later stands in the text.
        """
        states, reach = self.states, self.asked.states.reach
        found = np.full((len(states), reach), -1, np.int32)
        found[:, 0] = states.target
        if reach == 1 or self.data.world is None:
            return found
        trained = Histories.of([self.data.split.train], self.data.dataset.num_users)
        rows = states.rows(TRAIN)
        for place, s in enumerate(rows):
            user, before = states.user[s], int(states.before[s])
            after = rows[place + 1 : place + 2]
            last = int(trained.lengths[user])
            if len(after) and states.user[after[0]] == user:  # the next text is newer
                last = int(states.before[after[0]])
            last = min(last, before + reach)
            first = trained.start[user]
            found[s, : last - before] = trained.items[first + before : first + last]
        return found

    @functools.cached_property
    def lessons(self) -> Lessons:
        """What the recommender is trained on: each learned state with each of its targets."""
        states, parts, ends = self.states, [], [0]
        which, target = [], []
        for s in self.learned.tolist():
            past = states.history.items[states.history.start[s] : states.history.start[s + 1]]
            own = self.targets[s][self.targets[s] >= 0]
            for number, item in enumerate(own.tolist()):
                which.append(s)
                target.append(item)
                parts += [past, own[:number]]
                ends.append(ends[-1] + len(past) + number)
        items = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return Lessons(
            np.array(which, np.int64),
            np.array(target, np.int32),
            Histories(items.astype(np.int32), np.array(ends, np.int64)),
        )

    @functools.cached_property
    def taught_users(self) -> np.ndarray:
        """Users of the warm start's texts, who are left out of every figure: they may be known."""
        return np.unique(self.states.user[sorted(self.states.teacher)])

    @functools.cached_property
    def valid_users(self) -> np.ndarray:
        """Users whose held-out gain is looked at every round, drawn by key."""
        users = self.states.user[self.states.rows(VALID)]
        users = users[~np.isin(users, self.taught_users)]
        order = rng.permutation(rng.fold(0, Stream.SHARED_53), len(users))
        return np.sort(users[order][: self.asked.valid_users or len(users)])

    @property
    def best_k(self) -> int:
        """Cut-off of the NDCG that is looked at, and that final parameters are chosen by."""
        return cut_off(self.config)

    @functools.cached_property
    def content(self) -> jax.Array:
        """`[vocab]` bool: tokens of the words that texts of the warm start and prompts share.

        They carry facts: what a good explanation says and its prompt shows.
        """
        found = np.zeros(self.base.model.config.vocab_size, bool)
        tokenizer = self.base.tokenizer
        for state, text in self.states.teacher.items():
            shown = set(self.prompts.ids[state, : self.prompts.length[state]].tolist())
            found[[token for token in tokenizer.encode(text, bos=False) if token in shown]] = True
        return put_replicated(found, self.mesh)

    @functools.cached_property
    def judge(self) -> RewardJudge:
        """Of the reward part `judge`; see `joint_judge`."""
        return reward_judge(self.config, self.states, self.base, mesh=self.mesh, rundir=self.rundir)

    def steps_before(self, seed: int) -> int:
        """Of a seed's warm start; see `training.loop.LoopOptions`. Rounds follow at `ROUNDS_AT`."""
        return self._steps_before + (list(self.config.seeds).index(seed) << 20)

    def put(self, tree: Any) -> Any:
        """Host rows, the same on every process, split over the devices."""
        return put_sharded(tree, _split(tree, self.mesh))

    def texts(self, tokens: np.ndarray, length: np.ndarray) -> list[str]:
        """Answers as texts."""
        eos = set(self.base.tokenizer.eos_ids)
        rows = [
            [token for token in row[:count].tolist() if token not in eos]
            for row, count in zip(tokens, length, strict=True)
        ]
        return [text.strip() for text in self.base.tokenizer.decode_batch(rows)]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodings `[n, 2, E]` of both parts of texts, and which parts are there `[n, 2]`."""
        parts = [part for text in texts for part in split_pair(text)]
        limit = self.base.model.config.max_positions
        ids = self.base.tokenizer.encode_batch(parts, bos=False)
        encoding, present = self.encoder([row[:limit] for row in ids])
        return encoding.reshape(len(texts), 2, -1), present.reshape(len(texts), 2)


def _split(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda _: sharding(mesh, "batch"), tree)
