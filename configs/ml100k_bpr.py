"""BPR-MF on MovieLens-100K, leave-one-out by time, seen items masked.

    xrec run --config=configs/ml100k_bpr.py --workdir=runs/ml100k_bpr \
      --config.data.path=../shared/data/ml-100k

Four negatives a pair and a little weight on the vectors' norms. Chosen on validation NDCG@10.
Expected figures and the time they take are in docs/results/recommenders.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_bpr"
    config.seeds = (0, 1, 2)
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.bpr = defaults.system(
        "bpr",
        negatives=4,
        l2=0.008,
        stddev=0.01,
        train=dict(
            batch_size=2048, learning_rate=1e-2, epochs=60, patience=10, checkpoint_every=30
        ),
    )
    return defaults.variant(config, arg)
