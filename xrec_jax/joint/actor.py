"""The explainer of a joint run: its warm start, its answers, and its PPO updates."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.trees import not_finite
from xrec_jax.data.pipeline import BatchSource, iterate
from xrec_jax.joint.guards import check_updates
from xrec_jax.joint.rollout import Answers, generate, rows
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.llm.model import heads
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import gather
from xrec_jax.training.checkpoint import Checkpoints
from xrec_jax.training.loop import LoopOptions, compile_step, fit
from xrec_jax.training.optimizers import optimizer
from xrec_jax.training.rl.actor_critic import (
    critic_values,
    init_critic,
    init_policy,
    policy_log_probs,
)
from xrec_jax.training.rl.losses import PolicyOptions
from xrec_jax.training.rl.ppo import minibatches, policy_optimizer, ppo_step, sft_step
from xrec_jax.training.state import TrainState, initializer


class AnswerRows(NamedTuple):
    """Given answers as rows of a training set; see `data.pipeline.Rows`."""

    arrays: Mapping[str, np.ndarray]

    @property
    def num_rows(self) -> int:
        return len(self.arrays["ids"])

    def rows(self, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows as they are, the same every epoch."""
        del epoch
        return {name: array[rows] for name, array in self.arrays.items()}


class PolicyTask:
    """The language side of one seed.

    Args:
      setup: what the seeds share.
      user_dim: size of the recommender's user state.
    """

    def __init__(self, setup: StateSetup, *, user_dim: int):
        self.setup, self.shared, self.user_dim = setup, setup.shared, user_dim
        cfg = self.shared.cfg
        self.vectors = cfg.soft_prompt.vectors
        self.has_critic = cfg.ppo.estimator == "gae"
        # Answers that share a row, and so the reading of their prompt.
        self.group = cfg.rollout.group_size if cfg.ppo.share_prompts else 1
        self.options = PolicyOptions(
            temperature=cfg.rollout.temperature,
            clip=cfg.ppo.clip,
            value_clip=cfg.ppo.value_clip,
            value_weight=cfg.ppo.value_weight,
            entropy_weight=cfg.ppo.entropy_weight,
            kl_stop=cfg.ppo.kl_stop,
            placeholder=self.shared.placeholder,
        )
        self._compiled_step: Any = None
        ppo = cfg.ppo
        steps = ppo.epochs * (cfg.rollout.per_round // ppo.batch_size)  # of a round
        moving = cfg.rounds - (ppo.critic_warmup if self.has_critic else 0)
        self.tx = policy_optimizer(
            optimizer(ppo.policy, max(0, moving) * steps), optimizer(ppo.critic, cfg.rounds * steps)
        )

    @property
    def _sizes(self) -> dict[str, Any]:
        return {
            "model": self.shared.base.model.config,
            "user_dim": self.user_dim,
            "vectors": self.vectors,
            "inner": self.shared.cfg.soft_prompt.inner,
        }

    def _init_policy(self, key: jax.Array) -> Any:
        return init_policy(key, lora=self.shared.lora, **self._sizes)

    def fresh(self, seed: int) -> Any:
        """An untrained policy, on its devices."""
        return self._fresh(seed).params

    @functools.cached_property
    def _fresh(self) -> Any:
        return initializer(self._init_policy, optax.identity(), mesh=self.shared.mesh)

    @functools.cached_property
    def _both(self) -> Any:
        def init(key):
            critic = {}
            if self.has_critic:
                critic = init_critic(key, lora=self.shared.critic_lora, **self._sizes)
            return {"policy": self._init_policy(key), "critic": critic}

        return initializer(init, self.tx, mesh=self.shared.mesh)

    def initial(self, seed: int, policy: Any) -> TrainState:
        """State of policy and critic at the beginning of the rounds.

        Args:
          seed: of the critic.
          policy: parameters of the warm start.
        """
        state = self._both(seed)
        policy = jax.tree.map(jnp.copy, policy)
        return state.replace(params=state.params | {"policy": policy}, best_params=None)

    # The warm start.

    def warm_start(self, seed: int, users: np.ndarray, stage: str, writer: MetricWriter) -> Any:
        """Tunes adapter and projector on the teacher's pairs, or restores what was tuned.

        Args:
          seed: of initial values and order.
          users: `[S, D]` user states of all states.
          stage: its folder of checkpoints and name in the log.
          writer: metric log.
        """
        setup, cfg = self.setup, self.shared.cfg.sft
        chosen = np.array(sorted(setup.states.teacher), np.int64)
        tokenizer = self.shared.base.tokenizer
        ids = tokenizer.encode_batch([setup.states.teacher[int(s)] for s in chosen], bos=False)
        # The ending token is learned as any other: rewards take off from answers that do not end.
        answers = [[*row, tokenizer.eos_id] for row in ids]
        size = max(self.shared.size, max(map(len, answers)))
        tokens = np.zeros((len(answers), size), np.int32)
        for row, answer in enumerate(answers):
            tokens[row, : len(answer)] = answer
        length = np.array([len(answer) for answer in answers], np.int32)
        longest = int(setup.prompts.length[chosen].max())
        arrays = rows(setup.prompts, chosen, tokens, length, longest=longest)
        arrays |= {"user": users[chosen]}
        source = BatchSource(
            AnswerRows(arrays),
            batch_size=cfg.train.batch_size,
            seed=seed,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        epoch = source.steps_per_epoch
        tx = optimizer(cfg.train, epoch * cfg.train.epochs)
        step = functools.partial(
            sft_step,
            model=self.shared.base.model,
            lora=self.shared.lora,
            optimizer=tx,
            answer_size=size,
            placeholder=self.shared.placeholder,
            accumulation=cfg.train.accumulation,
        )
        state = initializer(self._init_policy, tx, mesh=self.shared.mesh)(seed)
        state = state.replace(frozen={"base": self.shared.base.params})
        options = LoopOptions(
            total_steps=epoch * cfg.train.epochs,
            log_every=epoch,
            checkpoint_every=epoch * cfg.train.checkpoint_every,
            examples_per_step=cfg.train.batch_size,
            steps_per_epoch=epoch,
            steps_before=self.shared.steps_before(seed),
        )
        with Checkpoints(self.shared.rundir.checkpoints(stage)) as checkpoints:
            state, _ = fit(
                state,
                compile_step(step, state),
                iterate(source, prefetch=cfg.train.prefetch),
                stage=stage,
                mesh=self.shared.mesh,
                options=options,
                checkpoints=checkpoints,
                writer=writer,
            )
        return state.params

    # Answers.

    @functools.cached_property
    def _soft(self) -> Any:
        @jax.jit
        def soft(projector, table, users):
            return heads.soft_vectors(projector, table[self.shared.placeholder], users)

        return soft

    def answer(
        self,
        policy: Any,
        states: np.ndarray,
        users: np.ndarray,
        *,
        key: tuple[int, ...],
        exploring: bool = False,
    ) -> Answers:
        """Explanations of some states; `policy` None is the untuned base.

        Args:
          policy: its tree.
          states: `[n]`.
          users: `[S, D]` user states of all states.
          key: of the draws.
          exploring: sampled as in rollouts, otherwise as the recommender reads them.
        """
        setup, adapter, vectors = self.setup, None, None
        if policy is not None:
            adapter = Adapter(policy["lora"], self.shared.lora)
            if self.vectors:
                table = self.shared.base.params["embed"]["table"]
                vectors = gather(self._soft(policy["projector"], table, users[states]))
        return generate(
            self.shared.sampler,
            setup.prompts,
            states,
            adapter=adapter,
            vectors=vectors,
            sampling=self.shared.exploring if exploring else self.shared.sampling,
            size=self.shared.size,
            key=key,
        )

    # What the trainer says of a rollout.

    @functools.cached_property
    def _assess(self) -> Any:
        shared, options = self.shared, self.options

        @jax.jit
        def assess(params, reference, base, batch):
            common = {
                "model": shared.base.model,
                "answer_size": shared.size,
                "placeholder": options.placeholder,
            }
            log_probs, entropy = policy_log_probs(
                params["policy"],
                base,
                batch,
                lora=shared.lora,
                temperature=options.temperature,
                entropy=True,
                **common,
            )
            outputs = {
                "log_probs": log_probs,
                "entropy": entropy,
                "reference": policy_log_probs(
                    reference,
                    base,
                    batch,
                    lora=shared.lora if reference else None,
                    temperature=options.temperature,
                    **common,
                ),
            }
            if self.has_critic:
                outputs["values"] = critic_values(
                    params["critic"], base, batch, lora=shared.critic_lora, **common
                )
            return outputs

        return assess

    def assess(self, params: Any, reference: Any, batch: Mapping[str, np.ndarray]) -> dict:
        """Log-probabilities, entropy, the reference's and values of answers, `[n, A]` each."""
        shared, size = self.shared, self.shared.cfg.ppo.batch_size // self.group
        outputs = []
        # As many rows at a time as an update takes: what fits there fits here.
        for first in range(0, len(batch["ids"]), size):
            part = self._part(batch, np.arange(first, min(first + size, len(batch["ids"]))))
            made = self._assess(params, reference, shared.base.params, shared.put(part))
            outputs.append(gather(made))
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def update(
        self, state: TrainState, batch: Mapping[str, np.ndarray], *, number: int
    ) -> tuple[TrainState, dict[str, float]]:
        """All epochs of a round.

        Args:
          state: of policy and critic.
          batch: rows with old log-probabilities, values, advantages and returns.
          number: of the round, from 1.

        Returns:
          The state after it, and mean metrics over the updates (maxima where a name says so).

        Raises:
          UserError: if a metric is not finite.
        """
        cfg, shared = self.shared.cfg.ppo, self.shared
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
        size = cfg.batch_size // self.group
        orders = minibatches(len(batch["ids"]), size, epochs=cfg.epochs, key=key)
        # The policy waits until the critic says something of its values.
        trains = np.float32(number > cfg.critic_warmup or not self.has_critic)
        state = state.replace(frozen={"base": shared.base.params})
        compiled = self._compiled(state)
        history: list[dict[str, float]] = []
        for order in orders:
            stopped = False
            for chosen in order:
                part = self._part(batch, chosen)
                part["train_policy"] = np.full(len(chosen), trains, np.float32)
                state, metrics = compiled(state, shared.put(part))
                history.append({name: float(gather(v)) for name, v in metrics.items()})
                # Beyond `kl_stop` the rollout says too little of the policy: the round is over.
                stopped = history[-1]["ppo/stopped"] > 0
                if stopped:
                    break
            if stopped:
                break
        means = {}
        for name in history[0]:
            reduce = np.max if name.endswith("_max") else np.mean
            means[name] = float(reduce([metrics[name] for metrics in history]))
        # A finite loss says nothing of weights that its last update broke.
        broken = dict.fromkeys(not_finite(state.params), math.nan)
        check_updates(
            means | broken, "joint.ppo.policy.learning_rate or joint.ppo.critic.learning_rate"
        )
        means["ppo/updates"] = float(len(history) - history[-1]["ppo/stopped"])
        return state.replace(frozen={}), means

    def _part(self, batch: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows, with all answers that share them."""
        count = len(batch["ids"])
        return {
            name: array.reshape(count, -1, *array.shape[1:])[rows].reshape(-1, *array.shape[1:])
            for name, array in batch.items()
        }

    def _compiled(self, state: TrainState) -> Any:
        if self._compiled_step is None:
            step = functools.partial(
                ppo_step,
                model=self.shared.base.model,
                policy_lora=self.shared.lora,
                critic_lora=self.shared.critic_lora,
                optimizer=self.tx,
                options=self.options,
                accumulation=self.shared.cfg.ppo.accumulation,
            )
            self._compiled_step = compile_step(step, state)
        return self._compiled_step
