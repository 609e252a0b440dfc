"""Values of the `joint` stage: recommender and explainer trained together."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from xrec_jax.joint.guards import GuardOptions
from xrec_jax.joint.rewards import sections
from xrec_jax.training.defaults import language_training, lora, training_defaults

SYSTEMS = (
    "null",
    "features",
    "prompt",
    "shuffled",
    "template",
    "summary",
    "untuned",
    "sft",
    "refit",
    "why",
    "why_not",
    "masked_titles",
    "stated",
    "planted",
)


def joint() -> ConfigDict:
    """The `joint` stage (RecPIE, arXiv 2502.16759): training, rewards, guards and controls."""
    return ConfigDict(
        dict(
            system="",  # recommender to fuse, of `recommend`; "": the first
            granularity="user",  # user: a pair a state; user_item: a pair a candidate, to rerank
            candidates=10,  # items that are reranked, where granularity is user_item
            rounds=8,
            readings=0,  # exercises in reading reviews that `pretrain` gets, in a world
            states=dict(
                source="world",  # world, or file: profiles and texts of users and items
                template="tastes",  # of a world's prompts
                history=6,  # entries in a prompt
                train_states=2,  # states of a user's training events that are explained, at most
                reach=1,  # events after a training state that its text serves for; world
                min_history=2,  # events before the first of them
                max_users=0,  # explained users, drawn; 0: all
                group="",  # user column, for the reward part group_disparity
                path="",  # JSONL, where source is file; the keys of its records:
                user_key="uid",
                item_key="iid",
                profile_key="user_summary",
                item_text_key="item_summary",
                title_key="title",
                teacher_key="explanation",
            ),
            soft_prompt=dict(
                vectors=4,  # placeholders that the user's state fills; 0: no soft prompt
                inner=0,  # size between the projector's layers; 0: the model's hidden size
                placeholder="",  # its text, one token; "": the first that the tokenizer has
            ),
            explain=dict(max_new_tokens=48, temperature=0.0),  # texts that the recommender reads
            rollout=dict(
                per_round=256,
                group_size=1,  # answers to each prompt
                temperature=1.0,
                held_out=0.3,  # share of users that are rolled out and not trained on; 0: all both
            ),
            # states of the base that a text is the mean of: last, or embedding for a small base
            encoder="last",
            lora=lora(),  # of the policy
            critic=lora() | dict(dropout=0.0),  # of the critic, which has no dropout
            sft=dict(  # the warm start of the explainer
                examples=240,
                teacher="true",  # of a world's users: all true tastes, or stated in the prompt
                train=language_training(batch_size=16, epochs=5, learning_rate=1e-3),
            ),
            ppo=dict(
                estimator="gae",  # gae: PPO with a critic; group: GRPO, needs rollout.group_size
                discount=1.0,
                lam=0.95,
                whiten=True,  # gae: advantages of a batch to mean 0 and standard deviation 1
                scale=True,  # group: divide scores by the spread of the group
                clip=0.2,
                value_clip=0.2,
                value_weight=0.1,
                entropy_weight=0.0,
                kl_stop=0.1,  # nats a token since the rollout; 0: off
                epochs=2,
                batch_size=64,
                # A prompt is read once for all answers of its group; updates take whole groups.
                share_prompts=True,
                accumulation=1,
                critic_warmup=1,  # first rounds in which only the critic learns
                missing_eos=1.0,  # taken from the score of an answer that does not end
                policy=_rule(3e-4),
                critic=_rule(1e-3),
            ),
            kl=dict(
                reference="warm_start",  # warm_start: the tuned explainer; base: adapter off
                kind="k1",  # estimator in the reward: k1, k2 or k3
                beta=0.05,  # in units of the score; of the group's spread where ppo.scale is used
                target=0.0,  # nats an answer that beta is steered to; 0: beta stays
                gain=0.1,
            ),
            rewards=dict(log_prob_gain=1.0),  # part: weight, or dict(weight=..., options)
            **sections(),  # of reward parts with evidence: judge
            recommender=dict(
                components=32,  # of an encoding, whitened; 0: all its features
                bottleneck=32,
                hidden=64,
                null_dropout=0.1,
                null_rows=0.0,
                code_dropout=0.0,
                match=0,  # features of the match with the items' own texts, such as 32; 0: none
                reconstruction=0.1,
                train_base=False,  # else the base stays as it is, decay included
                base_dropout=True,  # read the base with its dropout in training
                temperature=0.0,  # of its scores; 0: fitted on the looked-at valid users
                sides="both",  # why, why_not: which parts are read
                warm_steps=300,
                steps=50,  # a round
                final_steps=300,
                train=_recommender_rule(),
            ),
            cache=dict(refresh=0.25),  # share of the training states explained anew each round
            valid_users=300,  # whose gain decides on the best round; 0: all
            guards=dataclasses.asdict(GuardOptions()),  # limits; None: off
            systems=SYSTEMS,  # controls that are trained and tested beside joint
            samples=4,  # valid users whose texts are kept every round
        )
    )


def _rule(learning_rate: float) -> ConfigDict:
    """How PPO updates one of its two parts."""
    rule = language_training(learning_rate=learning_rate, schedule="constant", warmup=0.0)
    kept = (
        "optimizer",
        "learning_rate",
        "schedule",
        "warmup",
        "final_rate",
        "b1",
        "b2",
        "weight_decay",
        "embedding_weight_decay",
        "clip_norm",
    )
    return ConfigDict({key: rule[key] for key in kept})


def _recommender_rule() -> ConfigDict:
    rule = training_defaults()
    kept = {key: rule[key] for key in _rule(0.0)}
    return ConfigDict(kept | dict(batch_size=256, learning_rate=3e-3))


def shrink(config: ConfigDict) -> None:
    """Makes the stage as small as `:tiny` wants it."""
    if "joint" in config.stages:  # what is read there must be written
        config.data.world.update(dict(about_share=0.8, review_share=0.7))
    joint = config.joint
    joint.update(dict(rounds=2, readings=min(joint.readings, 200), valid_users=20, samples=2))
    joint.states.update(dict(source="world", path="", history=3, max_users=40, train_states=1))
    joint.explain.max_new_tokens = 16
    group = min(joint.rollout.group_size, 2)
    joint.rollout.update(dict(per_round=16 * group, group_size=group))
    joint.sft.examples = 12
    joint.sft.train.update(dict(batch_size=8, epochs=2))
    joint.ppo.update(dict(epochs=1, batch_size=8 * group, accumulation=1, critic_warmup=0))
    joint.recommender.update(
        dict(components=8, bottleneck=8, hidden=16, warm_steps=8, steps=4, final_steps=8)
    )
    joint.recommender.train.batch_size = 32
    # A model of this size writes nothing sensible, and nothing that ends.
    joint.guards.update(
        dict(
            min_ended=None,
            min_length_ratio=None,
            max_length_ratio=None,
            max_missing_why_not=None,
            max_odd_tokens=None,
            max_repetition=None,
            max_leak=None,
        )
    )
