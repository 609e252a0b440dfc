"""One-line errors for the loss of another process of the run.

JAX ends a process whose peer is gone from native code, with a stack on standard error and an abort.
Here the log lines that lead up to it are held back, and the abort becomes one line naming the peer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import jax

from xrec_jax.core.runtime.stopping import set_native_handler
from xrec_jax.core.runtime.terminal import one_line, show

HEARTBEAT_S = 30  # seconds of silence after which JAX takes a process for dead
STATUS = 3  # of a process that ends because another one is gone

_ENTRY = re.compile(rb"^[IWEF]\d{4} \d\d:\d\d:\d\d")  # the beginning of a native log line
_NOISE = re.compile(rb"(coordination_\w+|preemption_\w+|client|distributed\w*)\.(cc|h):\d+\]")
_AGAIN = (
    "its own output says why. Start all processes again with the same command: the run goes on "
    "from its newest checkpoint"
)
_HELD_S = 60.0  # lines held back for longer did not lead to an abort
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination"
    r"|unavailable|unhealthy",
    re.IGNORECASE,
)


def gone(text: str, coordinator: str) -> str:
    """Describes an abort over lost peers in one line.

    Args:
      text: native log lines printed before the abort.
      coordinator: host:port of process 0.
    """
    unhealthy = re.search(r"unhealthy[^:]*:(.*?)(The tasks have crashed|$)", text, re.DOTALL)
    named = re.findall(r"(?:task:|^\s*)(\d+)\s*$", unhealthy[1], re.MULTILINE) if unhealthy else []
    if named:
        who = f"process {', '.join(sorted(set(named), key=int))} is gone"
    elif "Socket closed" in text or "UNAVAILABLE" in text or "failed to connect" in text:
        who = f"process 0 at {coordinator} is gone"
    else:
        who = "another process of the run is gone"
    return f"{who}; {_AGAIN}"


def lost_peer(error: BaseException) -> bool:
    """True if an error looks like the loss of another process during a collective computation."""
    return _LOST.search(f"{type(error).__name__} {error}") is not None


def end_over(error: BaseException, coordinator: str) -> None:
    """Exits with a one-line message for an error caused by the loss of another process.

    With two processes the lost one is known; with more, JAX finds it, see `NativeErrors`.
    """
    if jax.process_count() > 2:
        # Long enough for JAX's heartbeat to name the lost process and abort first.
        time.sleep(HEARTBEAT_S + 15)
    who = f"process {1 - jax.process_index()}"
    if jax.process_index() == 1:
        who += f" at {coordinator}"
    if jax.process_count() > 2:
        who = "another process of the run"
    reason = " ".join(str(error).split())[:200]
    show(one_line(f"xrec: error: {who} is gone ({reason}); {_AGAIN}"), error=True)
    os._exit(STATUS)


class NativeErrors:
    """Filters the standard error of native code, line by line, until the process ends.

    Python's own standard error bypasses it. It replaces file descriptor 2 of the whole process.

    Args:
      line: maps the lines held back to the message printed instead when native code aborts.
    """

    def __init__(self, line: Callable[[str], str]):
        self._line = line
        self._held: list[bytes] = []
        self._since = 0.0
        sys.stderr.flush()
        # Descriptor 2 becomes a pipe that a thread reads; Python's stream moves to a copy of the
        # old descriptor.
        self._screen = os.dup(2)
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.dup2(writer, 2)
        os.close(writer)
        sys.stderr = os.fdopen(os.dup(self._screen), "w", buffering=1, errors="backslashreplace")
        self._rest = b""
        self._lock = threading.RLock()
        # Kept, since native code has no reference to it.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        set_native_handler(signal.SIGABRT, self._handler)
        threading.Thread(target=self._forward, daemon=True).start()

    def _forward(self) -> None:
        while True:
            select.select([self._reader], [], [], 1.0)
            with self._lock:
                self._take()
                if self._held and time.monotonic() - self._since > _HELD_S:
                    self._print(b"".join(self._held))
                    self._held.clear()

    def _take(self) -> None:
        """Reads the available data and prints or holds back each line."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._sort(line + b"\n")

    def _sort(self, line: bytes) -> None:
        entry = _ENTRY.match(line)
        # A line without a log prefix continues the entry before it, such as a stack below an error.
        if (entry and _NOISE.search(line)) or (not entry and self._held):
            self._since = self._since if self._held else time.monotonic()
            self._held.append(line)
        else:
            self._print(line)

    def _print(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._screen, data)

    def _aborted(self, _number: int) -> None:
        """SIGABRT handler, run in the aborting thread: prints one line and exits."""
        # The other thread may be in the middle of printing lines that it has read already.
        self._lock.acquire(timeout=5.0)
        self._take()
        held = b"".join(self._held) + self._rest
        if not held:
            os._exit(128 + signal.SIGABRT)
        line = self._line(held.decode(errors="replace"))
        self._print(f"xrec: error: {line}\n".encode())
        os._exit(STATUS)
