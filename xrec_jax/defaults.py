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
from xrec_jax.joint.config import joint
from xrec_jax.joint.config import shrink as shrink_joint
from xrec_jax.stages import defaults
from xrec_jax.training.defaults import check_training, language_training, lora, training_defaults

__all__ = [
    "base",
    "check_training",
    "data",
    "instruct",
    "joint",
    "language_model",
    "language_training",
    "pretrain",
    "published_llmxrec",
    "system",
    "training_defaults",
    "variant",
]


def data() -> ConfigDict:
    """Where the data comes from and how it is split."""
    return ConfigDict(
        dict(
            format="world",  # world, atomic, csv, parquet; none for a config without a recommender
            name="",  # default: from the path
            path="",
            users="",  # optional user table, for csv and parquet
            items="",  # optional item table
            # "": the format's own names; title is a column of the item table: name, title or
            # movie_title, in whatever case
            columns=dict(user="", item="", timestamp="", rating="", title=""),
            filters=dict(
                min_rating=placeholder(float), user_core=0, item_core=0, duplicates="first"
            ),
            train_share=1.0,  # share of the users whose training events are learned from
            split=dict(
                # leave_one_out, ratio, given; "": given if files are parts, else leave_one_out
                kind="",
                ratios=(0.8, 0.1, 0.1),
                order="time",
                seed=0,
                validation="part",  # of a given split: part, or last (of a user's training events)
            ),
            world=dataclasses.asdict(WorldConfig()),  # read where format is "world"
        )
    )


def language_model() -> ConfigDict:
    """The explainer's base: a directory, or a small model trained by the `pretrain` stage."""
    return ConfigDict(
        dict(
            path="",  # Hugging Face directory or imported checkpoint; "": `pretrain` makes it
            dtype="float32",  # of computation, and of a base that is not trained
            quantization="none",  # storage of a frozen base: none, int8 or nf4
            attention="auto",
            remat="none",  # none, dots or full
            chat_template="auto",  # yes, no; auto: where a base given by path has one
            generation_batch=16,
            # Read where path is empty.
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=344,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            max_positions=1024,
            rope_theta=10000.0,
            tie_embeddings=True,
            initializer_range=0.0,  # standard deviation; 0: 1 / sqrt(hidden_size)
        )
    )


def pretrain() -> ConfigDict:
    """The `pretrain` stage: a small base on plain text."""
    return ConfigDict(
        dict(
            # world (its training events, no explanations), files, or joint (texts of joint.states)
            source="world",
            files=(),  # JSONL; of each line its fields, joined by a blank line
            fields=("prompt", "completion"),
            keep=dict(field="", among=()),  # of the files only lines with one of these values
            copies=1,  # wordings of everything in the world
            described=2,  # prompts of each user that are followed by a description
            talk=2000,  # paragraphs on places and tastes in general
            held_out=0.02,  # share of the texts
            length=256,  # tokens of a row
            train=language_training(batch_size=16, epochs=4, learning_rate=2e-3),
        )
    )


def instruct() -> ConfigDict:
    """The `instruct` stage: LoRA on explanations."""
    return ConfigDict(
        dict(
            source="world",  # world (its planted reasons) or file
            path="",  # JSONL: prompt and completion, or messages
            examples=240,  # to tune on; 0: all of the file
            held_out=0.1,  # share of the prompts of a file; of `examples` in a world, beside them
            stratify="",  # key of a file's records whose values are split and chosen alike
            balance="",  # user column (world) or key (file): groups equal in number and length
            template="places",  # of a world's prompts
            named=True,  # whether a world's explanations name places; the smallest bases cannot
            history=10,  # entries in a prompt
            max_prompt_tokens=384,  # of a world's prompts; older entries are cut; 0: no limit
            length=512,  # tokens of a row
            pack=True,  # several examples a row
            lora=lora(),
            train=language_training(batch_size=8, epochs=5, learning_rate=1e-3),
            samples=dict(
                during=2,  # held-out prompts answered at every evaluation
                final=100,  # held-out prompts answered by base and tuned model at the end, at most
                max_new_tokens=128,
                temperature=0.0,
                top_k=0,
                top_p=1.0,
            ),
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
            seeds=(0,),  # the language stages take the first
            stages=("recommend",),
            data=data(),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            ranking=dict(ks=(5, 10, 20), resamples=1000),
            recommend=ConfigDict(dict()),
            llm=language_model(),
            pretrain=pretrain(),
            instruct=instruct(),
            joint=joint(),
            explain=defaults.explain(),
            judge=defaults.judge(),
            attributes=defaults.attributes(),
            assess=defaults.assess(),
            audit=defaults.audit(),
        )
    )
    return config


def published_llmxrec() -> ConfigDict:
    """LLMXRec's published settings for tuning a LLaMA that is given by its path."""
    config = base()
    config.stages = ("instruct",)
    config.data.format = "none"
    config.llm.update(dict(dtype="bfloat16", remat="full", generation_batch=64))
    config.instruct.update(
        dict(
            source="file",
            path="../shared/data/llmxrec/instructions.jsonl",
            examples=0,
            stratify="dataset",
            length=2048,
        )
    )
    config.instruct.lora.update(dict(rank=8, alpha=16.0, dropout=0.05))
    config.instruct.train.update(dict(batch_size=8, epochs=5, learning_rate=3e-4))
    config.instruct.samples.update(dict(temperature=0.1, top_p=0.75, top_k=40))
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
    if "joint" in config.stages:  # what is read there must be written
        config.data.world.update(dict(about_share=0.8, review_share=0.7))
    config.ranking.resamples = 100
    for entry in config.recommend.values():
        entry.train.update(dict(batch_size=64, epochs=2, evaluate_every=1, patience=0))
        hparams = entry.hparams
        for key, value in dict(dim=16, inner=32, length=12, context=4, negatives=2).items():
            if key in hparams:
                hparams[key] = min(hparams[key], value)
    if {"instruct", "judge", "attributes", "joint"} & set(config.stages):
        _shrink_language(config)
    defaults.shrink(config)
    shrink_joint(config)


def _shrink_language(config: ConfigDict) -> None:
    if "pretrain" not in config.stages:
        config.stages = ("pretrain", *config.stages)
    config.llm.update(
        dict(
            path="",
            dtype="float32",
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            max_positions=1024,
            generation_batch=8,
        )
    )
    config.pretrain.update(
        dict(source="world", copies=1, described=0, talk=0, held_out=0.05, length=64)
    )
    config.pretrain.train.update(dict(batch_size=64, epochs=1))
    config.instruct.update(
        dict(
            source="world",
            path="",
            examples=12,
            stratify="",
            held_out=0.2,
            history=3,
            max_prompt_tokens=400,
            length=640,
        )
    )
    config.instruct.train.update(dict(batch_size=8, epochs=2))
    config.instruct.samples.update(dict(during=1, final=2, max_new_tokens=16, temperature=0.0))
