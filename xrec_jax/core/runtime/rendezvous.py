"""Rendezvous of a run's processes, before JAX is started on them.

Process 0 listens at the coordinator's address; the others connect and identify themselves. Once all
have come and run the same code, the address is released for JAX. JAX alone would wait in silence
for a process that never comes, and abort with a native stack trace if the port is in use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import platform
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime.terminal import show

_EVERY_S = 5.0  # seconds between two progress lines while waiting
_PATIENCE_S = 2.0  # seconds that a silent connection is kept


def code_version() -> str:
    """Version of the running code: a digest of all sources, and JAX's and Python's versions."""
    digest = hashlib.sha256()
    folder = pathlib.Path(__file__).parents[2]
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return f"xrec_jax sources {digest.hexdigest()[:12]}, jax {jax.__version__}, Python {python}"


def address(coordinator: str) -> tuple[str, int]:
    """Splits "host:port".

    Raises:
      UserError: if the text is not of that form.
    """
    host, separator, port = coordinator.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"XREC_COORDINATOR={coordinator}: it must be host:port of process 0, such as "
            "10.0.0.1:12345, the same on every process"
        )
    return host.strip("[]"), int(port)


def gather(
    coordinator: str, *, processes: int, process: int, timeout: float, command: str = ""
) -> None:
    """Waits until all processes have come.

    Args:
      coordinator: host:port of process 0.
      processes: number of processes.
      process: index of this process.
      timeout: seconds to wait for the others.
      command: the command of this process, which must be the same on all of them.

    Raises:
      UserError: names missing processes or the first mismatch; raised on every process that came.
    """
    host, port = address(coordinator)
    mine = {"process": process, "processes": processes, "code": code_version(), "command": command}
    deadline = time.monotonic() + timeout
    if process == 0:
        with _listening(coordinator, port) as server:
            _Host(server, mine, coordinator=coordinator, timeout=timeout).run(deadline)
    else:
        _join(host, port, mine, coordinator=coordinator, timeout=timeout, deadline=deadline)


@contextlib.contextmanager
def _listening(coordinator: str, port: int) -> Iterator[socket.socket]:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        way_out = "choose another port"
        if error.errno == errno.EADDRINUSE:
            way_out += ", or end what listens there, perhaps an earlier run"
        raise UserError(
            f"XREC_COORDINATOR={coordinator}: process 0 cannot listen on port {port} "
            f"({os.strerror(error.errno or errno.EADDRNOTAVAIL)}); {way_out}"
        ) from error
    with server:
        yield server


class _Host:
    """Server on process 0 that waits for the others."""

    def __init__(
        self, server: socket.socket, mine: dict[str, Any], *, coordinator: str, timeout: float
    ):
        self._server, self._mine = server, mine
        self._coordinator, self._timeout = coordinator, timeout
        self._here: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._new: dict[socket.socket, tuple[float, bytes]] = {}

    def run(self, deadline: float) -> None:
        """Waits for all processes and sends each of them the outcome.

        Raises:
          UserError: if a process has not come, or does not match.
        """
        answer = "go"
        try:
            self._wait(deadline)
        except UserError as error:
            answer = str(error)
            raise
        except KeyboardInterrupt:
            answer = "process 0 was interrupted"
            raise
        finally:
            for other in [*self._here.values(), *self._new]:
                _send(other, {"answer": answer})
                other.close()
            self._selector.close()

    @property
    def _missing(self) -> list[int]:
        return [n for n in range(1, self._mine["processes"]) if n not in self._here]

    def _wait(self, deadline: float) -> None:
        begin = last_line = time.monotonic()
        while self._missing:
            now = time.monotonic()
            if now >= deadline:
                raise UserError(
                    f"{_named(self._missing)} of {self._mine['processes']} did not come to "
                    f"XREC_COORDINATOR={self._coordinator} within {self._timeout:g} s; start all "
                    "processes together, or set XREC_START_TIMEOUT to more seconds"
                )
            if now - last_line >= _EVERY_S:
                last_line = now
                _log(f"waiting for {_named(self._missing)} ({now - begin:.0f} s)")
            # Short waits, so that deadline, progress lines and silent connections are looked at
            # twice a second.
            for key, _ in self._selector.select(timeout=min(0.5, deadline - now)):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            for other, (since, _) in [*self._new.items()]:
                if time.monotonic() - since > _PATIENCE_S:
                    self._drop(other)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            other, _ = self._server.accept()
            other.setblocking(False)
            self._new[other] = (time.monotonic(), b"")
            self._selector.register(other, selectors.EVENT_READ)

    def _drop(self, other: socket.socket) -> None:
        self._new.pop(other, None)
        self._selector.unregister(other)
        other.close()

    def _read(self, other: socket.socket) -> None:
        """Reads the record of a connecting process; drops connections of anything else."""
        if other not in self._new:  # a process that had come has closed its connection
            (number,) = (n for n, connection in self._here.items() if connection is other)
            self._selector.unregister(self._here.pop(number))
            other.close()
            return
        since, data = self._new[other]
        try:
            more = other.recv(4096)
        except OSError:
            more = b""
        data += more
        if not more or len(data) > 4096:
            self._drop(other)
        elif b"\n" not in data:
            self._new[other] = (since, data)
        else:
            theirs = _parsed(data)
            if theirs is None:
                self._drop(other)
            else:
                self._check(theirs)
                del self._new[other]
                self._here[theirs["process"]] = other

    def _check(self, theirs: dict[str, Any]) -> None:
        number, mine = theirs["process"], self._mine
        if theirs["processes"] != mine["processes"]:
            raise UserError(
                f"process {number} was told XREC_PROCESSES={theirs['processes']} and process 0 "
                f"XREC_PROCESSES={mine['processes']}; give all of them the same"
            )
        if number in self._here or number == 0:
            raise UserError(
                f"two processes have XREC_PROCESS={number}; number them from 0 to "
                f"{mine['processes'] - 1}"
            )
        if theirs["command"] != mine["command"]:
            raise UserError(
                f"process {number} is to {theirs['command']} and process 0 to {mine['command']}; "
                "give all of them the same command"
            )
        if theirs["code"] != mine["code"]:
            raise UserError(
                f"process {number} runs other code ({theirs['code']}) than process 0 "
                f"({mine['code']}); install the same on every host"
            )


def _join(
    host: str, port: int, mine: dict[str, Any], *, coordinator: str, timeout: float, deadline: float
) -> None:
    """Connects to process 0 and waits for its answer."""
    begin = last_line = time.monotonic()
    reason = "nothing listens there"
    while (now := time.monotonic()) < deadline:
        if now - last_line >= _EVERY_S:
            last_line = now
            _log(f"waiting for process 0 at {coordinator} ({now - begin:.0f} s)")
        try:
            # Process 0 may start later, or its port may still belong to something else: try until
            # the deadline.
            with socket.create_connection((host, port), timeout=_EVERY_S) as server:
                _send(server, mine)
                answer = _answer(server, deadline=deadline + _EVERY_S, begin=begin)
            if answer == "go":
                return
            if answer is not None:
                raise UserError(answer)
            reason = "what listens there is not process 0 of a run"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(
        f"process 0 did not come to XREC_COORDINATOR={coordinator} within {timeout:g} s "
        f"({reason}); start all processes together, or set XREC_START_TIMEOUT to more seconds"
    )


def _answer(server: socket.socket, *, deadline: float, begin: float) -> str | None:
    """Answer of process 0; None if it goes away or is something else."""
    data = b""
    while b"\n" not in data:
        try:
            more = server.recv(4096)
        except TimeoutError:
            now = time.monotonic()
            if now > deadline:
                return None
            _log(f"waiting for the other processes ({now - begin:.0f} s)")
            continue
        if not more or len(data) > 8192:
            return None
        data += more
    try:
        answer = json.loads(data)["answer"]
    except (ValueError, LookupError, TypeError):
        return None
    return answer if isinstance(answer, str) else None


def _parsed(data: bytes) -> dict[str, Any] | None:
    """Parses the record of a connecting process; None if it is not one."""
    try:
        record = json.loads(data)
        known = {"process": int, "processes": int, "code": str, "command": str}
        good = all(type(record[key]) is kind for key, kind in known.items())
    except (ValueError, LookupError, TypeError):
        return None
    return record if good else None


def _send(other: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        other.sendall(json.dumps(message).encode() + b"\n")


def _named(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    shown = [str(number) for number in numbers[:8]] + ["..."] * (len(numbers) > 8)
    return f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def _log(text: str) -> None:
    show(f"xrec: {text}", error=True)
