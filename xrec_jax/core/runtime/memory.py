"""Host memory: allocator settings, total and available bytes."""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
import sys

from xrec_jax.core.errors import UserError

try:
    import resource
except ImportError:  # outside Unix
    resource = None  # type: ignore[assignment]

_MEMINFO = pathlib.Path("/proc/meminfo")
_GROUPS = pathlib.Path("/sys/fs/cgroup")
# Limit, usage and statistics files of the control group, cgroup versions 2 and 1.
_CGROUPS = (
    tuple(_GROUPS / f"memory.{name}" for name in ("max", "current", "stat")),
    tuple(
        _GROUPS / "memory" / f"memory.{name}"
        for name in ("limit_in_bytes", "usage_in_bytes", "stat")
    ),
)
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


def available() -> int | None:
    """Bytes that this process can still allocate: least of machine, container and process limit.

    None if unknown, as outside Linux.
    """
    rooms = [_machine(), _container(), _own()]
    known = [room for room in rooms if room is not None]
    return min(known, default=None)


def total() -> int | None:
    """Bytes that this process could ever have: least of machine with swap, container and limit.

    None if unknown, as outside Linux.
    """
    sizes = _meminfo()
    known = [sizes["MemTotal"] + sizes.get("SwapTotal", 0)] if "MemTotal" in sizes else []
    for limit, *_ in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            known.append(int(limit.read_text()))
    if resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] > 0:
        known.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    return min(known, default=None)


def require(size: int, what: str) -> None:
    """Refuses an allocation that cannot fit, before it is made.

    Args:
      size: least number of bytes needed.
      what: subject of the message: the object and its source.

    Raises:
      UserError: fewer bytes are available.
    """
    room = available()
    if room is not None and size > room:
        raise UserError(
            f"{what} need at least {amount(size)} of memory, {amount(room)} are available"
        )


def exhausted(error: BaseException) -> UserError | None:
    """A one-line error for an out-of-memory failure of host or device; None for other errors."""
    text = " ".join(str(error).split())
    device = "RESOURCE_EXHAUSTED" in text and "ut of memory" in text
    if not device and not isinstance(error, MemoryError):
        return None
    return UserError(
        f"out of memory ({text[:160] or 'the host has no more'}); lower batch sizes or lengths, or "
        "use a machine with more"
    )


def amount(size: int) -> str:
    """Formats a number of bytes, such as "1.5 GiB"."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def _machine() -> int | None:
    return _meminfo().get("MemAvailable")


def _meminfo() -> dict[str, int]:
    """Fields of /proc/meminfo in bytes; empty if it cannot be read."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    except (OSError, IndexError, ValueError):
        return {}


def _container() -> int | None:
    """Bytes left by the control group; inactive file pages are reclaimable and count as free."""
    for limit, usage, stat in _CGROUPS:
        try:
            most, used = int(limit.read_text()), int(usage.read_text())
            pages = dict(line.split() for line in stat.read_text().splitlines())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        cached = int(pages.get("inactive_file", pages.get("total_inactive_file", 0)))
        return max(most - used + cached, 0)
    return None


def _own() -> int | None:
    if resource is None:
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return max(most - pages * resource.getpagesize(), 0)
