"""SASRec on MovieLens-1M, leave-one-out, full ranking, seen films masked.

    xrec run --config=configs/ml1m_sasrec.py --workdir=runs/ml1m_sasrec

reads `../shared/data/ml-1m`; elsewhere give `--config.data.path=FILE` and
`--config.data.items=FILE`. `:tiny` needs neither.

Cross entropy over the 3,416 films on windows of 200, as in Klenitskiy and Vasilev (RecSys 2023),
short ones packed. In this copy the event before the last is missing for 1,743 users;
`experiments/history_gaps.py --workdir=RUN` tells them from the others.

Not measured yet: the settings are a start, chosen by nothing.
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
        dim=128,
        inner=128,
        heads=1,
        length=200,
        packing=200,
        dropout=0.2,
        block="pre_norm",
        train=dict(batch_size=64, learning_rate=1e-3, epochs=100, patience=10),
    )
    return defaults.variant(config, arg)
