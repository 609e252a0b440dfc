"""The host's memory allocator."""

from __future__ import annotations

import ctypes
import sys

import jax

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of glibc's malloc.h
_HUGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps freed buffers in the process instead of handing them back to the kernel.

    XLA's CPU backend frees a step's temporary buffers when the step ends. Beyond 32 MiB, glibc
    returns such blocks at once and the next step faults every page in again, which can take as
    long as the arithmetic. Only with glibc and where the default backend is the CPU.

    Returns:
      Whether anything was changed.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(name, value)
        for name, value in (
            (_MMAP_THRESHOLD, _HUGE), (_TRIM_THRESHOLD, _HUGE), (_TOP_PAD, 1 << 26),
        )
    )  # fmt: skip
