"""SASRec on MovieLens-100K, leave-one-out by time, seen items masked.

    xrec run --config=configs/ml100k_sasrec.py --workdir=runs/ml100k_sasrec \
      --config.data.path=../shared/data/ml-100k

Short windows with a long context before each target (20 items, of which 6 are predicted) suit this
data better than long ones, and one layer did as well as two in trials with one seed. Chosen on
validation NDCG@10. Expected figures and the time they take are in docs/results/recommenders.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_sasrec"
    config.seeds = (0, 1, 2)
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.sasrec = defaults.system(
        "sasrec",
        layers=1,
        length=20,
        context=14,
        dropout=0.5,
        train=dict(batch_size=256, learning_rate=5e-3, epochs=50, patience=12),
    )
    return defaults.variant(config, arg)
