from ml_collections import ConfigDict

from xrec_jax.pipelines import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_lightgcn"
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.lightgcn = defaults.system(
        "lightgcn", train=dict(batch_size=4096, learning_rate=1e-2, epochs=60)
    )
    return config
