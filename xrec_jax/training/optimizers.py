"""Optimizers and learning-rate schedules from a config."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import optax

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.sections import read_section

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule, as in the training section of a config.

    Attributes:
      optimizer: one of `OPTIMIZERS`.
      learning_rate: peak of the schedule.
      schedule: one of `SCHEDULES`.
      warmup: share of all steps with a linearly rising rate.
      final_rate: share of the peak at the last step, of the cosine and linear schedules.
      b1: decay rate of the first moment; momentum of "sgd".
      b2: decay rate of the second moment.
      weight_decay: decoupled weight decay, "adamw" only.
      embedding_weight_decay: the same of embedding tables; None: `weight_decay`.
      clip_norm: bound of the global gradient norm; 0 for none.
    """

    optimizer: str
    learning_rate: float
    schedule: str
    warmup: float
    final_rate: float
    b1: float
    b2: float
    weight_decay: float
    embedding_weight_decay: float | None
    clip_norm: float

    def check(self) -> None:
        """Checks the numbers.

        Raises:
          UserError: names the key, the value and its valid range.
        """
        for key in ("learning_rate", "clip_norm", "weight_decay", "embedding_weight_decay"):
            value = getattr(self, key)
            if value is None:
                continue
            if value < 0:
                raise UserError(f"{key}={value} must not be negative")
            if not math.isfinite(value):
                raise UserError(f"{key}={value} must be a finite number")
        for key in ("b1", "b2"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise UserError(f"{key}={getattr(self, key)} must be from 0 to below 1")


def schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step.

    Linear warm-up over `warmup` (a share of all steps), then constant, or cosine or linear decay to
    `final_rate` times the peak.

    Args:
      config: a training section, see `OptimizerConfig`.
      total_steps: steps of the whole run.

    Raises:
      UserError: on an unknown schedule or a share outside 0 to 1.
    """
    cfg = read_section(OptimizerConfig, config)
    peak = cfg.learning_rate
    if not 0.0 <= cfg.warmup < 1.0:
        raise UserError(f"warmup={cfg.warmup} must be a share of the steps, 0 to below 1")
    warmup = round(cfg.warmup * total_steps)
    # Optax refuses a cosine decay over no steps, which a run of warm-up alone would have.
    rest = max(1, total_steps - warmup)
    if cfg.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif cfg.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=cfg.final_rate)
    elif cfg.schedule == "linear":
        main = optax.linear_schedule(peak, peak * cfg.final_rate, rest)
    else:
        raise UserError(
            f"schedule={cfg.schedule!r} is not valid{did_you_mean(cfg.schedule, SCHEDULES)}"
        )
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def _tables(params: Any) -> Any:
    """Marks the embedding tables in a tree of parameters."""
    key = jax.tree_util.keystr
    return jax.tree_util.tree_map_with_path(
        lambda path, _: key(path, simple=True, separator="/").endswith("embedding"), params
    )


def _adamw(cfg: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    if cfg.embedding_weight_decay is None:
        return optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay)
    return optax.chain(
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2),
        optax.add_decayed_weights(
            cfg.weight_decay, lambda params: jax.tree.map(operator.not_, _tables(params))
        ),
        optax.add_decayed_weights(cfg.embedding_weight_decay, _tables),
        optax.scale_by_learning_rate(rate),
    )


def optimizer(config: Any, total_steps: int) -> optax.GradientTransformation:
    """Optimizer of a training section.

    Args:
      config: a training section, see `OptimizerConfig`.
      total_steps: steps of the whole run.

    Raises:
      UserError: on an unknown optimiser, or a negative learning rate.
    """
    cfg = read_section(OptimizerConfig, config)
    cfg.check()
    rate = schedule(config, total_steps)
    if cfg.optimizer == "adam":
        tx = optax.adam(rate, b1=cfg.b1, b2=cfg.b2)
    elif cfg.optimizer == "adamw":
        tx = _adamw(cfg, rate)
    elif cfg.optimizer == "sgd":
        tx = optax.sgd(rate, momentum=cfg.b1)
    else:
        hint = did_you_mean(cfg.optimizer, OPTIMIZERS)
        raise UserError(f"optimizer={cfg.optimizer!r} is not valid{hint}")
    # Clipping comes first: the moments are of clipped gradients.
    if cfg.clip_norm:
        return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), tx)
    return tx
