"""Guards that end a run with an error, because every later number would be worthless."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import host_value
from xrec_jax.joint.guards.options import GuardOptions


def check_scores(
    parts: Mapping[str, Any], score: Any, options: GuardOptions, *, config: str = "joint"
) -> None:
    """Refuses rewards that cannot be learned from.

    Args:
      parts: each `[n]`, without weights.
      score: `[n]`, their weighted sum.
      options: `max_reward`.
      config: where the config has `rewards` and `guards`, for the message.

    Raises:
      UserError: where a part or the score is NaN or infinite, saying in how many rows, or a score
        is beyond `max_reward`, saying what to change.
    """
    values = {name: np.asarray(host_value(part), np.float64) for name, part in parts.items()}
    scores = np.asarray(host_value(score), np.float64)
    # Parts before their sum: a sum that is not finite does not say which part to mend.
    for name, value in [*((f"reward part {n!r}", v) for n, v in values.items()), ("score", scores)]:
        bad = ~np.isfinite(value)
        if bad.any():
            nans = int(np.isnan(value).sum())
            raise UserError(
                f"{name} is not finite in {int(bad.sum())} of {value.size} rows ({nans} NaN, "
                f"{int(bad.sum()) - nans} infinite; first row {int(np.argmax(bad))}); mend the "
                f"part, or take it out of {config}.rewards"
            )
    if options.max_reward is None or not scores.size:
        return
    over = np.abs(scores) > options.max_reward
    if over.any():
        # The largest part of the worst row is the one whose weight is wrong.
        row = int(np.argmax(np.abs(scores)))
        widest = max(values, key=lambda name: abs(values[name][row])) if values else None
        source = (
            ""
            if widest is None
            else f", where part {widest!r} is {values[widest][row]:.6g} before its weight: lower "
            f"{config}.rewards.{widest}"
        )
        raise UserError(
            f"wrong reward scale: |score| reaches {abs(scores[row]):.6g}, beyond "
            f"{config}.guards.max_reward={options.max_reward:g} in {int(over.sum())} of "
            f"{scores.size} rows{source}{' or' if source else ';'} raise the limit if that is meant"
        )


def check_gap(
    sampled: Any, trained: Any, mask: Any, options: GuardOptions, *, config: str = "joint"
) -> dict[str, float]:
    """Compares the log-probabilities of the sampled tokens by sampler and trainer.

    Args:
      sampled: `[n, A]`, nats, of the sampler.
      trained: `[n, A]`, nats, of the trainer under the same parameters.
      mask: `[n, A]`, answer tokens; the rest is not looked at.
      options: `gap_max`.
      config: where the config has `guards`, for the message.

    Returns:
      `rollout/log_prob_gap` (mean) and `rollout/log_prob_gap_max`, absolute nats a token; 0 without
      a token.

    Raises:
      UserError: if one is not finite, or the mean is above `gap_max`.
    """
    # Padding is not compared: sampler and trainer may hold anything there.
    real = np.asarray(host_value(mask)).astype(bool)
    first = np.asarray(host_value(sampled), np.float64)[real]
    second = np.asarray(host_value(trained), np.float64)[real]
    for name, value in (("sampler", first), ("trainer", second)):
        if not np.isfinite(value).all():
            raise UserError(
                f"log-probabilities of the {name} are not finite for "
                f"{int((~np.isfinite(value)).sum())} of {value.size} answer tokens: the policy's "
                "weights or its sampling options are broken"
            )
    # The mean decides, not the largest: one token near a tie may differ by rounding alone.
    gap = np.abs(first - second)
    mean, most = (float(gap.mean()), float(gap.max())) if gap.size else (0.0, 0.0)
    if options.gap_max is not None and mean > options.gap_max:
        raise UserError(
            f"sampler and trainer differ by {mean:.4g} nats per answer token (at most {most:.4g}), "
            f"above {config}.guards.gap_max={options.gap_max:g}: they must share weights, adapter, "
            "temperature and soft prompts; or raise the limit"
        )
    return {"rollout/log_prob_gap": mean, "rollout/log_prob_gap_max": most}


def check_updates(metrics: Mapping[str, float], lower: str) -> None:
    """Refuses updates that cannot have left weights to go on with.

    Args:
      metrics: of the updates.
      lower: keys of the config that make updates smaller, for the message.

    Raises:
      UserError: names a metric that is NaN or infinite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}: the updates broke the weights; lower {lower}")
