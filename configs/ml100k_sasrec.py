from ml_collections import ConfigDict

from xrec_jax.pipelines import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_sasrec"
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.sasrec = defaults.system(
        "sasrec", train=dict(batch_size=64, learning_rate=1e-3, epochs=100, patience=20)
    )
    return config
