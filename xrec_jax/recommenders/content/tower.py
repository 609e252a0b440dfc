"""Recommender whose item table is made of content vectors, such as encodings of item texts.

The item table of a recommender is replaced by

    table_i = w_i id_i + f(c_i)          mode "add"
    table_i = f(c_i)                     mode "replace"

where c_i are fixed vectors, whitened, f is linear or has a hidden layer, and w_i is 1 for items
with a training event: the id of a *cold* item has learned nothing but to be a negative, so such an
item is ranked by its content alone. In training ids are dropped at random as in DropoutNet
(Volkovs et al., NeurIPS 2017), which makes content stand for items that have none; and cold items
have rows of zeros, since as negatives that are never chosen they would teach the content of all
that is new to be unpopular.

All that a recommender does with its items goes through the table, histories and graphs included, so
the tower needs nothing else of it. In a graph a cold item has no neighbours, whose part of its row
`id_dropout` does not imitate.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import constrain, logical, padded_rows
from xrec_jax.recommenders.base import Frozen, Recommender, Tables, check_choice, check_range
from xrec_jax.recommenders.whitening import whitening

MODES = ("", "add", "replace")


def content_defaults() -> ConfigDict:
    """Keys of a system's `content`; mode "" is a recommender without a tower."""
    return ConfigDict(
        {
            "mode": "",  # add: to the ids; replace: instead of them
            "components": 64,  # principal components of the vectors, each scaled to variance 1
            "hidden": 0,  # features of a hidden layer; 0: linear
            "id_dropout": 0.0,  # probability that an update sees an item without its id
        }
    )


def whitened(values: np.ndarray, present: np.ndarray, components: int) -> np.ndarray:
    """Leading principal components, each of variance 1, `[n, components]` float32.

    Hidden states of a language model have a few directions common to all texts, beside which the
    others would hardly be learned from.

    Args:
      values: `[n, width]`.
      present: `[n]` bool; other rows are not measured and are zero.
      components: number of them, at most `width`.
    """
    mean, basis = whitening(values[:, None], present[:, None], components)
    return np.where(present[:, None], (values - mean[0]) @ basis[0], 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContentTower(Recommender):
    """A recommender with an item table from content; see the module.

    Parameters are `{"base": ..., "content": ...}`, in mode "replace" without the base's item table.
    Frozen arrays besides the base's: `content` `[padded_items, components]` and `warm`
    `[padded_items]`, 1 for an item with a training event.

    Attributes:
      base: the recommender, with an item table.
      components: features of a content vector.
      mode: "add"; or "replace", in which an item without a vector has a row of zeros.
      hidden: features of the hidden layer; 0 for a linear map.
      id_dropout: probability of training an update without an item's id, for each item.
    """

    base: Recommender
    components: int
    mode: str = "add"
    hidden: int = 0
    id_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice("content", "mode", self.mode, MODES[1:])
        check_range("content", "components", self.components, 1)
        check_range("content", "hidden", self.hidden, 0)
        check_range("content", "id_dropout", self.id_dropout, 0.0, 0.99)
        if self.mode == "replace" and self.id_dropout:
            raise UserError("content: id_dropout needs mode='add'; in 'replace' there are no ids")
        if self.base.batches == "none" or "embedding" not in self._shapes.get("item", {}):
            kind = type(self.base).__name__
            raise UserError(f"content: {kind} learns no item table that content could be added to")
        # What a class says of its batches is here a matter of the base.
        object.__setattr__(self, "batches", self.base.batches)

    # What a trainer asks is the base's to say.

    @functools.cached_property
    def _shapes(self) -> dict[str, Any]:
        """Shapes of the base's parameters."""
        init = lambda key: nn.unbox(self.base.init(key))  # noqa: E731
        return dict(jax.eval_shape(init, jax.random.key(0)))

    @functools.cached_property
    def dim(self) -> int:
        """Features of a row of the item table."""
        return int(self._shapes["item"]["embedding"].shape[1])

    @property
    def scores_are_products(self) -> bool:
        return self.base.scores_are_products

    @property
    def history_length(self) -> int:
        return self.base.history_length

    @property
    def narrow_histories(self) -> bool:
        return self.base.narrow_histories

    @property
    def reads_times(self) -> bool:
        return self.base.reads_times

    @property
    def min_context(self) -> int:
        return self.base.min_context

    @property
    def latest_windows(self) -> bool:
        return self.base.latest_windows

    @property
    def packing_length(self) -> int:
        return self.base.packing_length

    @property
    def negatives_per_row(self) -> int:
        return self.base.negatives_per_row

    @property
    def sampling(self):
        return self.base.sampling

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """The base's arrays, and which items have a training event."""
        arrays, axes = self.base.frozen(user, item)
        warm = np.bincount(item, minlength=padded_rows(self.num_items)) > 0
        return Frozen(
            {**arrays, "warm": warm.astype(np.float32)}, {**axes, "warm": ("table_rows",)}
        )

    def describe_items(self, columns: Mapping[str, Sequence[Any]] | None) -> Frozen:
        return self.base.describe_items(columns)

    def describe_content(self, values: np.ndarray, present: np.ndarray) -> Frozen:
        """Computes the array `content`.

        Args:
          values: `[items, width]` vectors of the items.
          present: `[items]` bool, false for an item without one.
        """
        content = np.zeros((padded_rows(self.num_items), self.components), np.float32)
        content[: self.num_items] = whitened(values, present, self.components)
        return Frozen({"content": content}, {"content": ("table_rows", None)})

    def init(self, key):
        base_key, first, second = jax.random.split(key, 3)
        base = dict(self.base.init(base_key))
        if self.mode == "replace":
            base["item"] = {k: v for k, v in base["item"].items() if k != "embedding"}
        width = self.hidden or self.components
        # Content has variance 1, so that rows begin with the spread that ids begin with.
        spread = getattr(self.base, "stddev", 0.02) / np.sqrt(width)
        kernel = logical(jax.nn.initializers.normal(spread), "hidden", "features")
        content = {"kernel": kernel(second, (width, self.dim))}
        if self.hidden:
            inner = logical(jax.nn.initializers.lecun_normal(), None, "hidden")
            content["inner"] = inner(first, (self.components, self.hidden))
        return {"base": base, "content": content}

    def initial_rows(self, user, item):
        rows = self.base.initial_rows(user, item)
        if self.mode == "replace" and ("item", "embedding") in rows:
            raise UserError("content.mode='replace' leaves no item table that could have rows")
        return {("base", *path): values for path, values in rows.items()}

    def _table(self, params, frozen, key=None) -> jax.Array:
        """The item table `[padded_items, dim]`; with `key` that of training."""
        x = frozen["content"]
        if self.hidden:
            x = jax.nn.gelu(x @ params["content"]["inner"])
        table = constrain(x @ params["content"]["kernel"], "table_rows", "features")
        kept = frozen["warm"]
        if key is not None:
            table = kept[:, None] * table
        if self.mode == "replace":
            return table
        if key is not None and self.id_dropout:
            kept = kept * jax.random.bernoulli(key, 1.0 - self.id_dropout, kept.shape)
        return table + kept[:, None] * params["base"]["item"]["embedding"]

    def _with(self, params, table):
        """The base's parameters with an item table."""
        base = params["base"]
        return {**base, "item": {**base["item"], "embedding": table}}

    def loss(self, params, frozen, batch, key):
        table = self._table(params, frozen, jax.random.fold_in(key, 2))
        return self.base.loss(self._with(params, table), frozen, batch, key)

    def tables(self, params, frozen):
        """The base's tables; `extra` has the item table that histories are read with."""
        table = self._table(params, frozen)
        base = self.base.tables(self._with(params, table), frozen)
        return Tables(base.item, base.user, {"table": table, "base": base.extra})

    def _of_base(self, params, tables):
        base = Tables(tables.item, tables.user, tables.extra["base"])
        return self._with(params, tables.extra["table"]), base

    def user_state(self, params, tables, batch):
        params, tables = self._of_base(params, tables)
        return self.base.user_state(params, tables, batch)

    def training_state(self, params, tables, batch, key):
        params, tables = self._of_base(params, tables)
        return self.base.training_state(params, tables, batch, key)

    def scores(self, user_state, item_table):
        return self.base.scores(user_state, item_table)


def with_content(
    base: Recommender, options: Mapping[str, Any] | None, width: int | None
) -> Recommender:
    """A recommender with the tower that a config asks for, or as it is.

    Args:
      base: the recommender.
      options: values of `content_defaults`; None for a system without them.
      width: features of the data's item vectors; None without any.

    Raises:
      UserError: for an invalid value, or a tower without vectors.
    """
    options = dict(options or {})
    mode = options.pop("mode", "")
    check_choice("content", "mode", mode, MODES)
    if not mode:
        return base
    if width is None:
        raise UserError(
            f"content.mode={mode!r} needs data.item_vectors, a Parquet file with a vector an item; "
            "`xrec encode` makes one from their texts"
        )
    if mode == "replace" and getattr(base, "item_init", "normal") != "normal":
        raise UserError("content.mode='replace' leaves no item table: set item_init='normal'")
    check_range("content", "components", options["components"], 1, width)
    return ContentTower(
        base=base, num_users=base.num_users, num_items=base.num_items, mode=mode, **options
    )
