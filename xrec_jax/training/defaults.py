"""Default training sections of the config, and their validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean

_MOST = 2**31 - 1


def training_defaults() -> ConfigDict:
    """Default training section of a recommender."""
    return ConfigDict(
        dict(
            batch_size=2048,  # global: all devices of all processes together
            epochs=100,
            evaluate_every=1,  # epochs
            patience=10,  # evaluations without a new best before stopping; 0: never
            metric="valid/ndcg@10",
            checkpoint_every=10,  # epochs
            log_every=0,  # steps; 0: once an epoch
            optimizer="adam",  # adam, adamw or sgd
            learning_rate=1e-3,
            schedule="constant",  # constant, cosine or linear
            warmup=0.0,  # share of all steps
            final_rate=0.0,  # cosine and linear end at this share of the peak
            b1=0.9,
            b2=0.999,
            weight_decay=0.0,  # of adamw
            embedding_weight_decay=None,  # of the item and user tables; None: as weight_decay
            clip_norm=0.0,  # global gradient norm; 0: off
            prefetch=4,  # batches prepared ahead
        )
    )


def lora() -> dict[str, Any]:
    """Default LoRA section: LLMXRec's adapter, on all seven projections."""
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    return dict(rank=8, alpha=16.0, dropout=0.05, targets=targets)


def language_training(**changed: Any) -> ConfigDict:
    """Default training section of a language model, with the values of `changed`."""
    train = training_defaults()
    train.update(
        dict(
            metric="valid/loss",
            optimizer="adamw",
            schedule="cosine",
            warmup=0.1,
            final_rate=0.1,
            b2=0.99,
            clip_norm=1.0,
            patience=0,
        )
    )
    train.accumulation = 1  # parts that a batch is read in, one after the other
    train.update(changed)
    return train


def check_training(train: Any, where: str, metrics: Sequence[str]) -> None:
    """Validates the counts and the metric of a training section.

    Args:
      train: the section.
      where: its path in the config, for messages.
      metrics: names of the metrics that the stage computes.

    Raises:
      UserError: names the key, the value and the valid ones.
    """
    if train.metric not in metrics:
        hint = did_you_mean(train.metric, metrics)
        raise UserError(f"{where}.metric={train.metric!r} is not computed{hint}")
    for key in ("batch_size", "epochs", "evaluate_every", "checkpoint_every", "prefetch"):
        if train[key] < 1:
            raise UserError(f"{where}.{key}={train[key]} must be positive")
        if train[key] > _MOST:  # steps are counted in 32 bits on the device
            raise UserError(f"{where}.{key}={train[key]} must be at most {_MOST}")
    for key in ("log_every", "patience"):
        if train[key] < 0:
            raise UserError(f"{where}.{key}={train[key]} must not be negative")
