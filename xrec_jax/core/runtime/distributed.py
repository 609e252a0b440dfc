"""Start of a run on several processes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import rendezvous
from xrec_jax.core.runtime.peers import HEARTBEAT_S
from xrec_jax.core.runtime.stopping import Stop, listening, set_native_handler


def initialize(
    coordinator: str = "", processes: int = 0, process: int = -1, *, command: str = ""
) -> None:
    """Joins this process to a multi-process run; no effect for a single process.

    Arguments not given come from the environment: `XREC_COORDINATOR` (host:port),
    `XREC_PROCESSES`, `XREC_PROCESS`. `XREC_COORDINATOR=auto` lets JAX find them (TPU pods, SLURM).
    `XREC_START_TIMEOUT` is how many seconds to wait for the others.

    Args:
      coordinator: host:port of process 0.
      processes: number of processes.
      process: index of this process.
      command: the command of this process, compared with that of the others.

    Raises:
      UserError: if the settings are incomplete or invalid, or a process does not come in time.
    """
    # Arguments win over the environment.
    coordinator = coordinator or os.environ.get("XREC_COORDINATOR", "")
    if not coordinator:
        half_set = [name for name in ("XREC_PROCESSES", "XREC_PROCESS") if name in os.environ]
        if half_set:
            raise UserError(f"{' and '.join(half_set)} set without XREC_COORDINATOR (host:port)")
        return
    timeout = _timeout(os.environ.get("XREC_START_TIMEOUT", "60"))
    # A cluster's own environment tells JAX who takes part, so there is nobody to gather.
    if coordinator == "auto":
        _start(initialization_timeout=math.ceil(timeout))
        return
    try:
        processes = processes or int(os.environ["XREC_PROCESSES"])
        process = process if process >= 0 else int(os.environ["XREC_PROCESS"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "XREC_COORDINATOR is set: XREC_PROCESSES (how many) and XREC_PROCESS (which, from 0) "
            "must be whole numbers too"
        ) from error
    if processes < 1 or not 0 <= process < processes:
        raise UserError(
            f"XREC_PROCESS={process} of XREC_PROCESSES={processes}: processes are numbered from 0 "
            "to one less than there are"
        )
    # Processes meet before JAX starts: a missing or differing one is then named in one line, where
    # JAX would wait in silence or abort.
    rendezvous.gather(
        coordinator, processes=processes, process=process, timeout=timeout, command=command
    )
    # All are here, so JAX needs little time; below 30 s slow hosts would fail for nothing.
    _start(
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        initialization_timeout=math.ceil(max(timeout, 30)),
    )


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise UserError(f"XREC_START_TIMEOUT={text!r} must be seconds above 0, at most a day")
    return seconds


def _start(**settings: Any) -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S, **settings)
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if "coordinator_address" not in settings:
            reason += " XREC_COORDINATOR=auto is for TPU pods and SLURM; else give host:port"
        raise UserError(f"cannot join the other processes: {reason}") from error
    _jax_handler()


def is_primary() -> bool:
    """True on process 0, the one that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this call; returns at once for a single process.

    Args:
      name: name of the barrier, the same on all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def sigterm() -> contextlib.AbstractContextManager[Stop]:
    """Turns SIGTERM, SIGINT and SIGHUP into stop requests in the block; see `stopping.listening`.

    On several processes the signal is forwarded to JAX, through which they agree on the last step.
    """
    return listening(_jax_handler() if jax.process_count() > 1 else None)


@functools.cache
def _jax_handler() -> Callable[[int], object] | None:
    """Takes JAX's SIGTERM handler out of the C library, once, and restores the default action.

    Left in place, JAX's handler would swallow the signal even where nobody polls for it.

    Returns:
      A function of the signal's number; None where JAX has installed none.
    """
    handler = set_native_handler(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if handler in (0, 1):  # default and ignore
        return None
    native = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    return lambda _: native(signal.SIGTERM)
