"""LightGCN: embeddings smoothed over the user-item graph (He et al., SIGIR 2020)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.lookup import spread, take_rows
from xrec_jax.parallel.mesh import ROW_MULTIPLE, constrain, padded_rows
from xrec_jax.recommenders import losses
from xrec_jax.recommenders.base import (
    Frozen,
    Recommender,
    Tables,
    check_choice,
    check_range,
    register,
)
from xrec_jax.recommenders.mf import Factors, squared_norm

# Largest padded user-item matrix that is stored densely. On MovieLens-100K (1.7 million cells) the
# dense product takes half the time of the sparse one on a CPU; the limit bounds memory (32 MiB) and
# is not a measured crossover.
DENSE_CELLS = 1 << 23


@jax.custom_vjp
def _product(matrix: jax.Array, transposed: jax.Array, x: jax.Array) -> jax.Array:
    """`matrix @ x`, split by rows; its gradient multiplies with the stored transpose.

    Both orders are stored because a product along contiguous rows takes half the time.
    """
    del transposed
    return constrain(matrix @ x, "table_rows", "features")


def _product_forward(
    matrix: jax.Array, transposed: jax.Array, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(matrix, transposed, x), (matrix, transposed)


def _product_backward(
    residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[None, None, jax.Array]:
    matrix, transposed = residuals
    return None, None, _product(transposed, matrix, g)


_product.defvjp(_product_forward, _product_backward)


@register("lightgcn")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LightGCN(Recommender):
    """Linear propagation `E_(k+1) = D^-1/2 A D^-1/2 E_k`; scores use the mean of all layers.

    Attributes:
      dim: features of a user or item.
      layers: number of propagation steps.
      stddev: standard deviation of the initial values.
      l2: weight of half the squared norm of a batch's unpropagated vectors.
      objective: "bpr" (as published) or "softmax" over the whole catalogue.
      negatives: negative items a pair, for "bpr".
      propagation: "dense" or "sparse" products, equal up to rounding; "auto" chooses by size.
    """

    dim: int = 64
    layers: int = 3
    stddev: float = 0.1
    l2: float = 1e-4
    objective: str = "bpr"
    negatives: int = 1
    propagation: str = "auto"

    def __post_init__(self) -> None:
        check_range("lightgcn", "dim", self.dim, 1)
        check_range("lightgcn", "layers", self.layers, 0)
        check_range("lightgcn", "l2", self.l2, 0.0)
        check_range("lightgcn", "negatives", self.negatives, 1)
        check_choice("lightgcn", "objective", self.objective, ("bpr", "softmax"))
        check_choice("lightgcn", "propagation", self.propagation, ("auto", "dense", "sparse"))

    @property
    def negatives_per_row(self) -> int:
        return self.negatives if self.objective == "bpr" else 0

    @property
    def net(self) -> Factors:
        return Factors(self.num_users, self.num_items, self.dim, self.stddev)

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """The normalised adjacency; repeated events count once."""
        edges = np.unique(user.astype(np.int64) * self.num_items + item)
        user, item = (
            (edges // self.num_items).astype(np.int32),
            (edges % self.num_items).astype(np.int32),
        )
        user_degree = np.bincount(user, minlength=self.num_users)
        item_degree = np.bincount(item, minlength=self.num_items)
        # Symmetric normalisation: 1 / sqrt(deg(u) deg(i)).
        weight = 1.0 / np.sqrt(user_degree[user].astype(np.float64) * item_degree[item])
        cells = padded_rows(self.num_users) * padded_rows(self.num_items)
        if self.propagation == "dense" or (self.propagation == "auto" and cells <= DENSE_CELLS):
            matrix = np.zeros((padded_rows(self.num_users), padded_rows(self.num_items)), "float32")
            matrix[user, item] = weight
            arrays = {"adjacency": matrix, "transposed": np.ascontiguousarray(matrix.T)}
            return Frozen(arrays, dict.fromkeys(arrays, ("table_rows", None)))
        # Padding edges have weight 0 and make the edge list divisible by any mesh.
        padding = (0, -len(user) % ROW_MULTIPLE)
        arrays = {
            "user": np.pad(user, padding),
            "item": np.pad(item, padding),
            "weight": np.pad(weight.astype(np.float32), padding),
        }
        return Frozen(arrays, dict.fromkeys(arrays, ("edges",)))

    def init(self, key):
        return self.net.init(key, method="tables")["params"]

    def tables(self, params, frozen):
        user, item = params["user"]["embedding"], params["item"]["embedding"]
        user_sum, item_sum = user, item
        for _ in range(self.layers):
            user, item = self._propagate(user, item, frozen)
            user_sum, item_sum = user_sum + user, item_sum + item
        count = self.layers + 1
        return Tables(item=item_sum / count, user=user_sum / count)

    def _propagate(self, user, item, frozen) -> tuple[jax.Array, jax.Array]:
        """One propagation step in both directions."""
        if "adjacency" in frozen:
            forward, backward = frozen["adjacency"], frozen["transposed"]
            return _product(forward, backward, item), _product(backward, forward, user)
        edges = frozen["user"], frozen["item"], frozen["weight"]
        new_user = spread(item, edges[1], edges[0], edges[2], user.shape[0])
        new_item = spread(user, edges[0], edges[1], edges[2], item.shape[0])
        return new_user, new_item

    def loss(self, params, frozen, batch, key):
        del key
        tables = self.tables(params, frozen)
        assert tables.user is not None
        user = take_rows(tables.user, batch["user"])
        if self.objective == "softmax":
            # Groups of rows serve as positions of `full_softmax`, which processes them in chunks.
            sizes = (size for size in (8, 4, 2) if len(user) % (size * ROW_MULTIPLE) == 0)
            group = next(sizes, 1)
            item = batch["item"].reshape(-1, group)
            states = user.reshape(-1, group, self.dim)
            weight = jnp.full(item.shape, 1.0 / item.size)
            loss = losses.full_softmax(states, tables.item, item, weight, self.num_items)
        else:
            positive = jnp.einsum("bd,bd->b", user, take_rows(tables.item, batch["item"]))
            negative = jnp.einsum("bd,bnd->bn", user, take_rows(tables.item, batch["negative"]))
            loss = jnp.mean(losses.bpr(positive, negative))
        if self.l2:
            loss += self.l2 * squared_norm(*self.net.apply({"params": params}, batch))
        return loss, {}

    def user_state(self, params, tables, batch):
        return take_rows(tables.user, batch["user"])
