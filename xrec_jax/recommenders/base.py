"""The interface every recommender has, and the registry that finds one by name."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean

Params = Any
Metrics = dict[str, jax.Array]


class Tables(NamedTuple):
    """What ranking needs of a model, computed once an evaluation.

    Attributes:
      item: `[padded_items, dim]`; rows past `num_items` are padding.
      user: `[padded_users, dim]` where users have a table of their own, else None.
      extra: whatever else the model's `user_state` looks up.
    """

    item: jax.Array
    user: jax.Array | None = None
    extra: Any = None


class Frozen(NamedTuple):
    """Arrays made from the training data that are not learned (graph, counts).

    Attributes:
      arrays: name to host array.
      axes: name to logical axes, one a dimension (None: not split).
    """

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommender(abc.ABC):
    """A recommender as pure functions of its parameters; fields are its hyper-parameters.

    A score is the inner product of a user state and a row of the item table. Batches come as one of

    * `"pairs"`: `user` `[batch]`, `item` `[batch]`, `negative` `[batch, negatives]`;
    * `"sequences"`: `history`, `target`, `weight` `[batch, length]`, where `weight` is 0 on
      padding, and `negative` `[batch, negatives]`;
    * `"states"`: what ranking needs of the users (below), and `target` and `weight` `[batch]`;
    * `"none"`: nothing is trained.

    `negatives` is `negatives_per_row`; where that is 0 there is no `negative`.

    For ranking a batch has `user` `[batch]`, and for sequences also `history` `[batch, length]`
    (oldest first, padded at the end) and `length` `[batch]`.

    Attributes:
      num_users: users in the data set.
      num_items: items in the data set.
    """

    num_users: int
    num_items: int

    batches: ClassVar[Literal["none", "pairs", "sequences", "states"]] = "pairs"

    @property
    def history_length(self) -> int:
        """Items of history that `user_state` reads; 0 if it reads none."""
        return 0

    @property
    def min_context(self) -> int:
        """Events that a training window keeps before each target."""
        return 0

    @property
    def negatives_per_row(self) -> int:
        """Negative items drawn for each row of a training batch."""
        return 0

    @property
    def sampling(self) -> Literal["uniform", "popularity"]:
        """How negatives are drawn.

        "uniform": over the items the user has no training event with; "popularity": over all
        items, as often as they occur in training events.
        """
        return "uniform"

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """Arrays from the training events (`user`, `item`: `[events]`); by default none."""
        del user, item
        return Frozen({}, {})

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Parameters, boxed with their logical axes."""

    @abc.abstractmethod
    def loss(
        self, params: Params, frozen: Mapping[str, jax.Array], batch: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Mean loss of a training batch (scalar float32) and further scalars worth logging."""

    @abc.abstractmethod
    def tables(self, params: Params, frozen: Mapping[str, jax.Array]) -> Tables:
        """Item table, and user table if there is one."""

    @abc.abstractmethod
    def user_state(self, params: Params, tables: Tables, batch: dict) -> jax.Array:
        """The users of a ranking batch as vectors `[batch, dim]`."""

    def training_state(
        self, params: Params, tables: Tables, batch: dict, key: jax.Array
    ) -> jax.Array:
        """`user_state` with whatever is random in training, such as dropout."""
        del key
        return self.user_state(params, tables, batch)

    def scores(self, user_state: jax.Array, item_table: jax.Array) -> jax.Array:
        """Scores `[batch, items]` in float32; higher is better."""
        return jnp.einsum("bd,id->bi", user_state, item_table, preferred_element_type=jnp.float32)


_REGISTRY: dict[str, type[Recommender]] = {}
R = TypeVar("R", bound=type[Recommender])


def register(name: str) -> Callable[[R], R]:
    """Class decorator: makes a recommender available as `model = name` in a config."""

    def add(cls: R) -> R:
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Names of all registered recommenders."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Recommender]:
    """The recommender class registered as `name`.

    Raises:
      UserError: if there is none of that name; says which is nearest.
    """
    if name not in _REGISTRY:
        raise UserError(f"no recommender {name!r}{did_you_mean(name, names())}")
    return _REGISTRY[name]


def hyperparameters(name: str) -> dict[str, Any]:
    """Hyper-parameters of a registered recommender with their defaults."""
    sizes = {field.name for field in dataclasses.fields(Recommender)}
    return {
        field.name: field.default
        for field in dataclasses.fields(get(name))
        if field.name not in sizes
    }


def create(name: str, hparams: Mapping[str, Any], *, num_users: int, num_items: int) -> Recommender:
    """Builds the recommender `name`.

    Args:
      name: its name in the registry.
      hparams: hyper-parameters that differ from the defaults.
      num_users: users in the data set.
      num_items: items in the data set.

    Raises:
      UserError: on an unknown name or hyper-parameter, or a value that the recommender refuses.
    """
    known = hyperparameters(name)
    for key in hparams:
        if key not in known:
            raise UserError(
                f"recommender {name!r} has no hyper-parameter {key!r}{did_you_mean(key, known)}"
            )
    return get(name)(num_users=num_users, num_items=num_items, **hparams)


def check_choice(owner: str, key: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises a `UserError` unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{owner}: {key}={value!r} is not valid{did_you_mean(value, choices)}")


def check_range(owner: str, key: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises a `UserError` unless `low <= value <= high`; a whole number if `low` is an int."""
    kinds = int if isinstance(low, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if isinstance(low, int) else "a number"
        raise UserError(f"{owner}: {key}={value!r} must be {what} between {low} and {high}")
