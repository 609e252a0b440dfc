"""Sharded training state and its initialisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import RULES, put_sharded, sharding


class TrainState(flax.struct.PyTreeNode):
    """State that a training step reads and writes.

    Attributes:
      step: int32 scalar, number of updates done.
      params: trained parameters.
      opt_state: optimizer state.
      key: `[2]` uint32 data of the run's key; step s uses `fold_in(key, s)`.
      best_params: parameters with the best evaluation so far; None if none is tracked.
      frozen: arrays that no step changes (graph, counts, base weights). Never saved, as they are
        rebuilt from the data.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    best_params: Any = None
    frozen: Any = flax.struct.field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """Fields that a checkpoint holds, by name."""
        return {
            "step": self.step,
            "params": self.params,
            "opt_state": self.opt_state,
            "key": self.key,
            "best_params": self.best_params,
        }


def check_divisible(init: Callable[[jax.Array], Any], mesh: Mesh) -> None:
    """Checks that the mesh splits every parameter evenly.

    Raises:
      UserError: names the parameter, its size and the mesh axes.
    """
    boxed = jax.eval_shape(init, jax.random.key(0))
    specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    for (path, leaf), split in zip(
        jax.tree_util.tree_leaves_with_path(boxed), jax.tree.leaves(specs), strict=True
    ):
        for size, axes in zip(leaf.shape, split.spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[axis] for axis in names)
            if size % parts:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"parameter {name.removesuffix('/value')} has {size} entries along mesh axes "
                    f"{', '.join(names)}, which are {parts} devices; choose a mesh that divides it"
                )


def initializer(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    frozen: Mapping[str, np.ndarray] | None = None,
    frozen_axes: Mapping[str, tuple[str | None, ...]] | None = None,
) -> Callable[[int], TrainState]:
    """Returns a function from a seed to a state whose arrays are created on their own devices.

    Shapes come from `eval_shape`, shardings from the parameters' logical axes and the rules table;
    the initialiser then runs jitted with those output shardings, so no device ever holds a whole
    split array. The values do not depend on the mesh. Compiled once for all seeds.

    Args:
      init: function from a key to boxed parameters.
      optimizer: gradient transformation; its state is split as the parameters are.
      mesh: devices; call inside `parallel.mesh.use_mesh`.
      frozen: host arrays, the same on every process.
      frozen_axes: logical axes of each frozen array.
    """

    def make(key):
        init_key, run_key = jax.random.split(key)
        params = init(init_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            key=jax.random.key_data(run_key),
            best_params=params,
        )

    specs = nn.get_partition_spec(jax.eval_shape(make, jax.random.key(0)))
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    # Runs once a seed: on a CPU, optimising its machine code takes longer than running it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init_state = jax.jit(
        lambda seed: nn.unbox(make(jax.random.key(seed))),
        out_shardings=shardings,
        compiler_options=options,
    )
    axes = frozen_axes or {}
    host = dict(frozen or {})
    placed = put_sharded(host, {name: sharding(mesh, *axes[name]) for name in host})
    return lambda seed: init_state(seed).replace(frozen=placed)


def with_rows(
    state: TrainState, rows: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]]
) -> TrainState:
    """A fresh state with some rows of its tables replaced, split as they were.

    Args:
      state: the state; `best_params` are those it begins with.
      rows: by the path of a parameter, numbers and values of rows. Those of the first process are
        taken by all, since processors may round differently.

    Raises:
      KeyError: if there is no such parameter.
    """
    if not rows:
        return state
    if jax.process_count() > 1:
        rows = multihost_utils.broadcast_one_to_all(dict(rows))

    def replaced(params: Any) -> Any:
        flat = traverse_util.flatten_dict(params, keep_empty_nodes=True)
        for path, (numbers, values) in rows.items():
            table = flat[path]
            flat[path] = _put_rows(table.sharding)(table, np.asarray(numbers), np.asarray(values))
        return traverse_util.unflatten_dict(flat)

    return state.replace(params=replaced(state.params), best_params=replaced(state.best_params))


@functools.lru_cache(maxsize=8)
def _put_rows(split: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    """Compiled function that replaces rows of a table with this sharding."""
    return jax.jit(lambda table, rows, values: table.at[rows].set(values), out_shardings=split)


def shardings_of(state: Any) -> Any:
    """Sharding of every array in `state`."""
    return jax.tree.map(lambda array: array.sharding, state)
