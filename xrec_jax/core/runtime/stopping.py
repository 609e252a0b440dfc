"""SIGTERM, SIGINT and SIGHUP: the first requests a clean stop, a second exits at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_APART_S = 0.3  # `timeout` and some terminals send one signal twice


class Stop:
    """A request to stop, set by the first signal.

    Args:
      forward: also called with the number of the first signal; optional.

    Attributes:
      number: number of the first signal; 0 before it comes.
    """

    def __init__(self, forward: Callable[[int], object] | None = None) -> None:
        self.number = 0
        self._seen = forward is not None  # the callee acts on the signal
        self._forward = forward

    def is_set(self) -> bool:
        """True if the caller should save and stop now; a caller that asks is expected to do so."""
        self._seen = self._seen or self.number != 0
        return self.number != 0

    @property
    def unseen(self) -> bool:
        """True if a signal has come and no caller has asked for it."""
        return self.number != 0 and not self._seen

    def note(self, number: int) -> None:
        """Records a signal; only the first one counts."""
        if not self.number:
            self.number = number
            if self._forward is not None:
                self._forward(number)


@contextlib.contextmanager
def listening(forward: Callable[[int], object] | None = None) -> Iterator[Stop]:
    """Handles the stop signals inside the block; earlier handlers are restored afterwards.

    A second signal exits at once, with status 128 + its number and whatever is saved by then, even
    while the main thread hangs inside compiled code: a separate thread reads the numbers that
    Python's C-level handler writes to the wakeup descriptor. A signal that was ignored before, as
    under `nohup`, stays ignored. One that no caller has asked for by the end of the block is
    delivered again.

    Args:
      forward: see `Stop`.
    """
    stop = Stop(forward)
    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    # The wakeup descriptor gets a byte from C, without the interpreter having to run; it must not
    # block there.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, stop, set(before)), daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def handle(number: int, _frame: object) -> None:
        stop.note(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        # Handlers first, then the descriptor: no signal may find a closed pipe. The zero ends the
        # watcher.
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)
    if stop.unseen:
        os.kill(os.getpid(), stop.number)


def _watch(reader: int, stop: Stop, numbers: set[int]) -> None:
    """Watcher thread: reads signal numbers as they come, until a zero."""
    first = 0.0
    while True:
        for number in os.read(reader, 64):
            if number == 0:
                return
            if number not in numbers:
                continue
            now = time.monotonic()
            if not first:
                first = now
                stop.note(number)
            elif now - first > _APART_S:
                end_at_once(number)


def set_native_handler(number: int, handler: ctypes._FuncPointer | None) -> int:
    """Installs a C-level signal handler, which is called at once even while native code runs.

    Args:
      number: signal number.
      handler: a `ctypes.CFUNCTYPE` callback, kept alive by the caller; None for the default action.

    Returns:
      Address of the previous handler; 0 for the default action.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal.restype = ctypes.c_void_p
    return library.signal(number, ctypes.cast(handler, ctypes.c_void_p) if handler else None) or 0


def end_at_once(number: int) -> None:
    """Exits without waiting for anything."""
    name = signal.Signals(number).name
    line = f"xrec: {name} again: ended at once, with what was saved before\n"
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be no stream
        os.write(sys.stderr.fileno(), line.encode())
    os._exit(128 + number)
