"""The next *new* place on Foursquare's New York check-ins: every pair of user and place once.

    xrec encode --items=../shared/data/foursquare-nyc/places.csv.gz --base=smollm2 \
      --text='{name}, {category}' --output=runs/foursquare_places.parquet
    xrec run --config=configs/foursquare_new.py --workdir=runs/foursquare_new

The split is that of `configs/foursquare_next.py`; of each user and place only the first check-in
is kept, and what a user has been to is masked. 6,457 first visits of 812 users are ranked one by
one, the 424 to places without a training event apart, as `test_cold`. `sasrec_text` has the places'
names and categories, which `xrec encode` has read with SmolLM2 (3 to 6 minutes), instead of ids;
`lightgcn_text` has them added to ids. `:tiny` needs none of it, nor vectors.

Three seeds, 23 CPU minutes; NDCG@10 .0295 for `lightgcn`, .0293 for `next_place`, .0270 for
`sasrec_text`, .0264 for `sasrec`, .0260 for popularity. More in docs/results/places.md.
"""

from typing import Any

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "foursquare_new"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "report")
    config.data.format = "csv"
    config.data.path = "../shared/data/foursquare-nyc/events.csv.gz"
    config.data.items = "../shared/data/foursquare-nyc/places.csv.gz"
    config.data.item_vectors = "runs/foursquare_places.parquet"
    config.data.split.update(
        dict(kind="time", at="2012-11-09 21:54:47", valid_at="0.9", unseen_users="drop")
    )
    config.ranking.update(dict(ks=(1, 5, 10, 20), rows="event"))
    config.recommend.popularity = defaults.system("popularity")
    places: dict[str, Any] = dict(latitude="latitude", longitude="longitude")
    config.recommend.distance = defaults.system("distance", **places)
    tower = dict(mode="add", components=64, id_dropout=0.2)
    pairs = dict(batch_size=1024, learning_rate=5e-3, epochs=60, patience=6)
    config.recommend.bpr = defaults.system("bpr", negatives=4, l2=0.01, train=pairs)
    graph: dict[str, Any] = dict(layers=2, l2=0.01, objective="softmax", train=pairs)
    config.recommend.lightgcn = defaults.system("lightgcn", **graph)
    config.recommend.lightgcn_text = defaults.system("lightgcn", **graph, content=tower)
    sequences = dict(batch_size=64, learning_rate=2e-3, epochs=60, patience=6)
    sasrec: dict[str, Any] = dict(length=50, dropout=0.4, block="pre_norm", train=sequences)
    config.recommend.sasrec = defaults.system("sasrec", **sasrec)
    config.recommend.sasrec_text = defaults.system(
        "sasrec", **sasrec, content=dict(mode="replace", components=128, hidden=128)
    )
    config.recommend.next_place = defaults.system(
        "next_place", copy=False, length=50, category="category", **places, train=sequences
    )
    return defaults.variant(config, arg)
