"""A recommender of your own, trained, evaluated and restored like the others.

    python examples/own_recommender.py --workdir=runs/last_item

With this folder in PYTHONPATH the run's later commands know it too:

    xrec recommend --workdir=runs/last_item --allow_imports --output=top.jsonl
"""

import argparse
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

import xrec_jax
from xrec_jax import defaults
from xrec_jax.api.run import run
from xrec_jax.recommenders import Recommender, Tables, register
from xrec_jax.recommenders.layers import Table


class Net(nn.Module):
    """One vector for each item."""

    items: int
    dim: int

    def setup(self) -> None:
        self.item = Table(self.items, self.dim, 0.05)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.item(ids)


@register("last_item")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LastItem(Recommender):
    """Recommends the items nearest to the one seen last."""

    dim: int = 32
    batches = "sequences"
    history_length = 10

    def init(self, key):
        return Net(self.num_items, self.dim).init(key, jnp.zeros((1,), jnp.int32))["params"]

    def loss(self, params, frozen, batch, key):
        # Softmax over the catalogue at every position: item t predicts item t + 1.
        table = params["item"]["embedding"]
        logits = jnp.einsum("btd,id->bti", table[batch["history"]], table)[..., : self.num_items]
        own = jnp.take_along_axis(nn.log_softmax(logits), batch["target"][..., None], -1)[..., 0]
        return -jnp.sum(own * batch["weight"]) / jnp.sum(batch["weight"]), {}

    def tables(self, params, frozen):
        return Tables(item=params["item"]["embedding"])

    def user_state(self, params, tables, batch):
        last = jnp.maximum(batch["length"] - 1, 0)[:, None]
        return tables.item[jnp.take_along_axis(batch["history"], last, axis=1)[:, 0]]


def main(workdir: str, users: int = 300, epochs: int = 5) -> None:
    """Trains it beside popularity and prints what it recommends."""
    config = defaults.base()
    config.name = "last item"
    config.imports = ("own_recommender",)  # this file, for later commands
    config.data.world.update(num_users=users, num_items=120)
    config.recommend.popularity = defaults.system("popularity")
    config.recommend.last_item = defaults.system("last_item", dim=32, train=dict(epochs=epochs))
    config.stages = ("recommend",)
    run(config, workdir)

    for record in xrec_jax.restore(workdir).recommend(["u00000"], top_k=3, system="last_item"):
        print(record["rank"], record["item"], round(record["score"], 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/last_item")
    main(parser.parse_args().workdir)
