"""The data of a run: read from files, or generated."""

from __future__ import annotations

from typing import Any, NamedTuple

from xrec_jax.data.dataset import Dataset, Split
from xrec_jax.data.load import load, split
from xrec_jax.data.world import World, WorldConfig, generate


class RunData(NamedTuple):
    """Data of a run.

    Attributes:
      dataset: all events, users and items.
      split: training, validation and test events.
      world: the planted world behind the data, or None where it comes from files.
    """

    dataset: Dataset
    split: Split
    world: World | None


def prepare(config: Any) -> RunData:
    """Reads or generates the data that `config.data` describes, and splits it."""
    world = None
    if config.format == "world":
        world = generate(WorldConfig.from_mapping(config.world))
        dataset = world.dataset
    else:
        dataset = load(config)
    return RunData(dataset, split(dataset, config.split), world)
