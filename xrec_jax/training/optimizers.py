"""Optimisers and learning-rate schedules from a config."""

from __future__ import annotations

import math
from typing import Any

import optax

from xrec_jax.core.errors import UserError, did_you_mean

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adam", "adamw", "sgd")


def schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step.

    Linear warm-up over `warmup` (a share of all steps), then constant, or cosine or linear decay to
    `final_rate` times the peak.

    Args:
      config: `learning_rate`, `schedule`, `warmup`, `final_rate`.
      total_steps: steps of the whole run.

    Raises:
      UserError: on an unknown schedule or a share outside 0 to 1.
    """
    peak = config.learning_rate
    if not 0.0 <= config.warmup < 1.0:
        raise UserError(f"warmup={config.warmup} must be a share of the steps, 0 to below 1")
    warmup = round(config.warmup * total_steps)
    rest = max(1, total_steps - warmup)
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=config.final_rate)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, peak * config.final_rate, rest)
    else:
        raise UserError(
            f"schedule={config.schedule!r} is not valid{did_you_mean(config.schedule, SCHEDULES)}"
        )
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def optimizer(config: Any, total_steps: int) -> optax.GradientTransformation:
    """The update rule of a config.

    Args:
      config: `optimizer`, `b1`, `b2`, `weight_decay` (decoupled, "adamw" only), `clip_norm`
        (global gradient norm, 0 for none) and what `schedule` reads.
      total_steps: steps of the whole run.

    Raises:
      UserError: on an unknown optimiser, or a negative learning rate.
    """
    for key in ("learning_rate", "clip_norm", "weight_decay"):
        if config[key] < 0:
            raise UserError(f"{key}={config[key]} must not be negative")
        if not math.isfinite(config[key]):
            raise UserError(f"{key}={config[key]} must be a finite number")
    for key in ("b1", "b2"):
        if not 0.0 <= config[key] < 1.0:
            raise UserError(f"{key}={config[key]} must be from 0 to below 1")
    rate = schedule(config, total_steps)
    if config.optimizer == "adam":
        rule = optax.adam(rate, b1=config.b1, b2=config.b2)
    elif config.optimizer == "adamw":
        rule = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    elif config.optimizer == "sgd":
        rule = optax.sgd(rate, momentum=config.b1)
    else:
        hint = did_you_mean(config.optimizer, OPTIMIZERS)
        raise UserError(f"optimizer={config.optimizer!r} is not valid{hint}")
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return rule
