"""Start of a run on several processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from xrec_jax.core.errors import UserError


def initialize(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins this process to a multi-process run; does nothing for a single process.

    Arguments not given come from the environment: `XREC_COORDINATOR` (host:port),
    `XREC_PROCESSES`, `XREC_PROCESS`. `XREC_COORDINATOR=auto` lets JAX find them (TPU pods, SLURM).

    Raises:
      UserError: if only some of the three are given.
    """
    coordinator = coordinator or os.environ.get("XREC_COORDINATOR", "")
    if not coordinator:
        half_set = [name for name in ("XREC_PROCESSES", "XREC_PROCESS") if name in os.environ]
        if half_set:
            raise UserError(f"{' and '.join(half_set)} set without XREC_COORDINATOR (host:port)")
        return
    if coordinator == "auto":
        _start()
        return
    try:
        processes = processes or int(os.environ["XREC_PROCESSES"])
        process = process if process >= 0 else int(os.environ["XREC_PROCESS"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "XREC_COORDINATOR is set: XREC_PROCESSES (how many) and XREC_PROCESS (which, from 0) "
            "must be whole numbers too"
        ) from error
    _start(coordinator_address=coordinator, num_processes=processes, process_id=process)


def _start(**settings: Any) -> None:
    try:
        jax.distributed.initialize(**settings)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot join the other processes: {reason}") from error


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits until every process has come here; returns at once where there is only one.

    Args:
      name: the same on all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the earlier handler comes back afterwards.

    On several processes JAX's own handler stays: through it they agree on the step to stop at.
    """
    event = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
