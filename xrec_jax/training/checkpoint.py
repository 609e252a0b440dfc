"""Orbax checkpoints of a training run.

One checkpoint holds the whole run at a step, in one atomic folder `STEP/`: the state (parameters,
optimiser, key, step and the best parameters so far), the position of the data iterator, and the
loop's progress (best score, evaluations without improvement). It is written in the background;
a kill in mid-write leaves only a temporary folder that the next start ignores and removes.

Resume precedence of a stage:

1. the stage is marked done: nothing runs, its results are read;
2. a complete checkpoint exists: the newest is restored, onto whatever mesh the run has now;
3. otherwise: initialisation from the seed.
"""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from xrec_jax.core import files
from xrec_jax.core.errors import UserError

KEEP = 2  # newest checkpoints kept; the best parameters are inside each


class Saved(Protocol):
    """A state as checkpoints use it, for example `training.state.TrainState`."""

    @property
    def step(self) -> Any:
        """Updates done, an integer scalar."""

    def saved(self) -> dict[str, Any]:
        """The part that a checkpoint holds: its fields by name."""

    def replace(self, **fields: Any) -> Self:
        """The same state with other values of some fields."""


_State = TypeVar("_State", bound=Saved)


class Checkpoints:
    """The checkpoints of one stage.

    Args:
      directory: `checkpoints/STAGE` of the run directory; must exist if `read_only`.
      read_only: leaves everything as it is; otherwise what a kill left half written is removed.
    """

    def __init__(self, directory: epath.PathLike, *, read_only: bool = False):
        self.directory = files.absolute(directory)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),
            cleanup_tmp_directories=not read_only,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def save(self, state: Saved, data: dict[str, Any], progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits only for an earlier one to finish.

        Args:
          state: may be donated as soon as this returns.
          data: state of the data iterator (JSON).
          progress: state of the loop (JSON).
        """
        step = int(state.step)
        if step == self.latest:
            return
        self._checkpointer.wait()
        self._checkpointer.save_checkpointables_async(
            step, {"state": state.saved(), "data": data, "progress": progress}, force=True
        )

    def restore(self, state: _State) -> tuple[_State, dict[str, Any], dict[str, Any]]:
        """Restores the newest checkpoint with the shapes and shardings of `state`.

        Returns:
          The state, the data iterator's state, the loop's progress.

        Raises:
          UserError: if the checkpoint does not fit the configured model.
        """
        step = self.latest
        saved = state.saved()
        self._check(step, saved)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved
        )
        found = self._load(step, {"state": abstract, "data": None, "progress": None})
        return state.replace(**found["state"]), found["data"], found["progress"]

    def _load(self, step: int | None, wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._checkpointer.load_checkpointables(step, wanted)
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int | None, error: Exception) -> UserError:
        return UserError(
            f"{self.directory / str(step)}: the checkpoint is damaged "
            f"({str(error).splitlines()[0][:200]}); delete that folder to go on from the one before"
        )

    def _check(self, step: int | None, wanted: Any) -> None:
        """Compares shapes by name first: Orbax's own message does not say what differs."""
        try:
            metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(step, error) from error
        stored, asked = _shapes(metadata), _shapes(wanted)
        if not stored:
            raise self._damaged(step, ValueError("it lists no arrays"))
        for name in sorted(stored.keys() | asked.keys()):
            if stored.get(name) != asked.get(name):
                raise UserError(
                    f"{self.directory / str(step)}: {name} has shape {stored.get(name, 'none')} in "
                    f"the checkpoint but {asked.get(name, 'none')} in the configured model; use "
                    "the configuration the run was started with, or another --workdir"
                )

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits, then frees the background threads."""
        self._checkpointer.wait()
        self._checkpointer.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in flat
        if hasattr(leaf, "shape")
    }
