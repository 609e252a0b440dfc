"""The host's memory allocator."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keeps freed buffers in the process instead of handing them back to the kernel.

    XLA's CPU backend frees a step's temporary buffers when the step ends. glibc returns large ones
    at once, and the next step faults every page in again, which can take three times as long as
    the arithmetic. One arena that is never trimmed keeps them. Must be called before threads start,
    that is, before JAX is first used; does nothing where the C library is not glibc.

    Returns:
      Whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # -1 becomes the largest size: with a finite threshold, steps of more than 2 GiB are trimmed.
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 26))
    results = [mallopt(name, value) for name, value in settings]
    return all(results)
