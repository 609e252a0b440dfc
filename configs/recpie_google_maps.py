"""RecPIE on Google Maps reviews with their given split, and a small LLaMA from nothing.

    xrec run --config=configs/recpie_google_maps.py --workdir=runs/recpie_google_maps

reads `../shared/data/google-maps`: events, and 2,000 records of profiles, places and explanations.
Three seeds, 35 minutes on two CPU cores beside other work: no round's explanations added to the
log-probability of valid users' places; NDCG@10 of the explained users .0495 alone, .0495 joint.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/google-maps"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "recpie_google_maps"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "pretrain", "joint", "report")
    config.data.format = "csv"
    config.data.path = DATA
    config.data.split.kind = "given"
    config.recommend.bpr = defaults.system(
        "bpr",
        negatives=4,
        l2=0.01,
        stddev=0.01,
        train=dict(
            batch_size=8192, learning_rate=1e-2, epochs=60, patience=5, metric="valid/ndcg@20"
        ),
    )
    config.llm.update(
        dict(
            vocab_size=4096,
            hidden_size=128,
            intermediate_size=344,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            generation_batch=64,
        )
    )
    config.pretrain.update(dict(source="joint", length=256))
    config.pretrain.train.update(dict(batch_size=16, epochs=5, learning_rate=3e-3))
    joint = config.joint
    joint.states.update(
        dict(source="file", path=f"{DATA}/explanations.jsonl.gz", template="profiles", history=4)
    )
    joint.encoder = "embedding"
    joint.rounds = 4
    joint.explain.max_new_tokens = 80
    joint.lora.update(dict(rank=32, alpha=64.0, dropout=0.0))
    joint.critic.update(dict(rank=8, alpha=16.0, dropout=0.0))
    joint.sft.train.update(dict(epochs=6, learning_rate=6e-3))
    joint.ppo.estimator = "group"  # rewards differ more between users than between their texts
    joint.ppo.policy.learning_rate = 1e-3
    joint.rollout.update(dict(per_round=256, group_size=4))
    joint.cache.refresh = 0.1
    joint.valid_users = 0
    joint.guards.gain_metric = "valid/log_prob_gain"  # every user counts in it
    joint.recommender.update(dict(components=32, bottleneck=32))
    joint.recommender.train.update(dict(optimizer="adamw", learning_rate=5e-4, weight_decay=1.0))
    return defaults.variant(config, arg)
