from ml_collections import ConfigDict

from xrec_jax.pipelines import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "google_maps_lightgcn"
    config.data.format = "csv"
    config.data.path = "../shared/data/google-maps"
    config.data.split.kind = "given"
    config.recommend.lightgcn = defaults.system(
        "lightgcn", train=dict(batch_size=8192, learning_rate=2e-3, epochs=60)
    )
    if arg == "tiny":
        defaults.shrink(config)
    return config
