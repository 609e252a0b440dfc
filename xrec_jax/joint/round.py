"""One round: roll out, score, PPO epochs, new explanations, recommender steps, held-out gain."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.joint import guards
from xrec_jax.joint.guards import GuardState, Verdict
from xrec_jax.joint.rewards import parts as rewards
from xrec_jax.joint.rewards.parts import Scored
from xrec_jax.joint.rollout import rows
from xrec_jax.joint.state import Explanations, JointState, Rollout, part_of, training_state
from xrec_jax.parallel.mesh import gather, put_replicated
from xrec_jax.training.rl import kl
from xrec_jax.training.rl.advantages import (
    AdvantageOptions,
    advantages_of,
    answer_mask,
    missing_eos,
    token_rewards,
)

if TYPE_CHECKING:
    from xrec_jax.joint.trainer import SeedRun

Found = dict[str, Any]

LOWER = "joint.recommender.train.learning_rate or joint.ppo.policy.learning_rate"


class Round:
    """The rounds of one seed; holds no state that changes.

    Args:
      run: the seed.
    """

    def __init__(self, run: SeedRun):
        self.run, self.setup, self.asked = run, run.setup, run.setup.asked
        self.monitors = self.setup.monitors()

    # Rolling out.

    def roll_out(self, state: JointState, number: int) -> JointState:
        """Samples explanations of drawn training states with the policy as it is."""
        begin = time.perf_counter()
        states = self._drawn(number)
        made = self.run.policy.answer(
            state.policy["params"]["policy"],
            states,
            self.run.users,
            key=(self.run.seed, 72, number),
            exploring=True,
        )
        host = Rollout(
            state=states.astype(np.int32),
            tokens=made.tokens,
            length=made.length,
            ended=made.ended,
            log_probs=made.log_probs,
            round=np.int32(number),
        )
        self._rollout_seconds = time.perf_counter() - begin
        return state.replace(step=state.step + 1, buffer=put_replicated(host, self.setup.mesh))

    def _drawn(self, number: int) -> np.ndarray:
        """Training states with a target, each `group_size` times; all before any comes again."""
        rows_ = self.setup.rolled_out
        group, count = self.asked.rollout.group_size, self.asked.rollout.per_round
        wanted = count // group
        places = np.arange((number - 1) * wanted, number * wanted)
        epochs = places // len(rows_)
        orders = {
            int(e): rng.permutation(
                rng.fold(self.run.seed, Stream.ROLLOUT_ORDER, int(e)), len(rows_)
            )
            for e in np.unique(epochs)
        }
        chosen = [
            rows_[orders[int(e)][p % len(rows_)]] for e, p in zip(epochs, places, strict=True)
        ]
        return np.repeat(np.array(chosen, np.int64), group)

    # Learning.

    def learn(
        self, state: JointState, guard: GuardState, number: int
    ) -> tuple[JointState, GuardState, Found, Verdict]:
        """Everything of a round after its rollout.

        Returns:
          The state after it, the guards' memory, the round's numbers, and whether to go on.
        """
        run, setup = self.run, self.setup
        buffer: Rollout = gather(state.buffer)
        clock = _Clock(rollout=getattr(self, "_rollout_seconds", 0.0))
        verdict = guards.check_rollouts(
            buffer.ended, buffer.length, setup.guards, state=guard, number=number
        )
        found: Found = {
            "round": number,
            "rollout/length": float(buffer.length.mean()),
            "rollout/ended": float(buffer.ended.mean()),
        }
        if verdict.stop:
            found |= {"verdict": verdict.line(), "stopped": 1}
            return state.replace(step=state.step + 1), guard, found, verdict

        texts = setup.texts(buffer.tokens, buffer.length)
        frozen = run.fused.frozen(run.base_frozen, gather(state.constants))
        score, parts = self._score(state, buffer, texts, frozen, number)
        found |= {k: float(v) for k, v in rewards.metrics(score, parts).items()}
        guards.check_scores(parts, score, setup.guards)
        planted = setup.states.planted
        if planted is not None:
            true = [planted[s] for s in buffer.state]
            f1 = score_texts(texts, true).f1
            found["rollout/planted_f1"] = float(f1.mean())
            if self.asked.rollout.group_size > 1:
                found["rollout/truth_correlation"] = within(
                    score, f1, self.asked.rollout.group_size
                )
        prompts = [setup.states.prompts[s] for s in buffer.state]
        found |= self.monitors.measure(texts, prompts, setup.states.unshown_target[buffer.state])
        clock.mark("scoring")

        batch, told, token_kl = self._advantages(state, buffer, score)
        found |= told
        policy, metrics = run.policy.update(training_state(state.policy, {}), batch, number=number)
        # Entropy of the rollout's policy, whether or not it was updated.
        found |= {k: v for k, v in metrics.items() if k != "ppo/entropy"}
        clock.mark("ppo")

        after = kl.adapt(
            state.controller, token_kl, target=self.asked.kl.target, gain=self.asked.kl.gain
        )
        cache, told = self._refresh(state.cache, policy.params["policy"], number)
        found |= told
        clock.mark("encoding")
        recommender, metrics = run.fused.train(
            training_state(state.recommender, {}),
            frozen,
            {"encoding": cache["encoding"], "present": cache["present"]},
            steps=self.asked.recommender.steps,
            seed=run.seed,
        )
        found |= metrics
        clock.mark("recommender")
        state = state.replace(
            step=state.step + 1,
            policy=part_of(policy),
            recommender=part_of(recommender),
            controller=put_replicated(after, setup.mesh),
            cache=put_replicated(Explanations(**cache), setup.mesh),
        )
        found |= self.held_out(state, number)
        clock.mark("evaluation")
        found |= clock.seconds
        guard, verdict = guards.check_round(found, guard, setup.guards, number=number)
        found |= {"verdict": verdict.line(), "stopped": int(verdict.stop)}
        if verdict.improved:
            best = {"policy": policy.params["policy"], "recommender": recommender.params}
            state = state.replace(best=jax.tree.map(jnp.copy, best))
        return state, guard, found, verdict

    def _score(
        self, state: JointState, buffer: Rollout, texts: list[str], frozen: Any, number: int
    ) -> tuple[Any, dict[str, Any]]:
        """Reward of every rollout, and its parts, on frozen recommender weights."""
        setup = self.setup
        encoding, present = setup.encode(texts)
        scored = self.run.fused.score(
            state.recommender["params"],
            frozen,
            buffer.state.astype(np.int64),
            encoding,
            present,
            key=rng.fold(self.run.seed, Stream.ROLLOUT_OTHERS, number),
            read=self.run.others(state),
        )
        prompts, states = setup.prompts, buffer.state
        group = setup.states.group
        judged = None
        if "judge" in setup.weights:
            judged = setup.judge(states, texts)
        host: Found = scored | {
            "length": buffer.length,
            "ended": buffer.ended,
            "answer": buffer.tokens,
            "answer_mask": np.arange(setup.size) < buffer.length[:, None],
            "prompt": prompts.ids[states],
            "prompt_mask": np.arange(prompts.ids.shape[1]) < prompts.length[states][:, None],
            "group": None if group is None else group[states],
            "judge": judged,
        }
        fields = Scored(**setup.put(host), content=setup.content)
        score, parts = rewards.total(fields, self.asked.rewards)
        return gather(score), gather(parts)

    def _advantages(
        self, state: JointState, buffer: Rollout, score: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Found, float]:
        """Rows for PPO, what the trainer says of the rollout, and the mean KL of an answer."""
        run, setup, asked = self.run, self.setup, self.asked
        states = buffer.state.astype(np.int64)
        group = run.policy.group
        batch = rows(
            setup.prompts,
            states,
            buffer.tokens,
            buffer.length,
            group=group,
            longest=int(setup.prompts.length[setup.rolled_out].max()),
        )
        if run.policy.vectors:
            batch["user"] = run.users[states[::group]]
        reference = run.warm_policy if asked.kl.reference == "warm_start" else {}
        said = run.policy.assess(state.policy["params"], reference, batch)
        mask = np.asarray(answer_mask(buffer.length, setup.size))
        found: Found = guards.check_gap(buffer.log_probs, said["log_probs"], mask, setup.guards)
        beta = float(gather(state.controller.beta))
        apart = kl.estimate(
            jnp.asarray(said["log_probs"]), jnp.asarray(said["reference"]), kind=asked.kl.kind
        )
        total = float(jnp.sum(jnp.where(mask, apart, 0.0)))
        tokens = max(int(mask.sum()), 1)
        whole = missing_eos(jnp.asarray(score), jnp.asarray(buffer.ended), asked.ppo.missing_eos)
        per_token = token_rewards(
            whole,
            jnp.asarray(said["log_probs"]),
            jnp.asarray(said["reference"]),
            jnp.asarray(mask),
            beta=beta,
            kind=asked.kl.kind,
        )
        groups = jnp.arange(len(states)) // asked.rollout.group_size
        options = AdvantageOptions(
            discount=asked.ppo.discount,
            lam=asked.ppo.lam,
            scale=asked.ppo.scale,
            whiten=asked.ppo.whiten,
        )
        values = jnp.asarray(said["values"]) if "values" in said else None
        advantages, returns = advantages_of(
            asked.ppo.estimator, per_token, values, jnp.asarray(mask), groups, options=options
        )
        batch |= {"log_probs": said["log_probs"], "advantages": np.asarray(advantages)}
        if values is not None:
            batch |= {"values": said["values"], "returns": np.asarray(returns)}
        found |= {
            "ppo/kl": total / tokens,
            "ppo/kl_beta": beta,
            "ppo/entropy": float(said["entropy"][mask].mean()) if mask.any() else 0.0,
        }
        return batch, found, total / len(states)

    def _refresh(
        self, cache: Explanations, policy: Any, number: int
    ) -> tuple[dict[str, np.ndarray], Found]:
        """Explains anew the training states whose texts are oldest, and the valid ones."""
        host = {name: np.array(array) for name, array in gather(cache).__dict__.items()}
        train = self.setup.cached
        count = int(np.ceil(self.asked.cache.refresh * len(train)))
        # Among equally old ones by a keyed order, so that no user is always last.
        order = rng.permutation(rng.fold(self.run.seed, Stream.REFRESH_ORDER), len(train))
        oldest = train[order][np.argsort(host["version"][train[order]], kind="stable")][:count]
        chosen = np.concatenate([np.sort(oldest), self.run.valid])
        for name, array in self.run.explain(policy, chosen, number).items():
            host[name][chosen] = array
        stale = number - host["version"][train]
        return host, {
            "cache/staleness": float(stale.mean()),
            "cache/staleness_max": float(stale.max()),
            "cache/refreshed": float(count),
        }

    # What it is worth.

    @functools.cached_property
    def _held_out_items(self) -> np.ndarray:
        return self.run.fused.held_out(self.run.valid)

    def held_out(self, state: JointState, number: int) -> Found:
        """NDCG of the looked-at valid users with and without text, and F1 of planted reasons.

        Where the recommender ranks the whole catalogue also, in nats of the log-probability of the
        held-out items, in which every user counts, where NDCG hears only of items near the top:
        `valid/log_prob_gain`, by how much it is above that of the recommender alone, and
        `valid/text_gain`, by how much it is above that of the same recommender when it reads the
        texts of the warm start. That is the part of the explainer, as seen by a recommender that
        knows its texts: rounds are not chosen by it, since it says nothing of the recommender.

        Raises:
          UserError: if a figure is NaN or infinite.
        """
        run, setup = self.run, self.setup
        cache = gather(state.cache)
        read = {"encoding": cache.encoding, "present": cache.present}
        frozen = run.fused.frozen(run.base_frozen, gather(state.constants))
        params = state.recommender["params"]
        name = f"ndcg@{setup.best_k}"
        values = run.fused.evaluate("few", params, frozen, read).masked[name]
        nothing = {"encoding": cache.encoding, "present": np.zeros_like(cache.present)}
        if not hasattr(self, "_alone"):
            base = {**params, "base": run.alone}
            self._alone = run.fused.evaluate("few", base, frozen, nothing).masked[name].mean()
        found: Found = {
            f"valid/{name}": float(values.mean()),
            f"valid/alone_{name}": float(self._alone),
            "valid/gain": float(values.mean() / max(self._alone, 1e-9) - 1.0),
        }
        if not run.fused.reads_others:
            now = {name: array[run.valid] for name, array in read.items()}
            common: Any = {
                "key": rng.fold(run.seed, Stream.HELD_OUT_OTHERS),
                "targets": self._held_out_items,
            }
            scored = run.fused.score(params, frozen, run.valid, **now, **common)
            first = run.fused.score(params, frozen, run.valid, **gather(state.first), **common)
            if not hasattr(self, "_alone_log_prob"):
                base = {**params, "base": run.alone}
                bare = run.fused.score(base, frozen, run.valid, **now, **common)
                self._alone_log_prob = bare["log_prob_null"]
            gain = scored["log_prob"] - self._alone_log_prob
            found["valid/log_prob_gain"] = float(gain.mean())
            found["valid/text_gain"] = float((scored["log_prob"] - first["log_prob"]).mean())
        texts = setup.texts(cache.tokens[run.valid], cache.length[run.valid])
        planted = setup.states.planted
        f1 = None
        if planted is not None:
            f1 = score_texts(texts, [planted[s] for s in run.valid]).f1
            found["valid/planted_f1"] = float(f1.mean())
        found["samples"] = [
            {
                "round": number,
                "user": str(setup.data.dataset.user_ids[setup.states.user[s]]),
                "part": "valid",
                "prompt": setup.states.prompts[s],
                "text": texts[place],
                "planted": None if planted is None else planted[s],
                "f1": None if f1 is None else float(f1[place]),
            }
            for place, s in enumerate(run.valid[: self.asked.samples].tolist())
        ]
        measured = {name: value for name, value in found.items() if name.startswith("valid/")}
        guards.check_updates(measured, LOWER)
        return found


def within(first: np.ndarray, second: np.ndarray, group: int) -> float:
    """Correlation of two figures among answers to one prompt, over all prompts.

    Of the reward and the F1 of planted reasons it says whether truth is what the reward pays for.

    Args:
      first: `[n]`, answers of a group beside each other.
      second: `[n]`.
      group: answers to a prompt.

    Returns:
      From -1 to 1; 0 where one of them does not differ within any group.
    """
    a, b = (np.asarray(x, np.float64).reshape(-1, group) for x in (first, second))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    spread = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / spread) if spread > 0 else 0.0


class _Clock:
    """Seconds of each phase of a round, named `time/PHASE`."""

    def __init__(self, **known: float):
        self.seconds = {f"time/{name}": value for name, value in known.items()}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = now - self._last
        self._last = now
