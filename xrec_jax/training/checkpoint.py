"""Orbax checkpoints of a training run.

One checkpoint holds the whole run at a step, in one atomic folder `STEP/`: the state (parameters,
optimizer state, key, step and the best parameters so far), the position of the data iterator, the
loop's progress (best score, evaluations without improvement), and checksums of all of it. It is
written in the background; a kill in mid-write leaves only a temporary folder, which the next start
ignores and removes. `newest.json` beside the folders names the newest checkpoint, so that its loss
is noticed.

Resume precedence of a stage:

1. the stage is marked done: nothing runs, its results are read;
2. a complete checkpoint exists: the newest sound one is restored, onto the mesh that the run has
   now; a damaged one is set aside, and a message says so;
3. otherwise: initialisation from the seed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.core.storage.checksums import array_bytes
from xrec_jax.core.storage.disk import error_code, write_error
from xrec_jax.training import manifest, sums
from xrec_jax.training.saving import BackgroundWrite, silence_orbax
from xrec_jax.training.sums import Damaged

KEEP = 2  # newest checkpoints kept; the best parameters are inside each
# Exceptions that Orbax and tensorstore raise on damaged files.
_ON_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    OSError,
)
# Not damage: the same files may be readable in a moment, or by another user.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO)


class Saved(Protocol):
    """A state that checkpoints can save, for example `training.state.TrainState`."""

    @property
    def step(self) -> Any:
        """Number of updates done, an integer scalar."""

    def saved(self) -> dict[str, Any]:
        """Fields that a checkpoint holds, by name."""

    def replace(self, **fields: Any) -> Self:
        """Copy of the state with new values of some fields."""


_State = TypeVar("_State", bound=Saved)


class Checkpoints:
    """Checkpoints of one stage.

    Args:
      directory: `checkpoints/STAGE` of the run directory; must exist if `read_only`.
      read_only: changes no file; otherwise unfinished writes are removed and damaged checkpoints
        are set aside.

    Raises:
      WriteError: if the directory cannot be written.
    """

    def __init__(self, directory: epath.PathLike, *, read_only: bool = False):
        silence_orbax()
        self.directory = files.absolute(directory)
        self._read_only = read_only
        self._write: BackgroundWrite | None = None
        self._failed = False
        unreadable: list[int] = []
        self._checkpointer = self._opened(unreadable)
        self._manifest = manifest.read(self.directory)
        then = f"going on from step {self.latest}" if self.latest else "none is left"
        for step in unreadable:
            self._say_damaged(step, "its metadata cannot be read", then)
        # The manifest outlives its folders, so it shows that the newest checkpoint was lost.
        newest = self._manifest.step
        if newest > (self.latest or 0) and newest not in unreadable and is_primary():
            log(f"{self._folder(newest)}: the newest checkpoint is missing; {then}")

    def _opened(self, unreadable: list[int]) -> ocp.training.Checkpointer:
        """Opens the directory; the steps of unreadable checkpoints are added to `unreadable`."""
        while True:  # once more for each checkpoint that had to be set aside
            try:
                return ocp.training.Checkpointer(
                    self.directory,
                    save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                    preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),
                    cleanup_tmp_directories=not self._read_only,
                )
            except OSError as error:
                raise write_error(self.directory, error) from error
            except _ON_DAMAGE as error:  # Orbax reads metadata of every step at once
                unreadable.append(self._set_aside_unreadable(error))

    def _set_aside_unreadable(self, error: Exception) -> int:
        """Sets aside the step with unreadable metadata and returns it."""
        for folder in self.directory.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                ocp.checkpointables_metadata(folder)
            except _ON_DAMAGE:
                # With several processes, none may rename a folder that others are opening.
                if self._read_only or jax.process_count() > 1:
                    raise UserError(
                        f"{folder}: the checkpoint is damaged (its metadata cannot be read); "
                        "delete that folder to go on from the one before"
                    ) from error
                self._set_aside(int(folder.name))
                return int(folder.name)
        raise UserError(f"{self.directory}: {_first_line(error)}") from error

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def save(self, state: Saved, data: dict[str, Any], progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits only for the previous write to finish.

        Args:
          state: training state; may be donated as soon as this returns.
          data: state of the data iterator (JSON).
          progress: state of the loop (JSON).

        Raises:
          WriteError: if this write cannot start, or the previous one failed.
        """
        step = int(state.step)
        if step == self.latest:
            return
        self.wait()
        saved = state.saved()
        size = array_bytes(saved)
        try:
            self._make_way(step)
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"state": saved, "data": data, "progress": progress},
                force=True,
                custom_metadata=sums.record(step, saved, data, progress),
            )
        except (OSError, ValueError) as error:
            raise self._failure(step, size, error) from error
        self._write = BackgroundWrite(step, size, response, self._folder(step))

    def check(self) -> None:
        """Checks without waiting whether the background write has failed.

        Raises:
          WriteError: names the cause, the bytes needed and the bytes free.
        """
        if self._write is not None and (self._write.failed() or not self._write.is_alive()):
            self.wait()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          WriteError: if that failed.
        """
        write, self._write = self._write, None
        if write is None:
            return
        write.wait()
        if write.error is not None:
            raise self._failure(write.step, write.size, write.error) from write.error
        self._note(write.step, write.files)

    def _note(self, step: int, checksums: manifest.FileSums) -> None:
        """Records in the manifest that a checkpoint is complete, with its files' checksums."""
        self._manifest = manifest.pruned(self._manifest, step, checksums, self._steps())
        if is_primary():
            self._manifest.write(self.directory)

    def restore(self, state: _State) -> tuple[_State, dict[str, Any], dict[str, Any]]:
        """Restores the newest sound checkpoint with the shapes and shardings of `state`.

        Returns:
          The state, the data iterator's state, the loop's progress.

        Raises:
          UserError: if the checkpoint does not fit the configured model, or all are damaged.
        """
        saved = state.saved()
        damaged: dict[int, str] = {}
        # From the newest to the oldest, until one is sound.
        for step in reversed(self._steps()):
            restored, reason = self._try(step, saved)
            if restored is not None:
                if damaged:
                    self._fall_back(damaged, step)
                elif (
                    not self._read_only and step > self._manifest.step
                ):  # killed before it was noted
                    self._note(step, manifest.file_sums(self._folder(step)) if is_primary() else {})
                return state.replace(**restored["state"]), restored["data"], restored["progress"]
            damaged[step] = reason
        folders = " and ".join(f"{self._folder(step)} ({why})" for step, why in damaged.items())
        raise UserError(
            f"every checkpoint is damaged: {folders}; put back a copy of one of these folders, or "
            f"delete {self.directory} to start the stage from the beginning"
        )

    def _steps(self) -> list[int]:
        """Steps of the complete checkpoints in ascending order."""
        return [int(checkpoint.step) for checkpoint in self._checkpointer.checkpoints]

    def _try(self, step: int, saved: Any) -> tuple[dict[str, Any] | None, str]:
        """Contents of a step's checkpoint, or None and the damage; the same on all processes."""
        restored, reason = None, ""
        try:
            self._check_files(step)
        except Damaged as error:
            reason = str(error)
        # Restoring is a collective operation, so all processes must agree before it begins.
        if not _everywhere(not reason):
            return None, reason or "another process cannot read it"
        try:
            restored = self._restored(step, saved)
        except Damaged as error:
            reason = _first_line(error)
        sound = _everywhere(restored is not None)
        return (restored if sound else None), reason or "another process cannot read it"

    def _check_files(self, step: int) -> None:
        """Compares the files before Orbax reads them: it is neither quiet nor quick on damage."""
        recorded = self._manifest.folders.get(step, {})
        if not is_primary() or not recorded or not files.is_local(self.directory):
            return
        missing = manifest.incomplete(self._folder(step), recorded)
        if missing and step == self._manifest.step:  # perhaps of a copy that can be finished
            raise UserError(
                f"{self._folder(step)}: the checkpoint is damaged, not all of it is there "
                f"({missing}); copy it again, or delete that folder to go on from the one before"
            )
        if name := missing or manifest.changed(self._folder(step), recorded):
            raise Damaged(missing or f"{name} is not as it was written")

    def _restored(self, step: int, saved: Any) -> dict[str, Any]:
        """Reads and verifies a checkpoint with the shapes and shardings of `saved`."""
        metadata = self._reading(step, self._checkpointer.checkpointables_metadata, step)
        record = sums.read_record(metadata.custom_metadata)
        self._check_shapes(step, metadata.metadata.get("state"), saved, record)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved
        )
        abstract_tree = {"state": abstract, "data": None, "progress": None}
        restored = self._reading(step, self._checkpointer.load_checkpointables, step, abstract_tree)
        for name in ("data", "progress"):
            if not isinstance(restored.get(name), dict):
                raise Damaged(f"{name} cannot be read")
        if record is not None:
            sums.verify(record, step, restored)
        return restored

    def _reading(self, step: int, read: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a reading function of Orbax and tells damage from unreadable files."""
        try:
            return read(*arguments)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
            OSError,
        ) as error:
            if error_code(error) in _UNREADABLE:
                raise UserError(
                    f"cannot read {self._folder(step)}: {os.strerror(error_code(error))}"
                ) from error
            raise Damaged(_first_line(error)) from error

    def _check_shapes(self, step: int, metadata: Any, saved: Any, record: Any) -> None:
        """Compares shapes by name before reading: Orbax's own message does not name the array."""
        stored, expected = _shapes(metadata), _shapes(saved)
        if not stored:
            raise Damaged("it lists no arrays")
        if stored == expected:
            if record is not None and sums.shapes_of(record) != stored:
                raise Damaged("its checksums are of other arrays")
            return
        # The checksums name the arrays as saved: they tell another model from damaged metadata.
        recorded = stored if record is None else sums.shapes_of(record)
        for name in sorted(recorded.keys() | expected.keys()):
            if recorded.get(name) != expected.get(name):
                raise UserError(
                    f"{self._folder(step)}: {name} has shape {recorded.get(name, 'none')} in "
                    f"the checkpoint but {expected.get(name, 'none')} in the configured model; use "
                    "the configuration the run was started with, or another --workdir"
                )
        for name in sorted(recorded.keys() | stored.keys()):
            if recorded.get(name) != stored.get(name):
                raise Damaged(f"{name} has another shape than was saved")

    def _fall_back(self, damaged: dict[int, str], step: int) -> None:
        """Logs damaged checkpoints and, unless read-only, sets them aside."""
        then = f"going on from step {step}"
        if self._read_only:
            then = f"reading step {step}, the one before, whose figures may differ"
        for bad, reason in damaged.items() if is_primary() else ():
            if not self._read_only:
                self._set_aside(bad)
            self._say_damaged(bad, reason, then)
        barrier(f"set aside {self.directory}")
        if not self._read_only:
            self._checkpointer.reload()

    def _say_damaged(self, step: int, reason: str, then: str) -> None:
        kept = "" if self._read_only else f"; it was renamed to {self._aside(step).name}"
        log(f"{self._folder(step)}: the checkpoint is damaged ({reason}); {then}{kept}")

    def _folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _aside(self, step: int) -> epath.Path:
        return self.directory / f"{step}.damaged"

    def _set_aside(self, step: int) -> None:
        aside = self._aside(step)
        try:
            if aside.exists():
                aside.rmtree() if aside.is_dir() else aside.unlink()
            self._folder(step).rename(aside)
        except OSError as error:
            raise write_error(aside, error) from error

    def _make_way(self, step: int) -> None:
        """Renames whatever occupies the folder of a new checkpoint, such as a stray file."""
        if is_primary() and self._folder(step).exists():
            self._set_aside(step)
            aside = self._aside(step).name
            log(f"{self._folder(step)}: not a checkpoint; it was renamed to {aside}")

    def _failure(self, step: int, size: int, error: BaseException) -> UserError:
        self._failed = True
        complete = [saved for saved in self._steps() if saved != step]
        since = (
            f"it goes on from step {complete[-1]}" if complete else "it starts from the beginning"
        )
        return write_error(
            self.directory,
            error,
            what=f"the checkpoint of step {step}",
            needed=size,
            then=f"run the same command again: {since}",
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits and frees the background threads; does not wait after a failed write."""
        if self._failed:
            return
        self.wait()
        self._checkpointer.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip("'\"\n ").splitlines() or [type(error).__name__])[0][:200]


def _everywhere(flag: bool) -> bool:
    """True if a flag is true on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in flat
        if hasattr(leaf, "shape")
    }
