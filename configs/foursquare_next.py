"""The next place on Foursquare's New York check-ins, where people come back.

    xrec run --config=configs/foursquare_next.py --workdir=runs/foursquare_next

reads `../shared/data/foursquare-nyc`; elsewhere give `--config.data.path=FILE` and
`--config.data.items=FILE`. `:tiny` needs neither.

All users are cut at 2012-11-09 21:54:47 UTC, before which the profiles of that data were written;
the last tenth of what comes before is validation. Every later check-in, 32,617 of 880 users, is
ranked by itself among all 5,135 places, from all that the user did before it; those of 31 users
without a training event are dropped. Nothing is masked; Acc@1 is `hit@1`.

`next_place` has NDCG@10 .4488 [.4323, .4654] and Acc@1 .2419 (three seeds), the user's own most
frequent places .4124 [.3889, .4325] and .2114. It took 8 to 14 minutes a seed on one core, `sasrec`
4 to 7. More in docs/results/places.md.
"""

from typing import Any

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "foursquare_next"
    config.seeds = (0, 1, 2)
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
    places: dict[str, Any] = dict(latitude="latitude", longitude="longitude")
    config.recommend.distance = defaults.system("distance", **places)
    config.recommend.bpr = defaults.system(
        "bpr",
        negatives=4,
        l2=0.01,
        train=dict(batch_size=2048, learning_rate=5e-3, epochs=40, patience=5),
    )
    sequences = dict(batch_size=64, patience=5)
    config.recommend.sasrec = defaults.system(
        "sasrec",
        length=100,
        dropout=0.3,
        block="pre_norm",
        stddev=0.1,
        item_init="cooccurrence",
        train=dict(learning_rate=3e-3, schedule="cosine", epochs=14, **sequences),
    )
    config.recommend.next_place = defaults.system(
        "next_place",
        dropout=0.4,
        category="category",
        **places,
        train=dict(learning_rate=5e-3, epochs=22, **sequences),
    )
    return defaults.variant(config, arg)
