"""Background write of a checkpoint, watched so that a failure is noticed when it happens."""

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

_POLL = 0.2  # seconds between two looks at what was logged


class BackgroundWrite(threading.Thread):
    """Thread that waits for a write and keeps its error.

    Args:
      step: step of the checkpoint.
      size: bytes of its arrays.
      response: Orbax's handle of the write.
      folder: folder of the checkpoint.
    """

    def __init__(self, step: int, size: int, response: Any, folder: epath.Path):
        # A daemon: a write that never ends must not keep the process from leaving.
        super().__init__(name=f"checkpoint-{step}", daemon=True)
        self.step, self.size, self._response, self._folder = step, size, response, folder
        self.files: FileSums = {}
        self.error: BaseException | None = None
        self.start()

    def failed(self) -> bool:
        """True if the write is known to have failed; does not wait.

        With several processes Orbax raises an error only after a barrier of all of them, which may
        take minutes to be given up where a peer is stuck in another one; what it logs is known at
        once. A log record does not say which write it is of, and may come late, so with one process
        only what the write itself raises counts.
        """
        if self.error is None and process_count() > 1 and (logged := _orbax_filter().errors):
            self.error = logged[0]
        return self.error is not None

    def wait(self) -> None:
        """Waits until the write has finished or failed."""
        while self.is_alive() and not self.failed():
            self.join(_POLL)

    def run(self) -> None:
        """Waits for the write, then computes the checksums of its files."""
        try:
            self._response.result()
            with contextlib.suppress(OSError):  # the checkpoint is complete without them
                self.files = file_sums(self._folder) if is_primary() else {}
        except BaseException as error:  # raised again by the thread that trains
            self.error = error


class _WithoutOrbax(logging.Filter):
    """Drops log records of errors that Orbax also raises: tracebacks from every thread.

    Attributes:
      errors: write errors logged since the last write began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True for a record to show."""
        text = f"{record.pathname} {record.getMessage()} {record.exc_info}".replace("\\", "/")
        if "/orbax/" not in text and "tensorstore" not in text:
            return True
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and error_code(error) in WRITING:
            self.errors.append(error)
        return False


def _orbax_filter() -> _WithoutOrbax:
    """Returns the filter of Orbax's logger."""
    logger = logging.getLogger("absl")
    return next(candidate for candidate in logger.filters if isinstance(candidate, _WithoutOrbax))


def silence_orbax() -> None:
    """Keeps Orbax's log of failures out of the terminal; they are raised and reported once."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(candidate, _WithoutOrbax) for candidate in logger.filters):
            logger.addFilter(_WithoutOrbax())
    _orbax_filter().errors.clear()
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


class _WithoutClosedLoops:
    """Hook that drops tensorstore's messages about writes that outlive Orbax's event loop.

    Args:
      before: hook that prints all other exceptions.
    """

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        """Prints an exception that nobody can catch."""
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._before(unraisable)
