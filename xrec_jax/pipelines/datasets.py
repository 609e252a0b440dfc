"""The data of a run: read from files, or generated."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data import keyed
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.load import load, split
from xrec_jax.data.world import World, WorldConfig, generate


class RunData(NamedTuple):
    """Data of a run.

    Attributes:
      dataset: all events, users and items.
      split: training, validation and test events.
      world: the planted world behind the data, or None where it comes from files.
      train_share: share of the users whose training events models learn from; those of all others
        are known as their history only.
    """

    dataset: Dataset
    split: Split
    world: World | None
    train_share: float = 1.0

    @property
    def learned(self) -> Interactions:
        """Training events that models learn from."""
        train, count = self.split.train, self.dataset.num_users
        if self.train_share == 1.0:
            return train
        order = keyed.permutation(keyed.fold(0, 54), count)
        kept = order[: max(1, round(self.train_share * count))]
        return train.take(np.isin(train.user, kept))


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
    if not 0.0 < config.train_share <= 1.0:
        raise UserError(f"data.train_share={config.train_share} must be above 0 and at most 1")
    return RunData(dataset, split(dataset, config.split), world, config.train_share)


def need_events(data: RunData, stage: str) -> None:
    """Raises a `UserError` if a stage that needs events has none."""
    if not data.dataset.num_items:
        raise UserError(f"stage {stage!r} needs data, but config.data.format is 'none'")


def need_world(data: RunData, key: str) -> None:
    """Raises a `UserError` if what a config asks of a planted world cannot be had."""
    if data.world is None:
        raise UserError(f"{key}='world' needs config.data.format='world'; give files instead")
