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
    """Joins this process to a multi-process run; does nothing for a single process.

    Arguments not given come from the environment: `XREC_COORDINATOR` (host:port),
    `XREC_PROCESSES`, `XREC_PROCESS`. `XREC_COORDINATOR=auto` lets JAX find them (TPU pods, SLURM).
    `XREC_START_TIMEOUT` is how many seconds to wait for the others.

    Args:
      coordinator: host:port of process 0.
      processes: how many there are.
      process: which one this is.
      command: what this process is to do, compared with the others'.

    Raises:
      UserError: if only some of the three are given, or make no sense, or a process does not come.
    """
    coordinator = coordinator or os.environ.get("XREC_COORDINATOR", "")
    if not coordinator:
        half_set = [name for name in ("XREC_PROCESSES", "XREC_PROCESS") if name in os.environ]
        if half_set:
            raise UserError(f"{' and '.join(half_set)} set without XREC_COORDINATOR (host:port)")
        return
    timeout = _timeout(os.environ.get("XREC_START_TIMEOUT", "60"))
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
    rendezvous.gather(
        coordinator, processes=processes, process=process, timeout=timeout, command=command
    )
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
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here; returns at once where there is only one.

    Args:
      name: the same on all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def sigterm() -> contextlib.AbstractContextManager[Stop]:
    """Lets SIGTERM, SIGINT and SIGHUP ask for an end, for the block; see `core.stopping.listening`.

    On several processes JAX hears of it too: through it they agree on the step to stop at.
    """
    return listening(_jax_handler() if jax.process_count() > 1 else None)


@functools.cache
def _jax_handler() -> Callable[[int], object] | None:
    """What JAX does at SIGTERM, taken from the C library once; SIGTERM ends the process after it.

    JAX's own handler would swallow the signal also where nobody looks for it.

    Returns:
      A function of the signal's number; None where JAX has installed none.
    """
    handler = set_native_handler(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if handler in (0, 1):  # default and ignore
        return None
    native = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    return lambda _: native(signal.SIGTERM)
