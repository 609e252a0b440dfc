"""Rewards of explanations: parts in a registry, and their weighted sum.

A part is a pure function of the scored rollouts of a round. It gives one float32 number a row, on
device, inside or outside of `jit`. A user's own part is one function in a module that
`config.imports` names:

    @rewards.register("brief", limit=30)
    def brief(scored, limit):
        return -(scored.need("length") > limit).astype(jnp.float32)

Log-probabilities are in nats. Nothing here is differentiated: policy gradients take rewards as
constants.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.parallel.mesh import constrain


class Scored(struct.PyTreeNode):
    """Rollouts with what the frozen recommender and the judge say of them.

    n rollouts, A = most answer tokens, L = prompt length. A field that the run does not compute is
    None; parts read fields with `need`, which says so.

    Attributes:
      log_prob: `[n]` float32, log p(y | u, e) of the true next item with the row's explanation.
      log_prob_null: `[n]` float32, the same with no explanation.
      log_prob_shuffled: `[n]` float32, the same with another user's explanation.
      rank: `[n]` int32, rank of y with the explanation; 1 is best, seen items are masked.
      rank_null: `[n]` int32, with no explanation.
      rank_shuffled: `[n]` int32, with another user's explanation.
      length: `[n]` int32, answer tokens with the one that ends it.
      ended: `[n]` bool, whether the answer ended by itself.
      answer: `[n, A]` int32 tokens.
      answer_mask: `[n, A]` bool, real tokens of `answer`.
      prompt: `[n, L]` int32 tokens.
      prompt_mask: `[n, L]` bool, real tokens of `prompt`.
      content: `[vocabulary]` bool, tokens that carry facts about items.
      group: `[n]` int32, the user's group, -1 for none.
      judge: `[n]` float32, the judge's probability that the explanation is good, in [0, 1].
    """

    log_prob: jax.Array
    log_prob_null: jax.Array | None = None
    log_prob_shuffled: jax.Array | None = None
    rank: jax.Array | None = None
    rank_null: jax.Array | None = None
    rank_shuffled: jax.Array | None = None
    length: jax.Array | None = None
    ended: jax.Array | None = None
    answer: jax.Array | None = None
    answer_mask: jax.Array | None = None
    prompt: jax.Array | None = None
    prompt_mask: jax.Array | None = None
    content: jax.Array | None = None
    group: jax.Array | None = None
    judge: jax.Array | None = None

    def need(self, field: str) -> jax.Array:
        """A field that a part cannot do without.

        Raises:
          UserError: if the run did not compute it.
        """
        value = getattr(self, field)
        if value is None:
            raise UserError(
                f"needs {field!r} of the rollouts, which this run does not compute; take it out of "
                "the reward weights"
            )
        return value


Part = Callable[..., jax.Array]
P = TypeVar("P", bound=Part)
_REGISTRY: dict[str, tuple[Part, dict[str, Any]]] = {}


def register(name: str, /, **defaults: Any) -> Callable[[P], P]:
    """Decorator: makes a function a reward part.

    Args:
      name: its key in the reward weights.
      **defaults: its options, which it takes as keyword arguments beside the `Scored`.

    Raises:
      UserError: where the function cannot be called so.
    """

    def add(function: P) -> P:
        try:
            inspect.signature(function).bind(None, **defaults)
        except TypeError as error:
            raise UserError(
                f"reward {name!r}: the function must take the scored rollouts and its options "
                f"({', '.join(defaults) or 'none'}): {error}"
            ) from error
        _REGISTRY[name] = (function, dict(defaults))
        return function

    return add


def names() -> list[str]:
    """Names of all registered parts."""
    return sorted(_REGISTRY)


def get(name: str) -> Part:
    """The part registered as `name`.

    Raises:
      UserError: if there is none of that name; says which is nearest.
    """
    if name not in _REGISTRY:
        raise UserError(f"no reward {name!r}{did_you_mean(name, names())}")
    return _REGISTRY[name][0]


def options(name: str) -> dict[str, Any]:
    """Options of a registered part with their defaults.

    Raises:
      UserError: if there is no part of that name.
    """
    get(name)
    return dict(_REGISTRY[name][1])


def read_weights(weights: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    """Checks reward weights, before hours are spent on what they rate.

    Args:
      weights: part to its weight, or to a mapping of `weight` (1 where it is missing) and options:
        `{"log_prob_gain": 1.0, "length": {"weight": 0.1, "target": 40}}`. A `ConfigDict` will do.

    Returns:
      Weight and all options of every part whose weight is not 0, in the given order.

    Raises:
      UserError: on an unknown part or option, an option of another kind than its default, a weight
        that is no finite number, or where no weight is other than 0.
    """
    found = {}
    for name, given in dict(weights.items()).items():
        known = options(name)
        own = dict(given.items()) if hasattr(given, "items") else {"weight": given}
        weight = own.pop("weight", 1.0)
        if not _is_number(weight):
            raise UserError(f"reward {name!r}: weight {weight!r} must be a finite number")
        for key, value in own.items():
            if key not in known:
                raise UserError(
                    f"reward {name!r} has no option {key!r}{did_you_mean(key, [*known, 'weight'])}"
                )
            _check_kind(name, key, value, known[key])
        if weight:
            found[name] = (float(weight), known | own)
    if not found:
        raise UserError(f"rewards: no part has a weight other than 0; parts: {', '.join(names())}")
    return found


def total(scored: Scored, weights: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The score of every rollout: sum over parts of weight times part.

    Args:
      scored: the rollouts.
      weights: see `read_weights`; static under `jit`. Parts of weight 0 are not computed.

    Returns:
      Scores `[n]` float32, and each part `[n]` float32 without its weight.

    Raises:
      UserError: as `read_weights`; where a part refuses its options, needs a field that is None,
        or gives something other than `[n]` float32.
    """
    rows = scored.log_prob.shape[:1]
    score = jnp.zeros(rows, jnp.float32)
    parts = {}
    for name, (weight, chosen) in read_weights(weights).items():
        try:
            value = get(name)(scored, **chosen)
        except UserError as error:
            raise UserError(f"reward {name!r}: {error}") from error
        if not isinstance(value, (jax.Array, np.ndarray)):
            raise UserError(f"reward {name!r} gave a {type(value).__name__}, not an array")
        if value.shape != rows or value.dtype != jnp.float32:
            raise UserError(
                f"reward {name!r} gave {value.dtype}{list(value.shape)}; it must give one float32 "
                f"a rollout, float32{list(rows)}"
            )
        parts[name] = constrain(value, "batch")
        score = score + jnp.float32(weight) * value
    return constrain(score, "batch"), parts


def metrics(score: Any, parts: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What a round logs of its rewards, scalars.

    Returns:
      `reward/score`, `reward/score_std` (population), and `reward/<part>`, each part's mean
      without its weight.
    """
    made = {"reward/score": jnp.mean(score), "reward/score_std": jnp.std(score)}
    return made | {f"reward/{name}": jnp.mean(value) for name, value in parts.items()}


@register("log_prob_gain")
def log_prob_gain(scored: Scored) -> jax.Array:
    """The gain log p(y | u, e) - log p(y | u, null), in nats."""
    return scored.log_prob - scored.need("log_prob_null")


@register("shuffled_gain")
def shuffled_gain(scored: Scored) -> jax.Array:
    """The gain log p(y | u, e) - log p(y | u, another user's e), in nats: a paired baseline.

    What any text would gain, whatever it says, cancels.
    """
    return scored.log_prob - scored.need("log_prob_shuffled")


@register("ndcg_gain", k=10)
def ndcg_gain(scored: Scored, k: int) -> jax.Array:
    """NDCG@k with the explanation minus without, in [-1, 1].

    With one held-out item NDCG@k is `1 / log2(1 + rank)` up to rank k, else 0.

    Raises:
      UserError: if `k` is below 1.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1")

    def value(rank: jax.Array) -> jax.Array:
        return jnp.where(rank <= k, 1.0 / jnp.log2(1.0 + rank.astype(jnp.float32)), 0.0)

    return value(scored.need("rank")) - value(scored.need("rank_null"))


@register("length", target=60, tolerance=20, cost=0.01)
def length(scored: Scored, target: int, tolerance: int, cost: float) -> jax.Array:
    """`-cost * max(0, |length - target| - tolerance)`: too short costs as much as too long.

    Raises:
      UserError: if one of the options is negative.
    """
    for key, value in (("target", target), ("tolerance", tolerance), ("cost", cost)):
        if value < 0:
            raise UserError(f"{key}={value} must not be negative")
    away = jnp.abs(scored.need("length").astype(jnp.float32) - target)
    return jnp.float32(-cost) * jnp.maximum(away - tolerance, 0.0)


@register("ended")
def ended(scored: Scored) -> jax.Array:
    """-1 for an answer that ran into the token limit, 0 for one that ended."""
    return scored.need("ended").astype(jnp.float32) - 1.0


@register("grounding", empty=0.0, distinct=False)
def grounding(scored: Scored, empty: float, distinct: bool) -> jax.Array:
    """Share of an answer's content tokens that stand in its prompt, in [0, 1].

    Args:
      scored: the rollouts.
      empty: the value of an answer without a content token.
      distinct: count each token once, so that repeating a grounded one gains nothing.
    """
    answer, prompt = scored.need("answer"), scored.need("prompt")
    counted = scored.need("answer_mask").astype(bool) & scored.need("content")[answer]
    if distinct:
        earlier = jnp.tril(jnp.ones((answer.shape[1],) * 2, bool), -1)
        same = (answer[:, :, None] == answer[:, None, :]) & counted[:, None, :]
        counted &= ~jnp.any(same & earlier, axis=2)
    # The comparison is fused into the reduction: no [n, A, L] array is kept.
    shown = (answer[:, :, None] == prompt[:, None, :]) & scored.need("prompt_mask").astype(bool)[
        :, None, :
    ]
    grounded = counted & jnp.any(shown, axis=2)
    number = jnp.sum(counted, axis=1).astype(jnp.float32)
    share = jnp.sum(grounded, axis=1).astype(jnp.float32) / jnp.maximum(number, 1.0)
    return jnp.where(number > 0, share, jnp.float32(empty))


@register("group_disparity")
def group_disparity(scored: Scored) -> jax.Array:
    """Pulls the groups' mean gains together; gain is `log_prob_gain`.

    With m_g the mean gain of group g, m the mean of the m_g, and m_{g,-i} the mean of g without
    row i, the part of a row i of g is

        -(m_g - m) * (gain_i - m_{g,-i}).

    In a group that gains more than the others a row pays for gaining more than its group; in one
    that gains less it is paid for that. It is the score-function gradient of
    `-1/2 sum_g (m_g - m)^2`, up to the group's size, with the rest of the group as baseline
    (leave-one-out, as in RLOO). A penalty equal for a whole group would move no row. Groups with
    one row, and rows of group -1, get 0 and do not enter m. The unit is nats squared.
    """
    gain, group = log_prob_gain(scored), scored.need("group")
    same = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    size = jnp.sum(same, axis=1).astype(jnp.float32)
    counted = size > 1
    size = jnp.maximum(size, 2.0)  # rows that do not count divide by something, too
    # Sums, not products of matrices: those are not float32 on every device.
    sums = jnp.sum(jnp.where(same, gain[None, :], 0.0), axis=1)
    mean, others = sums / size, (sums - gain) / (size - 1.0)
    share = jnp.where(counted, 1.0 / size, 0.0)  # adds up to 1 in each group
    overall = jnp.sum(share * mean) / jnp.maximum(jnp.sum(share), 1.0)
    return jnp.where(counted, -(mean - overall) * (gain - others), 0.0)


@register("judge")
def judge(scored: Scored) -> jax.Array:
    """The judge's probability minus a half, in [-0.5, 0.5]."""
    return scored.need("judge") - jnp.float32(0.5)


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)


def _check_kind(name: str, key: str, value: Any, default: Any) -> None:
    """Refuses an option's value that is of another kind than its default."""
    if isinstance(default, bool):
        right, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        right, kind = _is_number(value) and float(value).is_integer(), "a whole number"
    elif isinstance(default, float):
        right, kind = _is_number(value), "a finite number"
    else:
        right, kind = default is None or isinstance(value, type(default)), "a text"
    if not right:
        raise UserError(f"reward {name!r}: {key}={value!r} must be {kind}")
