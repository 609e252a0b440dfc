"""Values of the stages that write and judge explanations."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.pipelines.defaults.training import language_training


def explain() -> ConfigDict:
    """The `explain` stage: the first recommendations of some users, by several explainers.

    Answers are drawn as `instruct.samples` says.
    """
    return ConfigDict(
        dict(
            explainers=("template", "base", "tuned"),
            system="",  # recommender; "": the best on validation
            users=200,  # in a drawn order; 0: all
            top_k=1,
            shard=4096,  # pairs that are written at once
        )
    )


def judge() -> ConfigDict:
    """The `judge` stage: an adapter that compares two explanations, and what it says."""
    return ConfigDict(
        dict(
            source="world",  # world (true reasons against others), or file
            path="",  # JSONL: prompt, first, second, better (1 or 2); further keys are kept
            explanations=(),  # PROMPTS+EXPLANATIONS files to compare, beside those of the run
            examples=400,  # pairs of a world
            held_out=0.2,  # share of the prompts
            length=640,  # tokens of a row
            lora=dict(
                rank=8,
                alpha=16.0,
                dropout=0.05,
                targets=("q", "k", "v", "o", "gate", "up", "down"),
            ),
            train=language_training(batch_size=16, epochs=3, learning_rate=1e-3),
        )
    )


def attributes() -> ConfigDict:
    """The `attributes` stage: profile and item attributes told from prompts that lack them."""
    return ConfigDict(
        dict(
            user=("gender", "age"),  # columns of the user table to predict
            item=("kind", "price"),  # and of the item table
        )
    )


def assess() -> ConfigDict:
    """The `assess` stage: what can be measured on the explanations of a run."""
    return ConfigDict(
        dict(
            groups=("gender", "age"),  # columns of the user table whose groups are compared
            resamples=1000,
        )
    )


def audit() -> ConfigDict:
    """Files of explanations and judgements that `xrec audit` looks at; empty: none."""
    return ConfigDict(
        dict(
            instructions="",  # JSONL: prompt, completion
            prompts="",  # JSONL: prompt_id, prompt and more
            explanations="",  # JSONL: prompt_id, model, completion
            judgements="",  # JSONL: prompt, first, second, better
            attributes="",  # JSONL: prompt, completion
        )
    )


def shrink(config: Any) -> None:
    """Makes the stages of a config a smoke test of seconds."""
    config.explain.update(dict(users=4, top_k=1))
