"""The planted world: popularity against the three recommenders, with the best attainable score.

    make quickstart
    xrec run --config=configs/quickstart.py --workdir=runs/quickstart

The world is generated, no file is needed. `:tiny` shrinks it to a smoke test of seconds.
"""

from ml_collections import ConfigDict

from xrec_jax.pipelines import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "quickstart"
    config.stages = ("recommend", "showcase")
    config.recommend.popularity = defaults.system("popularity")
    config.recommend.bpr = defaults.system(
        "bpr",
        negatives=4,
        l2=0.03,
        stddev=0.01,
        train=dict(batch_size=2048, learning_rate=1e-2, epochs=60, patience=8),
    )
    config.recommend.lightgcn = defaults.system(
        "lightgcn",
        layers=2,
        objective="softmax",
        train=dict(batch_size=2048, learning_rate=1e-2, epochs=60, patience=8),
    )
    config.recommend.sasrec = defaults.system(
        "sasrec",
        layers=1,
        length=60,
        context=20,
        dropout=0.3,
        train=dict(batch_size=64, learning_rate=3e-3, epochs=60, patience=8),
    )
    return defaults.variant(config, arg)
