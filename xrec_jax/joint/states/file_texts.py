"""The texts of a file by the rows of a run's data, cut alike for all, and what is made of words.

Names of places are taken out of profiles, a place that shares its name with others (a
chain) is shown without it, and a description that two places share is not shown: so nothing that is
cut depends on what is held out.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.data.run_data import RunData
from xrec_jax.tasks.titles import title_column, titles
from xrec_jax.text import bag_of_words
from xrec_jax.text.records.profiles import Keys, PairText, audiences, content_words, read_pair_texts
from xrec_jax.text.titles.mask import TitleMasks
from xrec_jax.text.titles.normal import normal_title

WORDS = 128  # of the control that has the texts as plain numbers
_MANY = 1 << 22  # cells of a table of overlaps that is made at once
_TIE = 1e-4  # of an overlap in float32; what differs less is a tie on every machine


def read_states_file(config: Any, data: RunData, path: str = "") -> list[PairText]:
    """Records of the file that `joint.states` names.

    Args:
      config: the whole config.
      data: whose ids the records must have.
      path: of another file with the same keys.

    Raises:
      UserError: no file is named, or it is wrong.
    """
    cfg = config.joint.states
    path = path or cfg.path
    if not path:
        raise UserError(
            "joint.states.source='file' needs joint.states.path: a JSONL file of texts about users "
            "and items"
        )
    keys = Keys(**{role: cfg[f"{role}_key"] for role in Keys._fields})
    dataset = data.dataset
    return read_pair_texts(path, keys, users=dataset.user_ids, items=dataset.item_ids)


class Texts:
    """The texts of a file by rows of the data, cut so that none tells what is held out.

    Args:
      data: of the run.
      rows: records of the file; their ids are in the data.
      profiles: whether any text may use the profiles; else they are empty.
    """

    def __init__(self, data: RunData, rows: Sequence[PairText], *, profiles: bool = True):
        self.data, self.rows = data, rows
        places = [
            {str(n): r for r, n in enumerate(ids)}
            for ids in (data.dataset.user_ids, data.dataset.item_ids)
        ]
        self.users = np.array([places[0][row.user] for row in rows], np.int32)
        self.items = np.array([places[1][row.item] for row in rows], np.int32)
        by_item = dict(zip(self.items.tolist(), rows, strict=True))
        known = titles(data.dataset).tolist() if title_column(data.dataset) else []
        self.masks = TitleMasks([*known, *(row.title for row in by_item.values())])
        names = Counter(normal_title(row.title) for row in by_item.values())
        titles_of = {
            i: r.title if names[normal_title(r.title)] == 1 else "" for i, r in by_item.items()
        }
        self.item_text = {
            item: self.masks.mask(row.item_text, keep=titles_of[item])
            for item, row in by_item.items()
        }
        copies = Counter(self.item_text.values())
        self.shown = {
            item: {"title": titles_of[item] or None, "item_text": text}
            for item, text in self.item_text.items()
            if copies[text] == 1
        }
        self.nameless = {i: self.masks.mask(row.item_text) for i, row in by_item.items()}
        audience = audiences(list(self.nameless.values()))
        self.audience = dict(zip(by_item, audience, strict=True))
        by_user = dict(zip(self.users.tolist(), rows, strict=True))
        self.profile = {
            user: self.masks.mask(row.profile) if profiles else "" for user, row in by_user.items()
        }
        self.masked = sum(bool(self.masks.found(row.profile)) for row in by_user.values())

    @functools.cached_property
    def titles(self) -> list[str]:
        """Of all items; those of the file before those of the item table."""
        names = [str(title) for title in titles(self.data.dataset)]
        for item, row in zip(self.items.tolist(), self.rows, strict=True):
            names[item] = row.title or names[item]
        return names

    @functools.cached_property
    def taught(self) -> dict[tuple[int, int], str]:
        """Explanations of (user, item) pairs of the training part, and of no other part."""
        split, count = self.data.split, self.data.dataset.num_items
        numbers = [
            part.user.astype(np.int64) * count + part.item
            for part in (split.train, split.valid, split.test)
        ]
        mine = self.users.astype(np.int64) * count + self.items
        kept = np.isin(mine, numbers[0]) & ~np.isin(mine, np.concatenate(numbers[1:]))
        by_pair: dict[tuple[int, int], str] = {}
        for row in np.flatnonzero(kept).tolist():
            if self.rows[row].teacher:
                pair = int(self.users[row]), int(self.items[row])
                by_pair.setdefault(pair, self.rows[row].teacher)
        return by_pair

    @functools.cached_property
    def far(self) -> np.ndarray:
        """Items that "why not" may speak of: described in a training record, by their audience."""
        split, count = self.data.split, self.data.dataset.num_items
        pairs = split.train.user.astype(np.int64) * count + split.train.item
        kept = np.isin(self.users.astype(np.int64) * count + self.items, pairs)
        return np.array([i for i in np.unique(self.items[kept]) if self.audience[int(i)]], np.int64)


def far_places(texts: Texts, user: np.ndarray, pasts: Sequence[np.ndarray]) -> list[int]:
    """For each state an item that shares the least words with what is known; -1 where none is.

    Words weigh by how rare they are among the descriptions (inverse document frequency).
    """
    pool = texts.far
    if not len(pool):
        return [-1] * len(user)
    bags = [set(content_words(texts.audience[int(i)])) for i in pool]
    counts = Counter(word for bag in bags for word in bag)
    column = {word: place for place, word in enumerate(sorted(counts))}
    weight = np.log(len(pool) / np.array([counts[word] for word in column], np.float64))
    table = np.zeros((len(pool), len(column)), np.float32)
    for place, bag in enumerate(bags):
        table[place, [column[word] for word in bag]] = 1.0
    spoken = {
        i: {column[w] for w in content_words(t) if w in column} for i, t in texts.item_text.items()
    }
    described = {
        u: {column[w] for w in content_words(t) if w in column} for u, t in texts.profile.items()
    }
    chosen = []
    key = rng.fold(0, Stream.FAR_PLACES)
    step = max(1, _MANY // max(len(column), len(pool)))
    for first in range(0, len(user), step):
        block = range(first, min(first + step, len(user)))
        known = np.zeros((len(block), len(column)), np.float32)
        for row, s in enumerate(block):
            words = set(described[int(user[s])])
            for item in pasts[s].tolist():
                words |= spoken.get(item, set())
            known[row, sorted(words)] = 1.0
        shared = (known * weight.astype(np.float32)) @ table.T
        for row, s in enumerate(block):
            cost = np.where(np.isin(pool, pasts[s]), np.inf, shared[row])
            least = np.flatnonzero(cost <= cost.min() + _TIE)
            draw = rng.random_integers(key, np.array([user[s]]), len(least))[0]
            chosen.append(int(pool[least[draw]]) if np.isfinite(cost.min()) else -1)
    return chosen


def vocabulary(texts: Texts) -> dict[str, int]:
    """The words that stand in most profiles and descriptions, to columns."""
    return bag_of_words.vocabulary((*texts.profile.values(), *texts.item_text.values()), WORDS)


def plain_texts(config: Any, data: RunData) -> list[str]:
    """Texts of the file to pre-train a small base on: none says who went where.

    Profiles and descriptions stand alone, each once; of explanations only those of training events.

    Raises:
      UserError: no file is named, or it is wrong.
    """
    rows = read_states_file(config, data)
    texts = dict.fromkeys(row.profile for row in rows if row.profile)
    texts |= dict.fromkeys(row.item_text for row in rows if row.item_text)
    ids = data.dataset
    # In faulty data a held-out pair may stand in training too: its explanation is held out.
    learned, *held_out = (
        {
            (str(ids.user_ids[u]), str(ids.item_ids[i]))
            for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True)
        }
        for part in (data.learned, data.split.valid, data.split.test)
    )
    train = learned.difference(*held_out)
    texts |= dict.fromkeys(
        row.teacher for row in rows if row.teacher and (row.user, row.item) in train
    )
    return list(texts)
