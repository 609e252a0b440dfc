"""Scores of a rollout: the reward of every answer, and whether it pays for true reasons."""

from __future__ import annotations

from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.joint import rewards
from xrec_jax.joint.explanations import readable
from xrec_jax.joint.rewards import Scored
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import JointState, Rollout, Snapshot
from xrec_jax.parallel.mesh import gather

Metrics = dict[str, Any]


def score_rollouts(
    sides: Sides, state: JointState, host: Snapshot, texts: list[str], frozen: Any, number: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rewards the answers of a rollout, on frozen weights of the recommender.

    Args:
      sides: of the seed.
      state: whose recommender reads the answers.
      host: its rollout, and the cache that other candidates' texts are taken from.
      texts: the answers as texts.
      frozen: frozen arrays of the recommender.
      number: of the round.

    Returns:
      Score `[n]` float32 of every answer, and its parts without their weights.
    """
    shared, setup, buffer = sides.shared, sides.setup, host.buffer
    encoding, present = shared.encode(texts)
    scored = sides.recommender.score(
        state.recommender["params"],
        frozen,
        buffer.state.astype(np.int64),
        encoding,
        present,
        key=rng.fold(sides.seed, Stream.ROLLOUT_OTHERS, number),
        # Where the worth of one text depends on its neighbours', theirs are the kept ones.
        read=readable(host.cache) if sides.recommender.reads_others else None,
    )
    prompts, states = setup.prompts, buffer.state
    group = setup.states.group
    fields: Metrics = scored | {
        "length": buffer.length,
        "ended": buffer.ended,
        "answer": buffer.tokens,
        "answer_mask": np.arange(shared.size) < buffer.length[:, None],
        "prompt": prompts.ids[states],
        "prompt_mask": np.arange(prompts.ids.shape[1]) < prompts.length[states][:, None],
        "group": None if group is None else group[states],
        "evidence": {name: measure(states, texts) for name, measure in setup.evidence.items()},
    }
    rollouts = Scored(**shared.put(fields), content=setup.content)
    score, parts = rewards.total(rollouts, shared.cfg.rewards)
    return gather(score), gather(parts)


def truth(sides: Sides, buffer: Rollout, texts: list[str], score: np.ndarray) -> Metrics:
    """Whether answers name the true reasons, and whether that is what the reward pays for."""
    planted, group = sides.setup.states.planted, sides.shared.cfg.rollout.group_size
    if planted is None:
        return {}
    f1 = score_texts(texts, [planted[s] for s in buffer.state]).f1
    metrics = {"rollout/planted_f1": float(f1.mean())}
    if group > 1:
        metrics["rollout/truth_correlation"] = within(score, f1, group)
    return metrics


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
