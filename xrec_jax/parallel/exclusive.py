"""Exclusive access to a run directory or an output file, agreed by all processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.core.storage.lock import Lock

_MOST = 2000  # bytes of a refusal that are sent to the other processes


def of_directory(workdir: epath.PathLike) -> Lock:
    """The lock of a run directory, a hidden file in it."""
    path = files.absolute(workdir)
    return Lock(path / ".lock", what=str(path), instead="give another --workdir")


def of_file(output: epath.PathLike) -> Lock:
    """The lock of an output, a hidden file beside it."""
    path = files.absolute(output)
    return Lock(path.parent / f".{path.name}.lock", what=str(path), instead="give another --output")


def refuse_second(lock: Lock) -> None:
    """Raises early, before data is read, if a lock is held; writes nothing. All processes call it.

    Raises:
      UserError: on every process.
    """
    _agree(lambda: lock.check())


@contextlib.contextmanager
def exclusive(lock: Lock) -> Iterator[None]:
    """Holds a lock inside the block; the primary process takes it, the others learn of a refusal.

    Raises:
      UserError: on every process, if another run holds it.
    """
    _agree(lambda: _taken(lock))
    try:
        yield
    finally:
        if is_primary():
            lock.release()


def _taken(lock: Lock) -> None:
    if note := lock.acquire():
        log(note)


def _agree(step: Callable[[], object]) -> None:
    """Runs a step on the primary process; a `UserError` there is raised on all of them."""
    refusal = ""
    if is_primary():
        try:
            step()
        except UserError as error:
            refusal = str(error)
    # The primary sends its refusal, or "", so that no process goes on to wait for one that has
    # ended.
    if jax.process_count() > 1:
        refusal = _text_of_first(refusal)
    if refusal:
        raise UserError(refusal)


def _text_of_first(text: str) -> str:
    """Broadcasts the primary process's text."""
    buffer = np.zeros(_MOST, np.uint8)
    data = text.encode()[:_MOST]
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    known = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return known.tobytes().rstrip(b"\0").decode(errors="replace")
