"""Explanation-aware recommender: a registered one that reads texts of why and why not.

A text is read in two ways. A gated residual of the codes of both parts is added to the base's user
state (`fusion`). And both parts meet the items' own texts in a product that is added to the base's
score (`match`): a state is then the fused state of the base with that side of the product behind
it, and a row of the item table has the item's vector behind it. With both parts absent, scores are
bit-identical to the base's.

Dimension letters: b batch, n candidate, p part, e encoding, c code, d feature, i item, k feature of
the match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.dropout import dropout
from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import PyTree
from xrec_jax.parallel.lookup import take_rows
from xrec_jax.parallel.mesh import ROW_MULTIPLE, constrain, logical, padded_rows
from xrec_jax.recommenders import losses
from xrec_jax.recommenders.base import Frozen, Recommender, Tables, check_choice, check_range
from xrec_jax.recommenders.explained.fusion import Fusion, drop_parts
from xrec_jax.recommenders.explained.match import Match
from xrec_jax.recommenders.explained.reading import (
    CONSTANTS,
    SIDES,
    Reading,
    identity_constants,
    read,
)
from xrec_jax.recommenders.explained.reranking import among_candidates


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fused(Recommender):
    """A base recommender whose user states are modified by explanations.

    Parameters are `{"base": ..., "fusion": ...}`, `"match"` with a match, and `"items"` with item
    features. A batch has the
    base's user inputs (`user`, and `history` and `length` for sequences), `encoding` `[b, 2, e]`
    and `present` `[b, 2]`; without `encoding` all explanations are absent. Training adds `target`
    and `weight` `[b]`. With `candidates` `[b, n]` (distinct, -1 is padding), each candidate has its
    own explanation: `encoding` `[b, n, 2, e]`, `present` `[b, n, 2]`.

    Frozen arrays besides the base's: `mean` and `std` `[2, e]`, to standardise encodings (see
    `whitening.measure`, `whitening.whitening`); for ranking `encoding` `[users, 2, e]` and
    `present` `[users, 2]`, one a user. With an optional scalar `temperature`, log-probabilities are
    those of scores divided by it (see `calibration`), and residuals are multiplied by it, so that
    the effect of a text on a log-probability does not depend on it. With a match there are
    `projection` `[e, k]`, `query_scale` `[2, 1]` and the items' vectors `item_match` `[items, k]`,
    see `match`; a state and a row of the item table have k more features than the base's.

    Attributes:
      base: the base recommender, which must be trained and have a `dim`.
      encoding: features of the encoding of a part.
      components: number of principal components kept of an encoding, each scaled to variance 1,
        with `frozen["basis"]` `[2, e, components]` in place of `std`; 0 keeps the features. Hidden
        states of a language model have a few directions that are common to all texts and dominate
        the rest.
      bottleneck: features of a code.
      hidden: features inside the residual.
      null_dropout: probability of reading a part as absent in training, for each part.
      null_rows: probability of reading both parts as absent, for each row. It preserves the quality
        without texts if `train_base` lets the base change.
      code_dropout: dropout rate of the codes.
      reconstruction: weight of the autoencoder's mean squared error.
      train_base: propagate gradients to the base.
      base_dropout: keep the base's dropout on in training. A base is overconfident on its own
        training events, which dropout reduces.
      sides: parts to read: "both", "why" or "why_not"; others count as absent.
      match: k, features of the match with the items' own texts; 0 for none.
      item_features: width of `frozen["item_features"]` `[items, item_features]`, which a linear
        map, initialised to zero, adds to the item table; 0 for none. A temperature does not scale
        it.
    """

    base: Recommender
    encoding: int
    components: int = 0
    bottleneck: int = 32
    hidden: int = 64
    null_dropout: float = 0.1
    null_rows: float = 0.0
    code_dropout: float = 0.0
    reconstruction: float = 0.1
    train_base: bool = True
    base_dropout: bool = True
    sides: str = "both"
    match: int = 0
    item_features: int = 0

    batches = "states"
    parts: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for key in ("encoding", "bottleneck", "hidden"):
            check_range("fused", key, getattr(self, key), 1)
        for key in ("null_dropout", "null_rows"):
            check_range("fused", key, getattr(self, key), 0.0, 1.0)
        check_range("fused", "code_dropout", self.code_dropout, 0.0, 0.99)
        check_range("fused", "reconstruction", self.reconstruction, 0.0)
        check_range("fused", "item_features", self.item_features, 0)
        check_range("fused", "components", self.components, 0, self.encoding)
        check_range("fused", "match", self.match, 0, self.encoding)
        for key in ("train_base", "base_dropout"):
            check_choice("fused", key, getattr(self, key), (True, False))
        check_choice("fused", "sides", self.sides, tuple(SIDES))
        if self.base.batches not in ("pairs", "sequences") or not hasattr(self.base, "dim"):
            kind = type(self.base).__name__
            raise UserError(
                f"fused: {kind} learns no user vectors, so nothing can be added to them"
            )

    @property
    def history_length(self) -> int:
        return self.base.history_length

    @property
    def narrow_histories(self) -> bool:
        return self.base.narrow_histories

    @property
    def net(self) -> Fusion:
        """Modules of the fusion."""
        dim = self.base.dim  # type: ignore[attr-defined]  # checked on construction
        return Fusion(self.parts, self._inputs, self.bottleneck, dim, self.hidden)

    @property
    def _matching(self) -> Match:
        """Module of the match."""
        return Match(self.parts, self.match)

    @property
    def _inputs(self) -> int:
        """Number of input features of the fusion."""
        return self.components or self.encoding

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """The base's arrays, and constants that leave encodings unchanged."""
        arrays, axes = self.base.frozen(user, item)
        constants = identity_constants(self.parts, self.encoding, self.components, self.match)
        if self.match:
            constants["item_match"] = np.zeros((self.num_items, self.match), np.float32)
        none = {name: (None,) * array.ndim for name, array in constants.items()}
        return Frozen({**arrays, **constants}, {**axes, **none})

    def init(self, key):
        base_key, fusion_key = jax.random.split(key)
        shape = 1, self.parts, self._inputs
        fusion: Any = self.net.init(
            fusion_key, jnp.zeros((1, self.net.dim)), jnp.zeros(shape), jnp.ones(shape[:2], bool)
        )
        params = {"base": self.base.init(base_key), "fusion": fusion["params"]}
        if self.match:
            query = jnp.zeros((1, self.parts, self.match))
            params["match"] = self._matching.init(key, query)["params"]
        if self.item_features:
            zeros = logical(jax.nn.initializers.zeros, "hidden", "features")
            params["items"] = {"kernel": zeros(key, (self.item_features, self.net.dim))}
        return params

    def tables(self, params, frozen):
        """The base's tables; `extra` has the constants, and the users' codes if there are any.

        `extra["base"]` is the base's own `extra`.
        `extra["codes"]` is `[padded_users, p * (c + 1) + k]`: codes, 1 for a present part, and the
        side of the match.
        """
        tables = self.base.tables(params["base"], frozen)
        item = tables.item
        if self.item_features:
            features = jnp.asarray(frozen["item_features"], jnp.float32)
            features = jnp.pad(features, ((0, len(item) - len(features)), (0, 0)))
            added = constrain(features @ params["items"]["kernel"], "table_rows", "features")
            item = item + added.astype(item.dtype)
        if self.match:
            vectors = jnp.asarray(frozen["item_match"], item.dtype)
            vectors = jnp.pad(vectors, ((0, len(item) - len(vectors)), (0, 0)))
            item = constrain(jnp.concatenate([item, vectors], axis=1), "table_rows", "features")
        extra = {name: frozen[name] for name in CONSTANTS if name in frozen}
        extra["base"] = tables.extra
        reading = self._read(frozen, extra)
        if reading is not None:
            codes = self._apply(params, "encode", reading.encoding)
            # Computed once for all users; ranking then only looks them up.
            columns = [codes.reshape(len(codes), -1), reading.present.astype(codes.dtype)]
            if reading.query is not None:
                columns.append(self._matched(params, reading.query))
            rows = jnp.concatenate(columns, axis=1)
            rows = jnp.pad(rows, ((0, padded_rows(self.num_users) - len(rows)), (0, 0)))
            extra["codes"] = constrain(rows, "table_rows", "features")
        return Tables(item=item, user=tables.user, extra=extra)

    def user_state(self, params, tables, batch):
        """Fused states `[b, d + k]` float32, from the batch's encodings or else the users' own."""
        if self._encodings(batch) is not None or "codes" not in tables.extra:
            return self._states(params, tables, batch)
        rows = take_rows(tables.extra["codes"], batch["user"])
        codes, present, matched = jnp.split(
            rows, np.cumsum([self.parts * self.bottleneck, self.parts]), axis=1
        )
        codes = codes.reshape(len(rows), self.parts, self.bottleneck)
        state = self._base_state(params, tables, batch)
        fused = self._fuse(params, tables.extra, state, codes, present > 0)[0]
        return self._with_match(fused, matched if self.match else None, tables.extra)

    def scores(self, user_state, item_table):
        if not self.match:
            return self.base.scores(user_state, item_table)
        # Apart from the base's, so that a match of zero leaves its scores as they are.
        state, query = jnp.split(user_state, [self.net.dim], axis=1)
        row, vector = jnp.split(item_table, [self.net.dim], axis=1)
        return self.base.scores(state, row) + jnp.einsum(
            "bk,ik->bi", query, vector, preferred_element_type=jnp.float32
        )

    # Inputs of the fusion.

    def _apply(self, params, method: str, *args) -> Any:
        return self.net.apply({"params": params["fusion"]}, *args, method=method)

    def _encodings(self, source: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array] | None:
        """Encodings `[..., p, e]` and presence `[..., p]` of a batch or of frozen arrays."""
        if "encoding" not in source:
            return None
        if "present" not in source:
            raise UserError("fused: `encoding` needs `present` beside it, which parts are there")
        return source["encoding"], source["present"]

    def _read(self, source, constants) -> Reading | None:
        """What is read of a batch or of frozen arrays; None if there is nothing."""
        encodings = self._encodings(source)
        if encodings is None:
            return None
        encoding, present = encodings
        if "candidates" in source:
            present = present.astype(bool) & (source["candidates"] >= 0)[..., None]
        return read(
            encoding,
            present,
            constants,
            shape=(self.parts, self.encoding),
            sides=self.sides,
            components=self.components,
            match=self.match,
        )

    def _base_state(self, params, tables, batch, key=None) -> jax.Array:
        """The base's states `[b, d]` float32; `key` enables the randomness of training."""
        tables = tables._replace(extra=tables.extra["base"])
        if key is None:
            state = self.base.user_state(params["base"], tables, batch)
        else:
            state = self.base.training_state(params["base"], tables, batch, key)
        # The barrier keeps the compiler from fusing, and so rounding differently, the base's part.
        state = jax.lax.optimization_barrier(state.astype(jnp.float32))
        return constrain(state, "batch", "hidden")

    def _states(self, params, tables, batch) -> jax.Array:
        """States `[b, d + k]`, or `[b, n, d + k]` with candidates, from the batch's encodings."""
        state = self._base_state(params, tables, batch)
        if "candidates" in batch:
            shape = (*batch["candidates"].shape, state.shape[-1])
            state = jnp.broadcast_to(state[:, None], shape)
        reading = self._read(batch, tables.extra)
        if reading is None:
            return self._with_match(state, None, tables.extra)
        codes = self._apply(params, "encode", reading.encoding)
        fused = self._fuse(params, tables.extra, state, codes, reading.present)[0]
        matched = None if reading.query is None else self._matched(params, reading.query)
        return self._with_match(fused, matched, tables.extra)

    def _matched(self, params, query) -> jax.Array:
        """The side of the match that meets the items' vectors: `[..., p, k]` -> `[..., k]`."""
        matched: Any = self._matching.apply({"params": params["match"]}, query)
        return matched

    def _with_match(self, state, matched, constants) -> jax.Array:
        """States with their side of the match behind them, zeros for None."""
        if not self.match:
            return state
        if matched is None:
            matched = jnp.zeros((*state.shape[:-1], self.match), state.dtype)
        # As the residual, so that the effect on a log-probability does not depend on it.
        scale = constants.get("temperature", 1.0)
        return jnp.concatenate([state, scale * matched], axis=-1)

    def _fuse(self, params, constants, state, codes, present):
        """Fused states, their difference from `state`, and the gate; see `Fusion.fuse`."""
        fused, change, gate = self._apply(params, "fuse", state, codes, present)
        if "temperature" in constants:
            change = constants["temperature"] * change
            fused = state + change  # rows without any part have a change of 0
        return fused, change, gate

    @staticmethod
    def _tempered(x: jax.Array, constants) -> jax.Array:
        """Divides scores, or states that they are linear in, by the temperature."""
        return x / constants["temperature"] if "temperature" in constants else x

    # Training.

    def loss(self, params, frozen, batch, key):
        """Cross entropy over the catalogue or a batch's candidates, plus reconstruction error."""
        if not self.train_base:
            params = {**params, "base": jax.lax.stop_gradient(params["base"])}
        # User states of the base, one a row or, with candidates, one a candidate.
        base_key, *keys = jax.random.split(key, 3)
        tables = self.tables(params, frozen)
        state = self._base_state(params, tables, batch, base_key if self.base_dropout else None)
        candidates = batch.get("candidates")
        if candidates is not None:
            state = jnp.broadcast_to(state[:, None], (*candidates.shape, state.shape[-1]))
        target = batch["target"]
        # Rows without a target, or without it among the candidates, do not count.
        counts = target >= 0
        if candidates is not None:
            counts &= (candidates == target[:, None]).any(axis=1)
        weight = jnp.where(counts, batch["weight"].astype(jnp.float32), 0.0)
        fused, error, metrics = self._fuse_in_training(params, tables, batch, state, weight, keys)
        if candidates is None:
            main = self._catalogue_loss(fused, tables, target, weight)
        else:
            scores = self._score_each(fused, tables, candidates)
            main = among_candidates(scores, candidates, target, weight)
        metrics = {"cross_entropy": main, "reconstruction": error, **metrics}
        return main + self.reconstruction * error, metrics

    def _fuse_in_training(self, params, tables, batch, state, weight, keys):
        """Fused states, reconstruction error, and metrics over the rows with a present part."""
        null_key, code_key = keys
        lead = state.shape[:-1]
        reading = self._read(batch, tables.extra)
        if reading is None:
            reading = Reading.nothing((*lead, self.parts), self._inputs, self.match)
        encoding, present, query = reading
        # The weight of a row applies to each of its candidates.
        rows = jnp.broadcast_to(weight.reshape(-1, *(1,) * (len(lead) - 1)), lead)
        codes = self._apply(params, "encode", encoding)
        error = jnp.mean(jnp.square(self._apply(params, "decode", codes) - encoding), axis=-1)
        error = losses.weighted_mean(error, present * rows[..., None])

        # The autoencoder is trained on all parts; residual and match see dropped ones as absent.
        present = drop_parts(null_key, present, self.null_dropout, self.null_rows)
        codes = dropout(codes, self.code_dropout, code_key)
        fused, change, gate = self._fuse(params, tables.extra, state, codes, present)
        if query is not None:
            query = self._matched(params, jnp.where(present[..., None], query, 0.0))
        fused = self._with_match(fused, query, tables.extra)
        read_share = losses.weighted_mean(present.mean(axis=-1, dtype=jnp.float32), rows)
        rows = rows * present.any(axis=-1)
        ratio = _norm(change) / jnp.maximum(_norm(state), 1e-12)
        metrics = {
            "gate": losses.weighted_mean(gate.mean(axis=-1), rows),
            "residual_ratio": losses.weighted_mean(ratio, rows),
            "read": read_share,
        }
        return fused, error, metrics

    def _catalogue_loss(self, states, tables, target, weight) -> jax.Array:
        """Mean cross entropy of states `[b, d]` over the catalogue."""
        target = jnp.where(weight > 0, target, 0)
        if not self.base.scores_are_products:
            log_probs = jax.nn.log_softmax(self._catalogue_scores(states, tables))
            log_p = jnp.take_along_axis(log_probs, target[:, None], axis=1)[:, 0]
            return losses.weighted_mean(-log_p, weight)
        # Groups of rows serve as positions of `full_softmax`, which processes them in chunks.
        sizes = (size for size in (8, 4, 2) if len(target) % (size * ROW_MULTIPLE) == 0)
        group = next(sizes, 1)
        states = self._tempered(states, tables.extra)
        states, target, share = (
            x.reshape(-1, group, *x.shape[1:])
            for x in (states, target, weight / losses.total_weight(weight))
        )
        return losses.full_softmax(states, tables.item, target, share, self.num_items)

    # Scoring.

    def _catalogue_scores(self, states, tables) -> jax.Array:
        return self._tempered(self.scores(states, tables.item)[:, : self.num_items], tables.extra)

    def _score_each(self, states, tables, candidates) -> jax.Array:
        """Score of every candidate by its own state: `[b, n]`."""
        rows = take_rows(tables.item, jnp.maximum(candidates, 0))
        flat = states.reshape(-1, states.shape[-1]), rows.reshape(-1, rows.shape[-1])
        score = lambda state, row: self.scores(state[None], row[None])[0, 0]  # noqa: E731
        return self._tempered(jax.vmap(score)(*flat).reshape(candidates.shape), tables.extra)

    def item_scores(
        self,
        params: PyTree,
        frozen: Mapping[str, jax.Array],
        batch: dict,
        *,
        tables: Tables | None = None,
    ) -> jax.Array:
        """Scores of the whole catalogue, from the batch's own encodings.

        They are divided by `frozen["temperature"]`, if there is one.

        Args:
          params: parameters of this recommender.
          frozen: see the class.
          batch: a ranking batch; without `encoding` the scores are those of the base alone,
            whatever `frozen` holds.
          tables: `tables(params, frozen)`, if computed already.

        Returns:
          `[b, items]` float32.
        """
        tables = self.tables(params, frozen) if tables is None else tables
        return self._catalogue_scores(self._states(params, tables, batch), tables)

    def candidate_scores(
        self,
        params: PyTree,
        frozen: Mapping[str, jax.Array],
        batch: dict,
        *,
        tables: Tables | None = None,
    ) -> jax.Array:
        """Score of every candidate with its own explanation, divided as in `item_scores`.

        All candidates are treated alike: the target is not known here.

        Args:
          params: parameters of this recommender.
          frozen: see the class.
          batch: a ranking batch with `candidates` `[b, n]` int32, -1 is padding; and `encoding`
            `[b, n, 2, e]` and `present` `[b, n, 2]`, or neither for the base's scores.
          tables: `tables(params, frozen)`, if computed already.

        Returns:
          `[b, n]` float32, -inf at padding.
        """
        tables = self.tables(params, frozen) if tables is None else tables
        states, candidates = self._states(params, tables, batch), batch["candidates"]
        scores = self._score_each(states, tables, candidates)
        return jnp.where(candidates >= 0, scores, -jnp.inf)
