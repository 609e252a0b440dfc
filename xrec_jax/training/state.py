"""The sharded training state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.parallel.mesh import RULES, put_sharded, sharding


class TrainState(flax.struct.PyTreeNode):
    """Everything a step reads and writes.

    Attributes:
      step: int32 scalar, updates done.
      params: trained parameters.
      opt_state: of the optimiser.
      key: `[2]` uint32 data of the run's key; step s uses `fold_in(key, s)`.
      best_params: the parameters with the best evaluation so far; None where none is tracked.
      frozen: arrays that no step changes (graph, counts, base weights). Never saved: they are made
        again from the data.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    best_params: Any = None
    frozen: Any = flax.struct.field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """The part that a checkpoint holds."""
        return {
            "step": self.step,
            "params": self.params,
            "opt_state": self.opt_state,
            "key": self.key,
            "best_params": self.best_params,
        }


def check_divisible(init: Callable[[jax.Array], Any], mesh: Mesh) -> None:
    """Refuses a mesh that does not split every parameter evenly.

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
    """Returns a function from a seed to a state with every array born on its own devices.

    Shapes come from `eval_shape`, shardings from the parameters' logical axes and the rules table;
    the initialiser then runs jitted with those output shardings, so no device ever holds a whole
    split array. The values do not depend on the mesh. Compiled once for all seeds.

    Args:
      init: key to boxed parameters.
      optimizer: its state is split as the parameters are.
      mesh: devices; call inside `parallel.mesh.use_mesh`.
      frozen: host arrays, the same on every process.
      frozen_axes: logical axes of each.
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


def shardings_of(state: Any) -> Any:
    """The sharding of every array in `state`."""
    return jax.tree.map(lambda array: array.sharding, state)
