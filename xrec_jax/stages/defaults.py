"""Values of the stages that write and judge explanations."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.training.defaults import language_training, lora


def explain() -> ConfigDict:
    """The `explain` stage: the first recommendations of some users, by several explainers.

    Answers are drawn as `instruct.samples` says. Users who are not in the tuning set come first,
    and no prompt of that set is asked about. `xrec explain` takes `shard` from here, too.
    """
    return ConfigDict(
        dict(
            explainers=("template", "base", "tuned"),  # or DIR, NAME=DIR of another adapter
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
            # world: learned from true reasons against others; file: from judgements; planted: no
            # adapter, the planted reasons themselves judge
            source="world",
            path="",  # JSONL: prompt, first, second, better (1 or 2); further keys are kept
            pair="",  # key of a file's records that names the two systems compared
            block=0,  # or: so many rows in turn are of one pair; for the pair-identity baseline
            stratify="",  # key of a file's records whose values are split alike
            explanations=(),  # PROMPTS+EXPLANATIONS files to compare, beside those of the run
            by="",  # key of the prompts' file whose values get win ratios of their own
            prompts=0,  # at most, drawn from the run's and from each file's; 0: all
            examples=400,  # pairs of a world
            held_out=0.2,  # share of the prompts
            max_prompt_tokens=0,  # older history entries of longer prompts are cut; 0: no limit
            length=1024,  # tokens of a row: prompt, both explanations and the answer
            margin=0.0,  # a pair is a tie where the mean probability is nearer to 1/2 than this
            batch=16,  # pairs that are judged at once
            lora=lora(),
            train=language_training(batch_size=16, epochs=3, learning_rate=1e-3),
        )
    )


def attributes() -> ConfigDict:
    """The `attributes` stage: profile and item attributes told from prompts that lack them."""
    return ConfigDict(
        dict(
            source="world",  # world (its tables), or file
            path="",  # JSONL: prompt, completion (one JSON object); of a file
            only=(),  # of a file the questions for nothing but these keys; empty: all
            entry=r"^\d+[:.] (.+)$",  # line of a prompt that tells users of a file apart
            user=("gender", "age_band"),  # columns of the user table to predict
            item=("kind", "price"),  # and of the item table
            profile=("occupation", "home_district"),  # columns of the user that prompts show
            template="places",  # of a world's prompts, up to the item
            history=10,  # entries in a prompt
            max_prompt_tokens=448,  # of a world's prompts; older entries are cut; 0: no limit
            examples=0,  # to tune on; 0: all
            held_out=0.2,  # share of the users, to measure on
            valid=0.1,  # share of the other users, to choose the adapter by
            evaluated=200,  # held-out prompts that are answered, at most; 0: all
            within=5.0,  # a number this near is near
            length=512,  # tokens of a row
            max_new_tokens=64,
            lora=lora(),
            train=language_training(batch_size=16, epochs=5, learning_rate=1e-3),
        )
    )


def assess() -> ConfigDict:
    """The `assess` stage: what can be measured on the explanations of a run."""
    return ConfigDict(
        dict(
            groups=("gender", "age_band"),  # columns of the user table whose groups are compared
            resamples=1000,
            draws=8,  # random sets of uncited history entries, beside those that a text cites
        )
    )


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


def shrink(config: Any) -> None:
    """Makes the stages of a config a smoke test of seconds."""
    config.explain.update(dict(users=4, top_k=1))
    config.audit.update(dict.fromkeys(config.audit, ""))
    config.judge.update(
        dict(source="world", path="", pair="", block=0, stratify="", explanations=(), by="")
    )
    config.judge.update(dict(examples=12, prompts=0, max_prompt_tokens=0, length=1024, batch=8))
    config.judge.train.update(dict(batch_size=8, epochs=1))
    config.assess.resamples = 100
    config.attributes.update(
        dict(source="world", path="", only=(), history=3, examples=12, evaluated=4, length=640)
    )
    config.attributes.update(dict(max_prompt_tokens=400, max_new_tokens=8))
    config.attributes.train.update(dict(batch_size=8, epochs=1))
