"""The next place: what a user comes back to, and where they go for the first time.

The probability of an item is a mixture of two. *Generate*: a softmax over the catalogue of a
transformer's state, as in SASRec, whose input also says when, how long after and how far from the
last event each one was; items further from the last place score lower, by a learned rate. *Copy*: a
distribution over the events of the history, each of which stands for its item,

    p(i) = g softmax(z_t V)_i + (1 - g) sum_{s <= t, h_s = i} softmax_s(q_t k_s + b_s)

with a gate g from the state z_t. The key of an event is made of the state right before it, which
had it to predict, and of the item itself: events that came about in a situation like the present
one are copied, and so is what the user often does, since every event of an item counts. b falls
with the events and the days since, and has what the keys would learn slowly from few data: whether
s is where the user is at t, how far from there, and how much later in the day and in the week; and
the same of the event right before s, the situation that s came about in. The mixture of copying and
generating is that of RepeatNet (Ren et al., AAAI 2019) and of pointer networks; keys and b are this
library's.

Only times and places of the history are read: when the next event will happen is not known.

Dimension letters: b batch, t query position, s history position, i item, d feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.dropout import dropout
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import constrain, logical, padded_rows
from xrec_jax.recommenders import losses
from xrec_jax.recommenders.base import Frozen, Tables, check_choice, register
from xrec_jax.recommenders.blocks import Block, check_sizes
from xrec_jax.recommenders.counting.dense import DenseScores, scattered
from xrec_jax.recommenders.layers import Table
from xrec_jax.recommenders.places.geography import check_columns, kilometres, located

_HOURS = 168  # of a week
_DAY = 24
_BINS = 16  # of times and distances, on a logarithmic scale
_NEVER = -1e30


def log_bins(values: jax.Array, first: float) -> jax.Array:
    """Numbers of the intervals 0 to `first`, to 2 `first`, to 4 `first`, ..., of which `_BINS`."""
    bins = jnp.floor(jnp.log2(jnp.maximum(values, 1e-9) / first)) + 1
    return jnp.clip(bins, 0, _BINS - 1).astype(jnp.int32)


def _shifted(x: jax.Array) -> jax.Array:
    """What each event `[b, s, ...]` finds before it; the first one finds itself."""
    return jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)


class Net(nn.Module):
    """States of a history, and the distribution over its events."""

    num_items: int
    categories: int
    length: int
    dim: int
    layers: int
    heads: int
    inner: int
    rate: float
    stddev: float
    block: str

    def setup(self) -> None:
        self.item = Table(self.num_items, self.dim, self.stddev)

        def table(name: str, rows: int) -> jax.Array:
            init = logical(nn.initializers.normal(self.stddev), None, "hidden")
            return self.param(name, init, (rows, self.dim))

        self.category = table("category", self.categories)
        self.hour = table("hour", _HOURS)
        self.gap = table("gap", _BINS)
        self.way = table("way", _BINS)
        sizes = (self.dim, self.heads, self.inner, self.rate)
        self.blocks = [Block(*sizes, self.block, True) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()
        self.query, self.key_state, self.key_item = (
            nn.Dense(self.dim, use_bias=False, name=name)
            for name in ("query", "key_state", "key_item")
        )
        self.gate = nn.Dense(1, name="gate")
        zeros = nn.initializers.zeros
        # Of copying: the events since, the days since, and how strictly the best key is taken.
        self.fading = self.param("fading", logical(zeros, None), (2,))
        # What an event gains by being at the present place, by following a visit of it, and by
        # following one of its category; see `_situations`.
        self.again = self.param("again", logical(zeros, None), (3,))
        gains = {}
        for name, size in {"later": _DAY, "weekday": 7, "away": _BINS}.items():
            for end in ("", "_before"):
                gains[name + end] = self.param(name + end, logical(zeros, None), (size,))
        self.gains = gains
        self.sharpness = self.param("sharpness", logical(zeros), ())
        self.distance = self.param("distance", logical(nn.initializers.constant(-1.0)), ())

    def vectors(self, category: jax.Array) -> jax.Array:
        """Vectors of all items: their own and that of their category, `[padded_items, dim]`."""
        return self.item.padded() + self.category[category]

    def __call__(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reads histories.

        Args:
          batch: `history`, `hour`, `days` `[b, s]`.
          frozen: `category`, `place` and `located` of the items.
          train: enable dropout.

        Returns:
          States `[b, t, d]` after every event; logits `[b, t, s]` of copying each event, those
          that are later masked; and log-odds `[b, t]` of generating.
        """
        history, days = batch["history"], batch["days"]
        steps = history.shape[1]
        own = self.item(history) + self.category[frozen["category"][history]]
        place = frozen["place"][history]
        waited = jnp.diff(days, axis=1, prepend=days[:, :1])
        moved = kilometres(place, _shifted(place))
        # A way from or to where nobody knows is none.
        known = frozen["located"][history]
        moved = moved * known * _shifted(known)
        x = own + self.hour[batch["hour"]]
        x = x + self.gap[log_bins(waited, 1 / 48)] + self.way[log_bins(moved, 0.1)]

        def drop(x: jax.Array) -> jax.Array:
            return dropout(x, self.rate, self.make_rng("dropout") if train else None)

        x = drop(constrain(x, "batch", None, "hidden"))
        causal = jnp.tril(jnp.ones((steps, steps), bool))[None]
        for block in self.blocks:
            x = block(x, causal, None, jnp.arange(steps)[None], train)
        states = self.norm(x)
        # The situation that an event came about in is the state before it; the first has none.
        before = jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0)))
        keys = self.key_state(before) + self.key_item(own)
        logits = jnp.einsum("btd,bsd->bts", self.query(drop(states)), keys) / np.sqrt(self.dim)
        logits = logits * jnp.exp(self.sharpness)
        since = jnp.arange(steps)[:, None] - jnp.arange(steps)
        ages = jnp.maximum(days[:, :, None] - days[:, None, :], 0.0)
        logits -= self.fading[0] * jnp.log1p(jnp.maximum(since, 0))
        logits -= self.fading[1] * jnp.log1p(ages)
        logits += self._situations(history, batch, frozen)
        logits = jnp.where(causal, logits, _NEVER)
        return states, logits, self.gate(states)[..., 0]

    def _situations(
        self, history: jax.Array, batch: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]
    ) -> jax.Array:
        """What every event s gains by its own place and time, and by those of the event before it.

        Seen from the place and time of t, `[b, t, s]`.
        """
        place, known, kind = (frozen[name][history] for name in ("place", "located", "category"))
        hour = batch["hour"]

        def seen(x: jax.Array, now: jax.Array, where: jax.Array, there: jax.Array, end: str) -> Any:
            """Gain of events at hours `x` and places `where`, `[b, s]`."""
            gain = self.gains["later" + end][(x[:, None] - hour[:, :, None]) % _DAY]
            day = x[:, None] // _DAY - hour[:, :, None] // _DAY
            gain += self.gains["weekday" + end][day % 7]
            ways = log_bins(kilometres(place[:, :, None], where[:, None]), 0.1)
            both = known[:, :, None] * there[:, None]
            return gain + both * self.gains["away" + end][ways] + now

        own = self.again[0] * (history[:, None] == history[:, :, None])
        gain = seen(hour, own, place, known, "")
        # Was the situation right before s like the present one? Before the first event is none.
        first = jnp.arange(history.shape[1]) == 0
        same = _shifted(history)[:, None] == history[:, :, None]
        alike = _shifted(kind)[:, None] == kind[:, :, None]
        before = self.again[1] * same + self.again[2] * alike
        gain_before = seen(_shifted(hour), before, _shifted(place), _shifted(known), "_before")
        return gain + jnp.where(first, 0.0, gain_before)

    def slope(self) -> jax.Array:
        """What the logarithm of a kilometre costs, positive."""
        return nn.softplus(self.distance)


def way_cost(frozen: Mapping[str, jax.Array], last: jax.Array, slope: jax.Array) -> jax.Array:
    """What distance takes from the score of every item: `[..., padded_items]`.

    Args:
      frozen: with `place`, `[padded_items, 2]`, and `located`, 0 where it is not known.
      last: `[...]` items that the ways begin at.
      slope: cost of the logarithm of a kilometre.
    """
    known = frozen["located"][last][..., None] * frozen["located"]
    ways = kilometres(frozen["place"][last][..., None, :], frozen["place"])
    return slope * jnp.log1p(ways / 0.1) * known


@register("next_place")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NextPlace(DenseScores):
    """A mixture of generating and copying, with times, ways and categories; see the module.

    Attributes:
      dim: features, divisible by `heads`, and the features of a head by 2.
      layers: transformer layers.
      heads: attention heads.
      inner: features inside the feed-forward layer.
      length: number of history events read.
      context: least number of events before a target in its training window, below `length`.
      dropout: dropout rate of all layers.
      stddev: standard deviation of the initial vectors.
      block: kind of the layers, see `blocks`.
      copy: whether there is a copy term; False: generate only.
      category: column of the item table with categories, of which those beyond 1,023 share
        vectors; "" for none.
      latitude: column with degrees; "" for none, as for `longitude`.
      longitude: the other one.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    length: int = 100
    context: int = 0
    dropout: float = 0.3
    stddev: float = 0.02
    block: str = "pre_norm"
    copy: bool = True
    category: str = ""
    latitude: str = ""
    longitude: str = ""

    batches = "sequences"

    def __post_init__(self) -> None:
        check_sizes("next_place", self)
        check_choice("next_place", "copy", self.copy, (True, False))
        check_choice("next_place", "dim / heads % 2", self.dim // self.heads % 2, (0,))
        if bool(self.latitude) != bool(self.longitude):
            raise UserError("next_place: latitude and longitude must both be given, or neither")

    @property
    def history_length(self) -> int:
        return self.length

    @property
    def min_context(self) -> int:
        return self.context

    @property
    def narrow_histories(self) -> bool:
        return True

    @property
    def reads_times(self) -> bool:
        return True

    def describe_items(self, columns: Mapping[str, Sequence[Any]] | None) -> Frozen:
        """Categories by number, 0 for none, and places in degrees."""
        names = {key: getattr(self, key) for key in ("category", "latitude", "longitude")}
        check_columns("next_place", names, columns)
        category = np.zeros(padded_rows(self.num_items), np.int32)
        if columns and self.category:
            known: dict[Any, int] = {None: 0, "": 0}
            values = columns[self.category]
            numbers = [known.setdefault(value, len(known) - 1) for value in values]
            # More categories than `_categories` share the numbers.
            category[: len(values)] = [
                number and 1 + (number - 1) % (self._categories - 1) for number in numbers
            ]
        arrays, axes = located("next_place", columns, self.latitude, self.longitude, self.num_items)
        return Frozen({**arrays, "category": category}, {**axes, "category": (None,)})

    @property
    def _categories(self) -> int:
        """Rows of the table of categories: as many as a catalogue of this size may have."""
        return min(1024, 1 + self.num_items)

    @property
    def net(self) -> Net:
        return Net(
            self.num_items,
            self._categories,
            self.length,
            self.dim,
            self.layers,
            self.heads,
            self.inner,
            self.dropout,
            self.stddev,
            self.block,
        )

    def init(self, key):
        zeros = jnp.zeros((1, self.length), jnp.int32)
        batch = {"history": zeros, "hour": zeros, "days": jnp.zeros(zeros.shape)}
        rows = padded_rows(self.num_items)
        frozen = {"category": jnp.zeros(rows, jnp.int32), "place": jnp.zeros((rows, 2))}
        frozen["located"] = jnp.zeros(rows)
        return self.net.init(key, batch, frozen, False)["params"]

    def _read(self, params, frozen, batch, key):
        return self.net.apply(
            {"params": params},
            batch,
            frozen,
            key is not None,
            rngs=None if key is None else {"dropout": key},
        )

    def loss(self, params, frozen, batch, key):
        history, target, weight = batch["history"], batch["target"], batch["weight"]
        states, logits, odds = self._read(params, frozen, batch, key)
        vectors = self._vectors(params, frozen)
        slope: Any = self.net.apply({"params": params}, method="slope")

        def cost(last):
            return way_cost(frozen, last, slope)

        generated = losses.target_log_probs(
            states, vectors, target, self.num_items, offset=(cost, history)
        )
        if not self.copy:
            return -losses.weighted_mean(generated, weight), {}
        shares = jax.nn.softmax(logits, axis=-1)
        same = history[:, None, :] == target[:, :, None]
        copied = jnp.log(jnp.maximum(jnp.sum(shares * same, axis=-1), 1e-30))
        mixed = jnp.logaddexp(
            jax.nn.log_sigmoid(odds) + generated, jax.nn.log_sigmoid(-odds) + copied
        )
        share = losses.weighted_mean(jax.nn.sigmoid(-odds), weight)
        return -losses.weighted_mean(mixed, weight), {"copied": share}

    def _vectors(self, params, frozen):
        return self.net.apply({"params": params}, frozen["category"], method="vectors")

    def tables(self, params, frozen):
        return Tables(self.numbers(), None, {**frozen, "vectors": self._vectors(params, frozen)})

    def user_state(self, params, tables, batch):
        if "days" not in batch:
            raise UserError(
                "next_place reads the times of a history, which this use of a recommender does not "
                "give; choose another recommender for it"
            )
        states, logits, odds = self._read(params, tables.extra, batch, None)
        last = jnp.maximum(batch["length"] - 1, 0)[:, None]
        state, odds = (
            jnp.take_along_axis(x, last.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]
            for x in (states, odds)
        )
        logits = jnp.take_along_axis(logits, last[..., None], axis=1)[:, 0]
        item = jnp.take_along_axis(batch["history"], last, axis=1)[:, 0]
        slope: Any = self.net.apply({"params": params}, method="slope")
        empty = batch["length"] == 0
        # Without a history there is neither a last place nor anything to copy.
        cost = jnp.where(empty[:, None], 0.0, way_cost(tables.extra, item, slope))
        scores = jnp.einsum("bd,id->bi", state, tables.extra["vectors"]) - cost
        real = jnp.arange(scores.shape[1]) < self.num_items
        generated = jax.nn.log_softmax(jnp.where(real, scores, _NEVER), axis=-1)
        if not self.copy:
            return generated
        odds = jnp.where(empty, jnp.inf, odds)
        shares = jax.nn.softmax(logits, axis=-1)
        copied = scattered(batch["history"], shares, scores.shape[1], "add")
        return jnp.logaddexp(
            jax.nn.log_sigmoid(odds)[:, None] + generated,
            jax.nn.log_sigmoid(-odds)[:, None] + jnp.log(jnp.maximum(copied, 1e-30)),
        )
