"""RecPIE on the planted world: recommender and explainer trained together, with every control.

    xrec run --config=configs/recpie_world.py --workdir=runs/recpie_world

A world of few visits, in which people say in their own words what they like and what they avoid:
who reads it knows more than the visits tell. Three seeds, 45 minutes on two CPU cores that at times
also ran tests. NDCG@10 .1284 (recommender alone), .1547 (joint, +20.5 % [+17.1, +24.2]), .1521
(tuned explainer without PPO), .1281 (another user's text).

Behind a colon stands an ablation (`configs/recpie_world.py:no_soft_prompt`), what it changes is in
`ABLATIONS`: one for each control of the method, and some for the training. `:short` is one seed on
a smaller world, `:tiny` a smoke test. `experiments/recpie_ablations.py` runs them and makes a
table.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

ABLATIONS = {
    # What the recommender reads instead of trained explanations; nothing is trained jointly.
    "no_text": dict(rounds=0, systems=("null",)),
    "features": dict(rounds=0, systems=("features",)),
    "prompt": dict(rounds=0, systems=("prompt",)),
    "template": dict(rounds=0, systems=("template",)),
    "summary": dict(rounds=0, systems=("summary",)),
    "untuned": dict(rounds=0, systems=("untuned",)),
    "sft_only": dict(rounds=0, systems=("sft",)),
    # Jointly trained explanations, read otherwise.
    "shuffled": dict(systems=("shuffled",)),
    "masked_titles": dict(systems=("masked_titles",)),
    "why_only": dict(systems=(), recommender=dict(sides="why")),
    "why_not_only": dict(systems=(), recommender=dict(sides="why_not")),
    "no_soft_prompt": dict(systems=(), soft_prompt=dict(vectors=0)),
    # Trained otherwise.
    "ppo": dict(systems=(), ppo=dict(estimator="gae"), rollout=dict(group_size=1)),
    "no_kl": dict(systems=(), kl=dict(beta=0.0)),
    "base_reference": dict(systems=(), kl=dict(reference="base"), guards=dict(kl_ceiling=10.0)),
    "shuffled_reward": dict(systems=(), rewards=dict(log_prob_gain=0.0, shuffled_gain=1.0)),
    "ndcg_reward": dict(systems=(), rewards=dict(log_prob_gain=0.0, ndcg_gain=1.0)),
    "trained_base": dict(systems=("null",), recommender=dict(train_base=True, null_rows=0.2)),
    "stated_teacher": dict(systems=("sft",), sft=dict(teacher="stated")),
    "last_states": dict(systems=(), encoder="last"),
    "user_item": dict(
        granularity="user_item",
        systems=("sft", "shuffled"),
        guards=dict(gain_metric="valid/gain"),
        rollout=dict(per_round=1024),
        ppo=dict(batch_size=64),
        states=dict(template="candidate", max_users=400),
        valid_users=60,
        explain=dict(max_new_tokens=64),
    ),
}
# A few minutes, to see all of it once: what `make quickstart` ends with.
SHORT = dict(
    rounds=3,
    valid_users=600,
    rollout=dict(per_round=256),
    recommender=dict(warm_steps=150, steps=30, final_steps=150),
    systems=("null", "shuffled", "sft", "planted"),
)


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = f"recpie_world_{arg}" if arg in ABLATIONS else "recpie_world"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "pretrain", "joint", "report")
    config.data.world.update(
        dict(
            num_users=4000,
            num_items=300,
            mean_visits=8.0,
            about_share=0.8,
            review_share=0.5,
            popularity_strength=0.6,
            sequence_strength=0.75,
            distance_strength=0.2,
        )
    )
    config.recommend.sasrec = defaults.system(
        "sasrec",
        layers=1,
        length=20,
        dropout=0.3,
        train=dict(batch_size=256, learning_rate=2e-3, epochs=60, patience=8),
    )
    config.llm.update(
        dict(
            vocab_size=1024,
            hidden_size=128,
            intermediate_size=344,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            generation_batch=64,
        )
    )
    config.pretrain.update(dict(copies=0, described=0, talk=0, length=320))
    config.pretrain.train.update(dict(batch_size=4, epochs=1, learning_rate=3e-3, log_every=400))
    joint = config.joint
    joint.readings = 128000
    joint.states.update(dict(train_states=1, reach=8, history=4))
    joint.lora.update(dict(rank=32, alpha=64.0, dropout=0.0))
    joint.critic.update(dict(rank=8, alpha=16.0, dropout=0.0))
    joint.sft.examples = 120
    joint.sft.train.update(dict(epochs=3, learning_rate=6e-3))
    joint.rounds = 7
    joint.ppo.estimator = "group"  # rewards differ more between users than between their texts
    joint.ppo.policy.learning_rate = 6e-4
    joint.ppo.batch_size = 256
    joint.kl.beta = 0.02
    joint.rollout.update(dict(per_round=4096, group_size=8, temperature=0.8))
    joint.ppo.epochs = 1
    joint.valid_users = 1600
    joint.guards.gain_metric = "valid/log_prob_gain"  # every user counts in it
    joint.explain.max_new_tokens = 40
    joint.encoder = "embedding"  # last states of so small a base hide what a text says
    joint.cache.refresh = 0.1
    joint.recommender.update(
        dict(components=32, bottleneck=64, null_dropout=0.3, code_dropout=0.2, warm_steps=500)
    )
    joint.recommender.train.update(dict(optimizer="adamw", learning_rate=1e-3, weight_decay=1.0))
    if arg == "short":
        config.seeds = (0,)
        config.data.world.num_users = 2500
        joint.readings = 16000
        joint.ppo.batch_size = 64
        joint.update(SHORT)
        return config
    if arg in ABLATIONS:
        joint.update(ABLATIONS[arg])
        return config
    return defaults.variant(config, arg)
