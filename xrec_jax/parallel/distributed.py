"""Start of a run on several processes."""

from __future__ import annotations

import os

import jax

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
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    try:
        processes = processes or int(os.environ["XREC_PROCESSES"])
        process = process if process >= 0 else int(os.environ["XREC_PROCESS"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "XREC_COORDINATOR is set: XREC_PROCESSES (how many) and XREC_PROCESS (which, from 0) "
            "must be whole numbers too"
        ) from error
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0
