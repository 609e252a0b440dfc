"""BPR-MF on Google Maps reviews with their given split: every held-out place of a user counts.

    xrec run --config=configs/google_maps_bpr.py --workdir=runs/google_maps_bpr \
      --config.data.path=../shared/data/google-maps

The folder holds train, valid and test files (`user,item`, no timestamps). Chosen on validation
NDCG@20. Expected figures and the time they take are in docs/results/recommenders.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "google_maps_bpr"
    config.data.format = "csv"
    config.data.path = "../shared/data/google-maps"
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
    return defaults.variant(config, arg)
