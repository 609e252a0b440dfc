"""Identity of a process, and a test of whether another one still runs.

A process id alone says little: it is used again, and the only process of a container is always 1.
Together with the time at which the process started, and the boot that this time counts from, it
names one process of a host.
"""

from __future__ import annotations

import os
import pathlib
import socket
from typing import NamedTuple

_PROC = pathlib.Path("/proc")


class Process(NamedTuple):
    """A process.

    Attributes:
      host: name of its machine.
      pid: its process id there.
      start: clock ticks from the boot to its start; "" if unknown.
      boot: id of the boot; "" if unknown.
    """

    host: str
    pid: int
    start: str
    boot: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def runs(self) -> bool:
        """True if it still runs; only valid on its own host."""
        if self.boot and _boot() and self.boot != _boot():
            return False
        return runs(self.pid, self.start)

    @classmethod
    def of(cls, record: object) -> Process | None:
        """Restores a process from the record of `_asdict`; None if the record is something else."""
        if not isinstance(record, dict):
            return None
        host, start, boot = (record.get(name) for name in ("host", "start", "boot"))
        pid = record.get("pid")
        if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
            return None
        if not isinstance(host, str) or not isinstance(start, str) or not isinstance(boot, str):
            return None
        return cls(host, pid, start, boot)


def this() -> Process:
    """The calling process."""
    return Process(socket.gethostname(), os.getpid(), _start(os.getpid()) or "", _boot())


def runs(pid: int, start: str = "") -> bool:
    """True if a process of this host runs.

    Args:
      pid: its process id.
      start: as in `Process`; "" accepts any process with that id.
    """
    now = _start(pid)
    if now is not None:
        return start in ("", now)
    if _start(os.getpid()) is not None:  # /proc works, so there is no such process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _start(pid: int) -> str | None:
    """Start time of a process in clock ticks; None if there is none, or no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie or dead: not waited for yet
        return None
    return fields[19]


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
