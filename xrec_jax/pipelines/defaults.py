"""Every key a config may have, with its default.

A config file starts from `base()` and states only what differs. The result is locked: a key that is
not here is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xrec_jax import recommenders
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.world import WorldConfig


def data() -> ConfigDict:
    """Where the data comes from and how it is split."""
    return ConfigDict(
        dict(
            format="world",  # world, atomic, csv or parquet
            name="",  # default: from the path
            path="",
            users="",  # optional user table, for csv and parquet
            items="",  # optional item table
            columns=dict(user="", item="", timestamp="", rating=""),  # "": the format's own names
            filters=dict(
                min_rating=placeholder(float), user_core=0, item_core=0, duplicates="first"
            ),
            split=dict(kind="leave_one_out", ratios=(0.8, 0.1, 0.1), order="time", seed=0),
            world=dataclasses.asdict(WorldConfig()),  # read where format is "world"
        )
    )


def training_defaults() -> ConfigDict:
    """How a model is trained."""
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
            weight_decay=0.0,
            clip_norm=0.0,  # global gradient norm; 0: off
            prefetch=4,  # batches prepared ahead
        )
    )


def system(model: str, *, train: dict[str, Any] | None = None, **hparams: Any) -> ConfigDict:
    """A recommender of the `recommend` stage.

    Args:
      model: name in the registry.
      train: values that differ from `training_defaults()`.
      **hparams: hyper-parameters that differ from the model's own defaults.

    Raises:
      UserError: on an unknown model, hyper-parameter or training key.
    """
    known = recommenders.hyperparameters(model)
    for key in hparams:
        if key not in known:
            raise UserError(f"{model}: no hyper-parameter {key!r}{did_you_mean(key, known)}")
    training = training_defaults()
    for key, value in (train or {}).items():
        if key not in training:
            raise UserError(f"{model}: no training key {key!r}{did_you_mean(key, training)}")
        training[key] = value
    return ConfigDict(dict(model=model, hparams={**known, **hparams}, train=training))


def base() -> ConfigDict:
    """The whole config; `recommend` has one entry a system, filled by the config file."""
    config = ConfigDict(
        dict(
            name="",
            imports=(),  # modules to import first, such as one that registers a recommender
            seeds=(0,),
            stages=("recommend",),
            data=data(),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            ranking=dict(ks=(5, 10, 20), resamples=1000),
            recommend=ConfigDict(dict()),
        )
    )
    return config


def variant(config: ConfigDict, arg: str) -> ConfigDict:
    """What the part behind the colon of `configs/NAME.py:ARG` asks for.

    Args:
      config: the full config.
      arg: "" for the config as it is; "tiny" for a smoke test of seconds: a small world instead of
        the data, few epochs, no files.

    Raises:
      UserError: on any other argument.
    """
    if arg not in ("", "tiny"):
        raise UserError(f"no variant {arg!r} of this config{did_you_mean(arg, ['tiny'])}")
    if arg == "tiny":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    config.seeds = (0,)
    config.data = data()
    config.data.world.update(dict(num_users=80, num_items=60, mean_visits=12.0))
    config.ranking.resamples = 100
    for entry in config.recommend.values():
        entry.train.update(dict(batch_size=64, epochs=2, evaluate_every=1, patience=0))
        hparams = entry.hparams
        for key, value in dict(dim=16, inner=32, length=12, context=4, negatives=2).items():
            if key in hparams:
                hparams[key] = min(hparams[key], value)
