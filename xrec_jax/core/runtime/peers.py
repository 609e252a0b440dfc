"""What this process says when another one of the run is gone.

JAX ends a process whose peer is gone from native code, with a stack on standard error and an abort.
Here the lines that lead there are held back, and the abort becomes one line that names the peer.
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
_HELD_S = 60.0  # after that, what was held back led to no abort
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination"
    r"|unavailable|unhealthy",
    re.IGNORECASE,
)


def gone(text: str, coordinator: str) -> str:
    """One line on an abort over lost peers.

    Args:
      text: what native code printed before it.
      coordinator: host:port of process 0.
    """
    found = re.search(r"unhealthy[^:]*:(.*?)(The tasks have crashed|$)", text, re.DOTALL)
    named = re.findall(r"(?:task:|^\s*)(\d+)\s*$", found[1], re.MULTILINE) if found else []
    if named:
        who = f"process {', '.join(sorted(set(named), key=int))} is gone"
    elif "Socket closed" in text or "UNAVAILABLE" in text or "failed to connect" in text:
        who = f"process 0 at {coordinator} is gone"
    else:
        who = "another process of the run is gone"
    return f"{who}; {_AGAIN}"


def lost_peer(error: BaseException) -> bool:
    """Whether an error looks like the loss of another process in a common computation."""
    return _LOST.search(f"{type(error).__name__} {error}") is not None


def end_over(error: BaseException, coordinator: str) -> None:
    """Ends the process in one line over an error that another process's loss has caused.

    Of two it is known which one is lost; of more JAX finds out, see `NativeErrors`.
    """
    if jax.process_count() > 2:
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
    """Standard error of native code, line by line, from when it is made to the end of the process.

    Python's own goes past it. The process must be the caller's alone.

    Args:
      line: from what was held back to what is printed instead when native code aborts over it.
    """

    def __init__(self, line: Callable[[str], str]):
        self._line = line
        self._held: list[bytes] = []
        self._since = 0.0
        sys.stderr.flush()
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
        """Reads what is there, prints it or holds it back."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._sort(line + b"\n")

    def _sort(self, line: bytes) -> None:
        entry = _ENTRY.match(line)
        if (entry and _NOISE.search(line)) or (not entry and self._held):
            self._since = self._since if self._held else time.monotonic()
            self._held.append(line)
        else:
            self._print(line)

    def _print(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._screen, data)

    def _aborted(self, _number: int) -> None:
        """Ends the process in place of the C library; runs in the thread that aborts."""
        self._take()
        held = b"".join(self._held) + self._rest
        if not held:
            os._exit(128 + signal.SIGABRT)
        line = self._line(held.decode(errors="replace"))
        self._print(f"xrec: error: {line}\n".encode())
        os._exit(STATUS)
