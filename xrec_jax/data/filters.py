"""Filters of events: repeated pairs, low ratings, users and items with few events."""

from __future__ import annotations

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.readers import options

DUPLICATES = ("first", "last", "keep")
KEYS = ("min_rating", "user_core", "item_core", "duplicates")


def repeated(events: Interactions, split: np.ndarray, keep: str) -> np.ndarray:
    """Marks the events that repeat a user-item pair within their split.

    Args:
      events: `[n]` events.
      split: `[n]` index of the given split that an event is in; all 0 without one.
      keep: "first" or "last": the occurrence by time that is not marked; equal times, and events
        without times, are in file order.

    Returns:
      `[n]` bool.
    """
    mask = np.zeros(len(events), bool)
    if not len(events):
        return mask
    num_users, num_items = int(events.user.max()) + 1, int(events.item.max()) + 1
    pair = (split.astype(np.int64) * num_users + events.user) * num_items + events.item
    # One integer a (split, user, item) triple; a sort finds those that occur more than once.
    ordered = np.sort(pair)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(several):
        return mask
    # Only pairs that do occur twice need the slower sort by time.
    slot = np.minimum(np.searchsorted(several, pair), len(several) - 1)
    rows = np.flatnonzero(several[slot] == pair)
    keys = (pair[rows],) if events.timestamp is None else (events.timestamp[rows], pair[rows])
    rows = rows[np.lexsort(keys)]
    same_as_before = pair[rows[1:]] == pair[rows[:-1]]
    mask[rows[1:] if keep == "first" else rows[:-1]] = same_as_before
    return mask


def k_core(user: np.ndarray, item: np.ndarray, *, user_core: int, item_core: int) -> np.ndarray:
    """Marks the largest set of events in which every user and item has enough of them.

    Removing a user's events may leave an item with too few and the reverse, so both rules are
    applied until neither removes anything.

    Args:
      user: `[n]` user rows.
      item: `[n]` item rows.
      user_core: least number of events a user.
      item_core: least number of events an item.

    Returns:
      `[n]` bool, True for the events kept.
    """
    rows = np.arange(len(user))
    while len(rows):
        stay = np.bincount(user[rows])[user[rows]] >= user_core
        stay &= np.bincount(item[rows])[item[rows]] >= item_core
        if stay.all():
            break
        rows = rows[stay]
    mask = np.zeros(len(user), bool)
    mask[rows] = True
    return mask


def select(
    events: Interactions, split: np.ndarray, config: object
) -> tuple[np.ndarray, dict[str, int]]:
    """Applies the filters in order: repeated pairs, least rating, cores.

    Args:
      events: `[n]` events.
      split: `[n]`, as for `repeated`.
      config: `duplicates` in `DUPLICATES` ("first" where absent), `min_rating` or None, `user_core`
        and `item_core`.

    Returns:
      Rows of the remaining events, in file order, and counts: `duplicates_dropped` (with "keep":
      `duplicates_kept`) and, for the filters that are set, `min_rating_dropped` and
      `core_dropped`.

    Raises:
      UserError: if a value of the config is invalid, ratings are missing, or no event remains.
    """
    keep = options.choice(config, "duplicates", "first", DUPLICATES)
    least = options.number(config, "min_rating", -np.inf)
    cores = {key: options.number(config, key, 0, integer=True) for key in KEYS[1:3]}
    stay = np.ones(len(events), bool)
    notes: dict[str, int] = {}

    # Repeated pairs are counted even if they are kept, for the run's notes.
    copies = repeated(events, split, "first" if keep == "keep" else keep)
    notes["duplicates_kept" if keep == "keep" else "duplicates_dropped"] = int(copies.sum())
    if keep != "keep":
        stay &= ~copies
    if least > -np.inf:
        if events.rating is None:
            raise UserError(f"min_rating={least} needs ratings, and the interactions have none")
        # The threshold rounds as the ratings did, so 3.6 keeps a rating of 3.6.
        low = stay & (events.rating < np.float32(least))
        notes["min_rating_dropped"] = int(low.sum())
        stay &= ~low
    if max(cores.values()) > 1:
        # Cores come last: they depend on which events the other filters leave.
        rows = np.flatnonzero(stay)
        core = k_core(events.user[rows], events.item[rows], **cores)
        notes["core_dropped"] = int((~core).sum())
        stay[rows[~core]] = False
    if not stay.any():
        # Nothing is left: name the active filters and how much each removed.
        settings = [f"duplicates={keep}"]
        settings += [f"min_rating={least}"] if least > -np.inf else []
        settings += [f"{key}={value}" for key, value in cores.items() if value > 1]
        removed = ", ".join(f"{name} {count}" for name, count in notes.items())
        raise UserError(
            f"filters leave none of the {len(events)} events ({removed}) with {', '.join(settings)}"
        )
    return np.flatnonzero(stay), notes
