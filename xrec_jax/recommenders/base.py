"""The interface of recommenders, and their registry."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean

Params: TypeAlias = Any  # a pytree of parameters
Metrics = dict[str, jax.Array]


class Tables(NamedTuple):
    """Arrays needed for ranking, computed once an evaluation.

    Attributes:
      item: `[padded_items, dim]`; rows past `num_items` are padding.
      user: `[padded_users, dim]` if the model has a user table, else None.
      extra: further arrays used by the model's `user_state`.
    """

    item: jax.Array
    user: jax.Array | None = None
    extra: Any = None


class Frozen(NamedTuple):
    """Arrays derived from the training data that are not learned (graph, counts).

    Attributes:
      arrays: host arrays by name.
      axes: logical axes by name, one a dimension (None: not split).
    """

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommender(abc.ABC):
    """A recommender as pure functions of its parameters; its fields are hyper-parameters.

    A score is the inner product of a user state and a row of the item table. Batches are one of

    * `"pairs"`: `user` `[batch]`, `item` `[batch]`, `negative` `[batch, negatives]`;
    * `"sequences"`: `history`, `target`, `weight` `[batch, length]`, where `weight` is 0 on
      padding, and `negative` `[batch, negatives]`; if `packing_length` is not 0, all are
      `[batch, packing_length]`, with `segment` and `place` beside them and without `negative`, see
      `data.packed_windows`;
    * `"states"`: the user inputs of a ranking batch (below), and `target` and `weight` `[batch]`;
    * `"none"`: nothing is trained.

    `negatives` is `negatives_per_row`; if that is 0 there is no `negative`.

    For ranking a batch has `user` `[batch]`, and for sequences also `history` `[batch, length]`
    (oldest first, padded at the end; `length` is `history_length`, or less with `narrow_histories`)
    and `length` `[batch]`. If the model `reads_times`, sequences and histories have `hour` and
    `days` `[batch, length]` beside the items.

    Attributes:
      num_users: number of users in the data set.
      num_items: number of items in the data set.
    """

    num_users: int
    num_items: int

    batches: ClassVar[Literal["none", "pairs", "sequences", "states"]] = "pairs"

    @property
    def history_length(self) -> int:
        """Number of history items that `user_state` reads; 0 for none."""
        return 0

    @property
    def narrow_histories(self) -> bool:
        """Whether short histories may come in batches narrower than `history_length`: faster.

        If so, the states must not depend on the padding behind the histories.
        """
        return False

    @property
    def reads_times(self) -> bool:
        """Whether batches have the times of the history's events, see `data.clock.clocks`."""
        return False

    @property
    def min_context(self) -> int:
        """Least number of events before a target in its training window."""
        return 0

    @property
    def latest_windows(self) -> bool:
        """Whether only the latest training window of each user is read."""
        return False

    @property
    def packing_length(self) -> int:
        """Positions of a training row that windows share; 0: every window has its own row.

        If it is not 0, `negatives_per_row` must be 0.
        """
        return 0

    @property
    def negatives_per_row(self) -> int:
        """Number of negative items of each row of a training batch."""
        return 0

    @property
    def sampling(self) -> Literal["uniform", "popularity"]:
        """Distribution of the negatives.

        "uniform": over the items without a training event of the user; "popularity": over all
        items, in proportion to their training events.
        """
        return "uniform"

    @property
    def scores_are_products(self) -> bool:
        """Whether scores are inner products of a state and a row of the item table."""
        return type(self).scores is Recommender.scores

    def frozen(self, user: np.ndarray, item: np.ndarray) -> Frozen:
        """Computes arrays from the training events (`user`, `item`: `[events]`); default: none."""
        del user, item
        return Frozen({}, {})

    def describe_items(self, columns: Mapping[str, Sequence[Any]] | None) -> Frozen:
        """Computes arrays from the item table; default: none.

        Args:
          columns: values of the table's columns by name, `[items]` each, None where the file had
            nothing; None without a table.
        """
        del columns
        return Frozen({}, {})

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Initialises the parameters, boxed with their logical axes."""

    def initial_rows(
        self, user: np.ndarray, item: np.ndarray
    ) -> Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
        """Computes rows of tables to begin training with instead of drawn ones; default: none.

        Args:
          user: `[events]` users of the training events, sorted.
          item: `[events]` their items, each user's in order of time.

        Returns:
          By the path of a parameter, the numbers of its rows, `[rows]`, and their values,
          `[rows, features]`.
        """
        del user, item
        return {}

    @abc.abstractmethod
    def loss(
        self, params: Params, frozen: Mapping[str, jax.Array], batch: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Mean loss of a training batch (scalar float32), and further scalars to log."""

    @abc.abstractmethod
    def tables(self, params: Params, frozen: Mapping[str, jax.Array]) -> Tables:
        """Computes the item table, and the user table if there is one."""

    @abc.abstractmethod
    def user_state(self, params: Params, tables: Tables, batch: dict) -> jax.Array:
        """States of the users of a ranking batch, `[batch, dim]`."""

    def training_state(
        self, params: Params, tables: Tables, batch: dict, key: jax.Array
    ) -> jax.Array:
        """As `user_state`, with the randomness of training, such as dropout."""
        del key
        return self.user_state(params, tables, batch)

    def scores(self, user_state: jax.Array, item_table: jax.Array) -> jax.Array:
        """Scores `[batch, items]` in float32; higher is better."""
        return jnp.einsum("bd,id->bi", user_state, item_table, preferred_element_type=jnp.float32)


_REGISTRY: dict[str, type[Recommender]] = {}
R = TypeVar("R", bound=type[Recommender])


def register(name: str) -> Callable[[R], R]:
    """Class decorator that registers a recommender as `model = name` for configs."""

    def add(cls: R) -> R:
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Names of all registered recommenders."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Recommender]:
    """Returns the recommender class registered as `name`.

    Raises:
      UserError: for an unknown name; suggests the nearest one.
    """
    if name not in _REGISTRY:
        raise UserError(f"no recommender {name!r}{did_you_mean(name, names())}")
    return _REGISTRY[name]


def hyperparameters(name: str) -> dict[str, Any]:
    """Default hyper-parameters of a registered recommender."""
    sizes = {field.name for field in dataclasses.fields(Recommender)}
    return {
        field.name: field.default
        for field in dataclasses.fields(get(name))
        if field.name not in sizes
    }


def create(name: str, hparams: Mapping[str, Any], *, num_users: int, num_items: int) -> Recommender:
    """Builds the recommender `name`.

    Args:
      name: name in the registry.
      hparams: hyper-parameters that differ from the defaults.
      num_users: number of users in the data set.
      num_items: number of items in the data set.

    Raises:
      UserError: for an unknown name or hyper-parameter, or an invalid value.
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
    """Raises a `UserError` unless `low <= value <= high`; an integer if `low` is one."""
    kinds = int if isinstance(low, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if isinstance(low, int) else "a number"
        raise UserError(f"{owner}: {key}={value!r} must be {what} between {low} and {high}")
