"""SASRec on Yelp (S3Rec's file), leave-one-out, full ranking, seen items masked.

    xrec run --config=configs/yelp_sasrec.py --workdir=runs/yelp_sasrec

reads `../shared/data/yelp`; elsewhere give `--config.data.path=FILE` and
`--config.data.items=FILE`. `:tiny` needs neither.

Softmax over the target and 3,000 items that a batch shares, and an item table that begins with
co-occurrence counts. Most histories are short: windows of 20 items hold nearly all of them, and
several share a row of 64 positions.

People come back to a place: of 30,431 users 2,027 end with one they have been to. It is masked, as
in S3Rec's code, so these users count as misses; `test_new` has the others.

NDCG@10 .0219 [.0206, .0232], Hit@10 .0431 (three seeds), in 10.1 CPU minutes. The settings follow
from trials on Beauty, see docs/results/recommenders.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "yelp_sasrec"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "report")
    config.data.format = "csv"
    config.data.path = "../shared/data/yelp/events.csv.gz"
    config.data.items = "../shared/data/yelp/places.csv.gz"
    config.data.filters.duplicates = "keep"
    config.ranking.rows = "first_event"
    config.recommend.popularity = defaults.system("popularity")
    config.recommend.sasrec = defaults.system(
        "sasrec",
        length=20,
        packing=64,
        stddev=0.12,
        item_init="cooccurrence",
        objective="sampled_softmax",
        sampler="uniform",
        negatives=3000,
        negatives_per="batch",
        # 32 rows hold some 1,850 events of some 250 users.
        train=dict(batch_size=32, learning_rate=2e-3, schedule="cosine", epochs=14, patience=5),
    )
    return defaults.variant(config, arg)
