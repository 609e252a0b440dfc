"""The next place on Foursquare's New York check-ins, where people come back.

xrec run --config=configs/foursquare_next.py --workdir=runs/foursquare_next
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "foursquare_next"
    config.stages = ("recommend", "report")
    config.data.format = "csv"
    config.data.path = "../shared/data/foursquare-nyc/events.csv.gz"
    config.data.items = "../shared/data/foursquare-nyc/places.csv.gz"
    config.data.filters.duplicates = "keep"
    config.data.split.update(
        dict(kind="time", at="2012-11-09 21:54:47", valid_at="0.9", unseen_users="drop")
    )
    config.ranking.update(dict(ks=(1, 5, 10, 20), rows="event", mask_seen=False))
    for name in ("popularity", "frequency", "recency", "transitions"):
        config.recommend[name] = defaults.system(name)
    config.recommend.next_place = defaults.system(
        "next_place",
        category="category",
        latitude="latitude",
        longitude="longitude",
        train=dict(batch_size=64, learning_rate=3e-3, epochs=40, patience=5),
    )
    return defaults.variant(config, arg)
