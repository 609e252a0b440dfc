"""The data of a run: read from files, or generated."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Dataset, Interactions, Split
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
    """Reads or generates the data that `config.data` describes, and splits it.

    Format "none" is a data set without users, items and events, for runs that only tune a language
    model on files of texts.
    """
    world = None
    if config.format == "none":
        nothing = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))
        ids = np.zeros(0, np.str_)
        return RunData(Dataset("none", nothing, ids, ids), Split(nothing, nothing, nothing), None)
    if config.format == "world":
        world = generate(WorldConfig.from_mapping(config.world))
        dataset = world.dataset
    else:
        dataset = load(config)
    return RunData(dataset, split(dataset, config.split), world)


def need_events(data: RunData, stage: str) -> None:
    """Raises a `UserError` if a stage that needs events has none."""
    if not data.dataset.num_items:
        raise UserError(f"stage {stage!r} needs data, but config.data.format is 'none'")


def need_world(data: RunData, key: str) -> None:
    """Raises a `UserError` if what a config asks of a planted world cannot be had."""
    if data.world is None:
        raise UserError(f"{key}='world' needs config.data.format='world'; give files instead")
