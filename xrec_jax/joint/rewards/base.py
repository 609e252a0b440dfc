"""Registry of reward parts, what they read, and their weighted sum.

A part is a pure function of the scored rollouts of a round. It gives one float32 number a row, on
device, inside or outside of `jit`. A user's own part is one function in a module that
`config.imports` names:

    from xrec_jax.joint import rewards

    @rewards.register("brief", limit=30)
    def brief(scored, limit):
        return -(scored.need("length") > limit).astype(jnp.float32)

A part that reads more than the rollouts declares how that is measured, in the same file:

    def load(ctx):
        taught = set(ctx.states.teacher.values())
        return lambda states, texts: np.array([text in taught for text in texts], np.float32)

    @rewards.register("parroting", evidence=rewards.Evidence(load))
    def parroting(scored):
        return -scored.need("parroting")

Log-probabilities are in nats. Nothing here is differentiated: policy gradients take rewards as
constants.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.joint.states.base import JointStates
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import constrain


class Scored(struct.PyTreeNode):
    """Rollouts with what the frozen recommender and the evidence of parts say of them.

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
      evidence: by name of the part that declares it, `[n]` float32 each.
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
    evidence: Mapping[str, jax.Array] = struct.field(default_factory=dict)

    def need(self, field: str) -> jax.Array:
        """A field that a part cannot do without, or the evidence of a part.

        Raises:
          UserError: if the run did not compute it.
        """
        value = self.evidence.get(field, getattr(self, field, None))
        if value is None:
            raise UserError(
                f"needs {field!r} of the rollouts, which this run does not compute; take it out of "
                "the reward weights"
            )
        return value


class EvidenceContext(NamedTuple):
    """What evidence may be measured with.

    Attributes:
      config: of the run.
      states: what is explained.
      base: the language model of the run, loaded.
      mesh: devices; evidence is measured inside `use_mesh(mesh)`.
      rundir: the run directory.
    """

    config: Any
    states: JointStates
    base: LoadedBase
    mesh: Mesh
    rundir: RunDir


# `(states [n], n texts) -> [n] float32`.
Measure = Callable[[np.ndarray, Sequence[str]], np.ndarray]


class Evidence(NamedTuple):
    """How a part's evidence is measured; parts read it with `scored.need(NAME_OF_THE_PART)`.

    Attributes:
      load: called once a seed, before anything is trained: loads what takes long and gives the
        function that measures the texts of a round. All processes call both.
      check: validates config and run directory before anything is written; raises `UserError`.
      section: values of `config.joint.NAME_OF_THE_PART` by default; read it with `section`.
      paths: keys of that section that name files, which may move between a run and its resume.
    """

    load: Callable[[EvidenceContext], Measure]
    check: Callable[[Any, RunDir], None] | None = None
    section: Mapping[str, Any] | None = None
    paths: tuple[str, ...] = ()


class _Entry(NamedTuple):
    """A registered part: its function, its options with defaults, its evidence."""

    function: Callable[..., jax.Array]
    options: dict[str, Any]
    evidence: Evidence | None


Part = Callable[..., jax.Array]
P = TypeVar("P", bound=Part)
_REGISTRY: dict[str, _Entry] = {}


def register(
    name: str, /, *, evidence: Evidence | None = None, **defaults: Any
) -> Callable[[P], P]:
    """Decorator: makes a function a reward part.

    Args:
      name: its key in the reward weights.
      evidence: how what it reads beside the rollouts is measured; None where it reads no more.
      **defaults: its options, which it takes as keyword arguments beside the `Scored`.

    Raises:
      UserError: where the function cannot be called so.
    """

    def add(function: P) -> P:
        # At registration, where the traceback still shows whose part it is.
        try:
            inspect.signature(function).bind(None, **defaults)
        except TypeError as error:
            raise UserError(
                f"reward {name!r}: the function must take the scored rollouts and its options "
                f"({', '.join(defaults) or 'none'}): {error}"
            ) from error
        _REGISTRY[name] = _Entry(function, dict(defaults), evidence)
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
    return _REGISTRY[name].function


def options(name: str) -> dict[str, Any]:
    """Options of a registered part with their defaults.

    Raises:
      UserError: if there is no part of that name.
    """
    get(name)
    return dict(_REGISTRY[name].options)


def evidence_of(weights: Any) -> dict[str, Evidence]:
    """Evidence of the parts that weights ask for; see `read_weights`."""
    entries = {name: _REGISTRY[name].evidence for name in read_weights(weights)}
    return {name: evidence for name, evidence in entries.items() if evidence is not None}


def sections() -> dict[str, dict[str, Any]]:
    """Sections of `config.joint` that registered parts have, with their defaults."""
    entries = {name: _REGISTRY[name].evidence for name in names()}
    return {name: dict(e.section) for name, e in entries.items() if e and e.section is not None}


def section(config: Any, name: str) -> ConfigDict:
    """The section of `config.joint` that a part's evidence has, with defaults for missing keys.

    Args:
      config: of the run; made before a user's own part was registered, it lacks the section.
      name: of the part.

    Raises:
      UserError: on a key that the section does not have.
    """
    evidence = _REGISTRY[name].evidence
    values = dict((evidence and evidence.section) or {})
    for key, value in dict(config.joint.get(name, {})).items():
        if key not in values:
            raise UserError(f"joint.{name}.{key} is no option{did_you_mean(key, [*values])}")
        values[key] = value
    return ConfigDict(values)


def paths() -> tuple[str, ...]:
    """Keys of `config.joint` that name files of registered parts."""
    entries = {name: _REGISTRY[name].evidence for name in names()}
    return tuple(f"{name}.{key}" for name, e in entries.items() if e for key in e.paths)


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
    chosen = {}
    for name, setting in dict(weights.items()).items():
        known = options(name)
        own = dict(setting.items()) if hasattr(setting, "items") else {"weight": setting}
        weight = own.pop("weight", 1.0)
        if not _is_number(weight):
            raise UserError(f"reward {name!r}: weight {weight!r} must be a finite number")
        for key, value in own.items():
            if key not in known:
                raise UserError(
                    f"reward {name!r} has no option {key!r}{did_you_mean(key, [*known, 'weight'])}"
                )
            _check_kind(name, key, value, known[key])
        # Parts of weight 0 are not computed: their evidence may be missing.
        if weight:
            chosen[name] = (float(weight), known | own)
    if not chosen:
        raise UserError(f"rewards: no part has a weight other than 0; parts: {', '.join(names())}")
    return chosen


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
        # Strict, since a scalar or a float64 would spread silently over the whole sum.
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


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)


def _check_kind(name: str, key: str, value: Any, default: Any) -> None:
    """Refuses an option's value that is of another kind than its default."""
    # Booleans first: to Python they are whole numbers, too.
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
