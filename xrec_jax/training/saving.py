"""The background write of a checkpoint, watched so that its failure is noticed when it happens."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from etils import epath
from jax import process_count

from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.disk import WRITING, error_code
from xrec_jax.training.manifest import FileSums, file_sums

_LOOK = 0.2  # seconds between two looks at what was logged


class BackgroundWrite(threading.Thread):
    """Waits for a write in a thread of its own and keeps what went wrong.

    Args:
      step: of the checkpoint.
      size: bytes of its arrays.
      response: Orbax's handle of the write.
      folder: where it will lie.
    """

    def __init__(self, step: int, size: int, response: Any, folder: epath.Path):
        # A daemon: a write that never ends must not keep the process from leaving.
        super().__init__(name=f"checkpoint-{step}", daemon=True)
        self.step, self.size, self._response, self._folder = step, size, response, folder
        self.files: FileSums = {}
        self.error: BaseException | None = None
        self.start()

    def failed(self) -> bool:
        """Whether the write has failed, as far as is known; returns at once.

        With several processes Orbax raises an error only after a barrier of all of them, which may
        take minutes to be given up where a peer is stuck in another one; what it logs is known at
        once. A log record does not say which write it is of, and may come late, so with one process
        only what the write itself raises counts.
        """
        if self.error is None and process_count() > 1 and (logged := _orbax_filter().errors):
            self.error = logged[0]
        return self.error is not None

    def wait(self) -> None:
        """Waits until everything is on disk, or it is known that it will not be."""
        while self.is_alive() and not self.failed():
            self.join(_LOOK)

    def run(self) -> None:
        """Waits until everything is on disk, and notes what the files hold."""
        try:
            self._response.result()
            with contextlib.suppress(OSError):  # the checkpoint is complete without them
                self.files = file_sums(self._folder) if is_primary() else {}
        except BaseException as error:  # raised again by the thread that trains
            self.error = error


class _WithoutOrbax(logging.Filter):
    """Drops what is logged of an error that Orbax also raises: tracebacks from every thread.

    Attributes:
      errors: those of writes that were logged since the last one began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        text = f"{record.pathname} {record.getMessage()} {record.exc_info}".replace("\\", "/")
        if "/orbax/" not in text and "tensorstore" not in text:
            return True
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and error_code(error) in WRITING:
            self.errors.append(error)
        return False


def _orbax_filter() -> _WithoutOrbax:
    """The filter of Orbax's logger."""
    logger = logging.getLogger("absl")
    return next(one for one in logger.filters if isinstance(one, _WithoutOrbax))


def silence_orbax() -> None:
    """Keeps Orbax's own account of failures out of the terminal; they are raised and told once."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutOrbax) for one in logger.filters):
            logger.addFilter(_WithoutOrbax())
    _orbax_filter().errors.clear()
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


class _WithoutClosedLoops:
    """A hook that passes over what tensorstore prints of writes that outlive Orbax's event loop.

    Args:
      before: the hook that prints everything else.
    """

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        """Prints an exception that nobody can catch."""
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._before(unraisable)
