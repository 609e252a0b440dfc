"""Trains a recommender on the planted world and explains what it recommends.

python examples/train_and_explain.py --workdir=runs/example
"""

import argparse

import xrec_jax
from xrec_jax import defaults
from xrec_jax.api.run import run


def main(workdir: str, users: int = 300, epochs: int = 5) -> None:
    """Trains in `workdir`, or opens what is there, and prints three explanations."""
    config = defaults.base()
    config.name = "example"
    config.data.world.update(num_users=users, num_items=120)
    config.recommend.bpr = defaults.system("bpr", dim=32, train=dict(epochs=epochs))
    config.stages = ("recommend", "explain", "report")
    config.explain.explainers = ("template",)
    run(config, workdir)

    restored = xrec_jax.restore(workdir)
    for record in restored.explain(restored.recommend(["u00000"], top_k=3)):
        print(record["item"], record["text"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/example")
    main(parser.parse_args().workdir)
