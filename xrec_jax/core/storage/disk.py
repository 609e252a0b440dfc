"""One-line errors for writes that fail: disk full, quota, read-only or missing permission."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from etils import epath

from xrec_jax.core.errors import UserError

_CODES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
)
# Codes that only a write can raise.
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


class WriteError(UserError):
    """A write failed.

    Other threads or processes may wait for it for ever, so the command line exits without joining
    them.
    """


def write_error(
    path: epath.PathLike, error: BaseException, *, what: str = "", needed: int = 0, then: str = ""
) -> WriteError:
    """Describes a failed write in one line.

    Args:
      path: file or directory that was written.
      error: an `OSError`, or a library's exception that quotes one.
      what: name of the object written; default: the path itself.
      needed: bytes to be written; 0 if unknown.
      then: next step of the user, for the message.
    """
    code = error_code(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = os.strerror(code) if code else lines[0][:200]
    room = ""
    if code in _FULL:
        free = free_bytes(path)
        details = [f"needs up to {in_words(needed)}"] if needed else []
        details += [f"{in_words(free)} are free there"] if free is not None else []
        room = f" ({', '.join(details)})" if details else ""
        room += "; make room" if not then else f"; make room and {then}"
    elif then:
        room = f"; mend that and {then}"
    target = f"{what} to {path}" if what else f"{path}"
    return WriteError(f"cannot write {target}: {reason}{room}")


@contextlib.contextmanager
def writing(path: epath.PathLike, *, needed: int = 0) -> Iterator[None]:
    """Turns errors of a disk that the block raises into a `WriteError`.

    Args:
      path: file or directory that the block writes.
      needed: bytes to be written; 0 if unknown.

    Raises:
      WriteError: names the path, the cause, and what is free.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise write_error(path, error, needed=needed) from error
    except Exception as error:  # of polars, tensorstore and others, who pass on the system's text
        if error_code(error) in WRITING:
            raise write_error(path, error, needed=needed) from error
        raise


def unforeseen(error: Exception, where: epath.PathLike) -> UserError | None:
    """A one-line error for an uncaught disk failure; None for all other errors.

    Args:
      error: exception that ended the command.
      where: directory that the command worked in, used if the error names no file.
    """
    code = error_code(error)
    path = getattr(error, "filename", None) or where
    if code in WRITING:
        return write_error(path, error, then="run the same command again")
    if code in _CODES and isinstance(error, OSError) and error.filename:
        return UserError(f"{error.filename}: {os.strerror(code)}")
    return None


def error_code(error: BaseException) -> int:
    """`errno` of an error, also if a library only passed on its text; 0 if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        text = str(seen)
        # Rust and C++ libraries raise exceptions of their own that quote the system's text.
        for code in _CODES:
            if os.strerror(code) in text:
                return code
        seen = seen.__cause__
    return 0


def free_bytes(path: epath.PathLike) -> int | None:
    """Bytes free for ordinary users on the file system of `path`; None if unknown."""
    if "://" in os.fspath(path):
        return None
    target = pathlib.Path(os.path.abspath(path))
    # The path itself may not exist yet; its nearest parent lies on the same disk.
    for folder in (target, *target.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def in_words(count: float) -> str:
    """Formats a number of bytes, such as "1.5 GB"."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
