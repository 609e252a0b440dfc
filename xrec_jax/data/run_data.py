"""Data of a run: read from files, or generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections
import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.load import load, split
from xrec_jax.data.readers.sources import item_vectors
from xrec_jax.data.readers.vectors import ItemVectors
from xrec_jax.data.world import World, WorldConfig, generate


class RunData(NamedTuple):
    """Data of a run.

    Attributes:
      dataset: all events, users and items.
      split: training, validation and test events.
      world: the planted world behind the data; None for data from files.
      train_share: share of the users whose training events models are trained on; those of the
        others serve as histories only.
      item_vectors: vectors of the items' content; None without any.
    """

    dataset: Dataset
    split: Split
    world: World | None
    train_share: float = 1.0
    item_vectors: ItemVectors | None = None

    @property
    def learned(self) -> Interactions:
        """Training events that models are trained on."""
        train, count = self.split.train, self.dataset.num_users
        if self.train_share == 1.0:
            return train
        order = rng.permutation(rng.fold(0, Stream.TRAIN_SHARE), count)
        kept = order[: max(1, round(self.train_share * count))]
        return train.take(np.isin(train.user, kept))


def prepare(config: ml_collections.ConfigDict) -> RunData:
    """Reads or generates the data that `config.data` describes, and splits it.

    Format "none" is a data set without users, items and events, for runs that only tune a language
    model on files of texts.
    """
    world = None
    if config.format == "none":
        # An empty data set keeps later code free of None checks.
        nothing = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))
        ids = np.zeros(0, np.str_)
        none = Split(nothing, nothing, nothing, kind="leave_one_out")  # as configs say by default
        return RunData(Dataset("none", nothing, ids, ids), none, None)
    if config.format == "world":
        world = generate(WorldConfig.from_mapping(config.world))
        dataset = world.dataset
    else:
        dataset = load(config)
    if not 0.0 < config.train_share <= 1.0:
        raise UserError(f"data.train_share={config.train_share} must be above 0 and at most 1")
    vectors = item_vectors(config, dataset.item_ids)
    return RunData(dataset, split(dataset, config.split), world, config.train_share, vectors)


def need_events(data: RunData, stage: str) -> None:
    """Raises a `UserError` if a stage that needs events has none."""
    if not data.dataset.num_items:
        raise UserError(f"stage {stage!r} needs data, but config.data.format is 'none'")


def need_world(data: RunData, key: str) -> None:
    """Raises a `UserError` if a config needs a planted world and the data is not one."""
    if data.world is None:
        raise UserError(f"{key}='world' needs config.data.format='world'; give files instead")


def describe(data: RunData, config: ml_collections.ConfigDict) -> str:
    """Describes the sizes of a run's data, dropped events, and users without test events.

    Args:
      data: data of the run.
      config: `config.data` of the run.
    """
    if not data.dataset.num_items:
        return "data: none, only texts"
    dataset, split = data.dataset, data.split
    ties = f"{split.tied_users} users end on tied timestamps"
    if dataset.interactions.timestamp is None:
        ties = "no timestamps: file order stands for time"
    elif split.kind == "given":
        ties = "split as in the files"
    elif split.kind == "time":
        ties = f"split at {config.split.at} for all users"
    first = (
        f"data {dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items; "
        f"{len(split.train):,} training, {len(split.valid):,} validation and {len(split.test):,} "
        f"test events; {ties}"
    )
    lines = [first, *_left_out(data, config), *_untested(data, config)]
    if data.item_vectors is not None:
        values, present = data.item_vectors
        without = f", {(~present).sum():,} have none" * (not present.all())
        lines.append(f"item vectors: {values.shape[1]} features{without}")
    if dataset.items is not None and data.world is None and dataset.title is None:
        columns = ", ".join(dataset.items.columns) or "none"
        lines.append(
            f"note: no column of titles in the item table ({columns}): texts name items by their "
            "ids; data.columns.title names one"
        )
    return "\n".join(lines)


def _left_out(data: RunData, config: ml_collections.ConfigDict) -> list[str]:
    """Lines on events, users, items and descriptions that were dropped."""
    notes, filters = data.dataset.notes, config.filters
    cores = f"user_core={filters.user_core}, item_core={filters.item_core}"
    dropped = _counted(
        notes,
        duplicates_dropped=f"repeated events (duplicates={filters.duplicates!r})",
        min_rating_dropped=f"events rated too low (min_rating={filters.min_rating})",
        core_dropped=f"events of users and items with too few ({cores})",
        users_dropped="users with all their events",
        items_dropped="items with all their events",
    )
    kept = _counted(
        notes,
        duplicates_kept="events repeat a user and an item and are kept (duplicates='keep')",
        pairs_in_several_parts="pairs of a user and an item stand in several parts of the split",
        users_without_interactions="described users have no event and are left out",
        items_without_interactions="described items have no event and are left out",
        users_without_description="users are not described in the user table",
        items_without_description="items are not described in the item table",
    )
    return [f"dropped: {', '.join(dropped)}"] * bool(dropped) + [f"note: {text}" for text in kept]


def _counted(notes: Mapping[str, int], **texts: str) -> list[str]:
    return [f"{notes[key]:,} {text}" for key, text in texts.items() if notes.get(key)]


def _untested(data: RunData, config: ml_collections.ConfigDict) -> list[str]:
    """Lines on surprising properties of the split, and on users without test events."""
    dataset, split = data.dataset, data.split
    lines = []
    if dataset.splits is not None and split.kind != "given":
        names = ", ".join(dataset.splits)
        lines.append(f"note: the files' own parts ({names}) are joined and split anew")
    if split.dropped_users:
        lines.append(
            f"dropped: the held-out events of {split.dropped_users:,} users without a training "
            "event (split.unseen_users='drop')"
        )
    if split.kind == "given" and config.split.validation == "last":
        lines.append("note: each user's last training event is the validation event")
    tested, learned = np.unique(split.test.user), np.unique(data.learned.user)
    missing = dataset.num_users - len(tested)
    if missing:
        lines.append(
            f"not tested: {missing:,} of {dataset.num_users:,} users, who have no test event"
        )
    unknown = len(np.setdiff1d(tested, split.train.user))
    if unknown:
        lines.append(f"note: {unknown:,} users are tested without a training event")
    if data.train_share < 1.0:
        lines.append(f"note: models learn from the events of {len(learned):,} users only")
    return lines
