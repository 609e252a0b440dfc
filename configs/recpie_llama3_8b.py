"""RecPIE with LLaMA-3-8B on Google Maps reviews, for a pod or a server of eight accelerators.

    xrec run --config=configs/recpie_llama3_8b.py --workdir=runs/recpie_llama3_8b \
      --config.llm.path=META-LLAMA-3-8B-INSTRUCT --config.mesh.fsdp=8

The base is one frozen bfloat16 copy, split over the mesh; policy and critic are adapters on it, the
reference is the base with its adapter off. Not run here: settings are those of published PPO on
models of this size (KL .05, lambda .95, clip .2, two epochs a round). `:tiny` shrinks it to a smoke
test without files.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/google-maps"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "recpie_llama3_8b"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "joint", "report")
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
    config.llm.update(dict(dtype="bfloat16", remat="full", generation_batch=256))
    joint = config.joint
    joint.rounds = 20
    joint.states.update(
        dict(source="file", path=f"{DATA}/explanations.jsonl.gz", template="profiles", history=10)
    )
    joint.soft_prompt.vectors = 8
    joint.explain.max_new_tokens = 160
    joint.lora.update(dict(rank=16, alpha=32.0, dropout=0.0))
    joint.critic.update(dict(rank=8, alpha=16.0, dropout=0.0))
    joint.sft.train.update(dict(batch_size=16, epochs=3, learning_rate=2e-4))
    joint.rollout.update(dict(per_round=1024, temperature=1.0))
    joint.ppo.update(dict(batch_size=128, epochs=2, accumulation=2, critic_warmup=2))
    joint.ppo.policy.learning_rate = 1e-5
    joint.ppo.critic.learning_rate = 5e-5
    joint.kl.update(dict(reference="base", beta=0.05, target=10.0))
    joint.valid_users = 0
    joint.guards.gain_metric = "valid/log_prob_gain"  # every user counts in it
    joint.guards.kl_ceiling = 2.0  # an explainer tuned to a form of its own is far from its base
    joint.recommender.update(dict(components=64, bottleneck=64))
    joint.recommender.train.update(dict(optimizer="adamw", learning_rate=5e-4, weight_decay=1.0))
    return defaults.variant(config, arg)
