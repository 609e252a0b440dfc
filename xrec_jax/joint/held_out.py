"""Figures of a round on tracked validation users: what the choice of the best round is made by.

Where the recommender ranks the whole catalogue there are two more, in nats of the log-probability
of the held-out items, in which every user counts, where NDCG hears only of items near the top:

* `valid/log_prob_gain`: by how much it is above that of the recommender alone;
* `valid/text_gain`: by how much it is above that of the same recommender when it reads the texts of
  the warm start. That is the explainer's part, as seen by a recommender that knows its texts.
  Rounds are not chosen by it, since it says nothing of the recommender.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.rng import Stream
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.joint import guards
from xrec_jax.joint.explanations import readable
from xrec_jax.joint.sides import Baseline, Sides
from xrec_jax.joint.state import JointState, Snapshot, on_host

Metrics = dict[str, Any]

_LOWER = "joint.recommender.train.learning_rate or joint.ppo.policy.learning_rate"


def baseline(sides: Sides, state: JointState) -> Baseline:
    """Measures the recommender alone, once a seed: no round changes it.

    Args:
      sides: of the seed.
      state: any of it. Fusion without a text leaves the recommender alone as it is, so only the
        constants of the warm start matter.
    """
    recommender, host = sides.recommender, on_host(state)
    frozen = recommender.frozen(sides.alone.frozen, host.constants)
    # The rounds may train the base, too: the baseline has the base as it was before them.
    params = {**state.recommender["params"], "base": sides.alone.params}
    read = readable(host.cache)
    silent = read | {"present": np.zeros_like(host.cache.present)}
    per_user = recommender.evaluate("few", params, frozen, silent)
    ndcg = per_user.masked[f"ndcg@{sides.shared.best_k}"].mean()
    if recommender.reads_others:
        return Baseline(ndcg)
    targets = recommender.held_out(sides.tracked)
    scored = recommender.score(
        params,
        frozen,
        sides.tracked,
        **{name: array[sides.tracked] for name, array in read.items()},
        key=rng.fold(sides.seed, Stream.HELD_OUT_OTHERS),
        targets=targets,
    )
    return Baseline(ndcg, targets, scored["log_prob_null"])


def held_out(sides: Sides, state: JointState, number: int) -> Metrics:
    """Measures a state on the tracked validation users; see `measure`."""
    host = on_host(state)
    frozen = sides.recommender.frozen(sides.alone.frozen, host.constants)
    return measure(sides, state.recommender["params"], frozen, host, number)


def measure(sides: Sides, params: Any, frozen: Any, host: Snapshot, number: int) -> Metrics:
    """Measures parameters and texts of a round on the tracked validation users.

    Args:
      sides: of the seed, with its baseline.
      params: of the fused recommender.
      frozen: its frozen arrays with the constants of the warm start.
      host: `cache`, the texts now, and `first`, those of the warm start.
      number: of the round.

    Returns:
      `valid/...` figures (NDCG with text and alone, their relative gain, gains in nats, F1 of
      planted reasons where they are known) and `samples`, records of some users' texts.

    Raises:
      UserError: if a figure is NaN or infinite.
    """
    assert sides.baseline is not None, "sides without a baseline"
    shared, setup = sides.shared, sides.setup
    recommender, base = sides.recommender, sides.baseline
    read = readable(host.cache)

    # Ranking: the same users, candidates and cut-off as the baseline.
    name = f"ndcg@{shared.best_k}"
    values = recommender.evaluate("few", params, frozen, read).masked[name]
    metrics: Metrics = {
        f"valid/{name}": float(values.mean()),
        f"valid/alone_{name}": float(base.ndcg),
        "valid/gain": float(values.mean() / max(base.ndcg, 1e-9) - 1.0),
    }

    # Likelihood: one recommender with the texts of now and with those of the warm start, so that
    # their difference is the explainer's alone.
    if base.log_prob is not None:
        now = {key: array[sides.tracked] for key, array in read.items()}
        common: Any = {"key": rng.fold(sides.seed, Stream.HELD_OUT_OTHERS), "targets": base.targets}
        scored = recommender.score(params, frozen, sides.tracked, **now, **common)
        first = recommender.score(params, frozen, sides.tracked, **host.first, **common)
        metrics["valid/log_prob_gain"] = float((scored["log_prob"] - base.log_prob).mean())
        metrics["valid/text_gain"] = float((scored["log_prob"] - first["log_prob"]).mean())

    # Truth of the texts, where the world knows the users' reasons.
    cache, planted = host.cache, setup.states.planted
    texts = shared.texts(cache.tokens[sides.tracked], cache.length[sides.tracked])
    f1 = None
    if planted is not None:
        f1 = score_texts(texts, [planted[s] for s in sides.tracked]).f1
        metrics["valid/planted_f1"] = float(f1.mean())

    guards.check_updates(metrics, _LOWER)
    metrics["samples"] = _samples(sides, texts, f1, number)
    return metrics


def _samples(sides: Sides, texts: list[str], f1: Any, number: int) -> list[dict[str, Any]]:
    """Records of the texts of a few tracked states, the same ones every round."""
    shared, states = sides.shared, sides.setup.states
    planted = states.planted
    return [
        {
            "round": number,
            "user": str(shared.data.dataset.user_ids[states.user[s]]),
            "part": "valid",
            "prompt": states.prompts[s],
            "text": texts[place],
            "planted": None if planted is None else planted[s],
            "f1": None if f1 is None else float(f1[place]),
        }
        for place, s in enumerate(sides.tracked[: shared.cfg.samples].tolist())
    ]
