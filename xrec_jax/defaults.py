"""Every key a config may have, with its default.

A config file starts from `base()` and states only what differs. The result is locked: a key that is
not here is an error that names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xrec_jax import recommenders, stages
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.data.world import WorldConfig
from xrec_jax.recommenders.content import content_defaults
from xrec_jax.training.defaults import training_defaults


def data() -> ConfigDict:
    """Where the data comes from and how it is split."""
    return ConfigDict(
        dict(
            format="world",  # world, atomic, csv, parquet; none for a config without a recommender
            name="",  # default: from the path
            path="",
            users="",  # optional user table, for csv and parquet
            items="",  # optional item table
            item_vectors="",  # optional Parquet file of a vector an item; `xrec encode` makes one
            # "": the format's own names; title is a column of the item table: name, title or
            # movie_title, in whatever case
            columns=dict(user="", item="", timestamp="", rating="", title=""),
            filters=dict(
                min_rating=placeholder(float), user_core=0, item_core=0, duplicates="first"
            ),
            train_share=1.0,  # share of the users whose training events are learned from
            split=dict(
                # leave_one_out, ratio, time, given; "": given if files are parts, else the first
                kind="",
                at="",  # time: where the test begins; a share of the events, a time or a date
                valid_at="0.9",  # time: where validation begins; a share of what is before `at`
                unseen_users="keep",  # time: or drop held-out events of users without training
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
            path="",  # a path, ORG/NAME or smollm2 (`llm.io.hub`); "": `pretrain` makes it
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


def system(
    model: str,
    *,
    train: dict[str, Any] | None = None,
    content: dict[str, Any] | None = None,
    **hparams: Any,
) -> ConfigDict:
    """A recommender of the `recommend` stage.

    Args:
      model: name in the registry.
      train: values that differ from `training_defaults()`.
      content: values that differ from `content_defaults()`: a content tower.
      **hparams: hyper-parameters that differ from the model's own defaults.

    Raises:
      UserError: on an unknown model, hyper-parameter, training key or key of content.
    """
    known = recommenders.hyperparameters(model)
    for key in hparams:
        if key not in known:
            raise UserError(f"{model}: no hyper-parameter {key!r}{did_you_mean(key, known)}")
    training, tower = training_defaults(), content_defaults()
    for what, group, values in (("training", training, train), ("content", tower, content)):
        for key, value in (values or {}).items():
            if key not in group:
                raise UserError(f"{model}: no {what} key {key!r}{did_you_mean(key, group)}")
            group[key] = value
    hparams = {**known, **hparams}
    return ConfigDict(dict(model=model, hparams=hparams, content=tower, train=training))


def audit() -> ConfigDict:
    """Files of texts that `xrec audit` looks at; empty: none. Several are joined by "+"."""
    return ConfigDict(
        dict(
            instructions="",  # JSONL to tune on: prompt, completion, perhaps dataset
            prompts="",  # JSONL that systems are asked: prompt_id, prompt, dataset, recommender
            explanations="",  # JSONL: prompt_id (or prompt), model, completion
            judgements="",  # JSONL: prompt, first, second, better (1 or 2), perhaps dataset
            attributes="",  # JSONL: prompt, completion (a JSON object)
            ratings="",  # CSV: item, model, a column a scale, perhaps dataset and rater
            profiles="",  # JSONL of users' profiles and items' texts, keys as in joint.states
        )
    )


def base() -> ConfigDict:
    """The whole config: what all stages share, and the section of every registered stage.

    `recommend` has one entry a system, filled by the config file.

    Raises:
      UserError: if a stage has the name of a section that is there already.
    """
    config = ConfigDict(
        dict(
            name="",
            imports=(),  # modules to import first, such as one that registers a recommender
            seeds=(0,),  # the language stages take the first
            stages=("recommend",),
            data=data(),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            ranking=dict(
                ks=(5, 10, 20),
                resamples=1000,
                rows="user",  # a user's held-out items at once; or event, first_event: one by one
                mask_seen=True,  # False: what a user knows is a candidate, too
            ),
            llm=language_model(),
            audit=audit(),
        )
    )
    shared = tuple(config)
    for stage in stages.registered():
        if stage.name in shared:
            raise UserError(f"stage {stage.name!r} has the name of a section of every config")
        if stage.section is not None:
            config[stage.name] = stage.section()
    return config


def add_sections(config: ConfigDict) -> None:
    """Gives a config the sections of stages that were registered after it was made."""
    known = base()
    with config.unlocked():
        for stage in stages.registered():
            if stage.name in known and stage.name not in config:
                config[stage.name] = known[stage.name]


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
    config.ranking.resamples = 100
    config.audit.update(dict.fromkeys(config.audit, ""))
    if any(stage.needs_base for stage in stages.of_config(config)):
        _shrink_base(config)
    for stage in stages.registered():
        stage.shrink(config)


def _shrink_base(config: ConfigDict) -> None:
    """A base of a few thousand parameters, made by the run itself."""
    if "pretrain" not in config.stages:
        # Recommenders come first, if there are any; the other stages may need the base.
        first = [stage for stage in config.stages if stage == "recommend"]
        rest = [stage for stage in config.stages if stage != "recommend"]
        config.stages = (*first, "pretrain", *rest)
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
