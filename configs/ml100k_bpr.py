from ml_collections import ConfigDict

from xrec_jax.pipelines import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_bpr"
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.bpr = defaults.system(
        "bpr", train=dict(batch_size=2048, learning_rate=5e-3, epochs=60)
    )
    return config
