"""SASRec on MovieLens-1M, leave-one-out, full ranking, seen films masked.

    xrec run --config=configs/ml1m_sasrec.py --workdir=runs/ml1m_sasrec

reads `../shared/data/ml-1m`; elsewhere give `--config.data.path=FILE` and
`--config.data.items=FILE`. `:tiny` needs neither.

Cross entropy over the 3,416 films on the last 200 events of each user, as in Klenitskiy and Vasilev
(RecSys 2023), short histories packed; layers of LiGR, rotary positions. In this copy the event
before the last is missing for 1,743 users; `experiments/history_gaps.py --workdir=RUN` tells them
from the others.

Three seeds, 63 CPU minutes; NDCG@10 .1721, Hit@10 .3056; .1805 and .3187 for the users with
complete histories, which compare with published figures. What else was tried stands in
docs/results/recommenders.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml1m_sasrec"
    config.seeds = (0, 1, 2)
    config.stages = ("recommend", "report")
    config.data.format = "csv"
    config.data.path = "../shared/data/ml-1m/events.csv.gz"
    config.data.items = "../shared/data/ml-1m/films.csv.gz"
    config.recommend.popularity = defaults.system("popularity")
    config.recommend.sasrec = defaults.system(
        "sasrec",
        inner=64,
        heads=1,
        length=200,
        packing=200,
        windows="latest",
        dropout=0.2,
        block="gated",
        positions="rotary",
        train=dict(batch_size=16, learning_rate=2e-3, schedule="cosine", epochs=30, patience=30),
    )
    return defaults.variant(config, arg)
