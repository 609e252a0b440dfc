"""What to say when a disk does not take what is written."""

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
# Only a write ends in one of these.
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


class WriteError(UserError):
    """A write failed.

    Other threads or processes may wait for it for ever, so nobody should join them: the command
    line leaves at once.
    """


def write_error(
    path: epath.PathLike, error: BaseException, *, what: str = "", needed: int = 0, then: str = ""
) -> WriteError:
    """One line on a write that failed.

    Args:
      path: file or directory that was written.
      error: an `OSError`, or what a library made of one.
      what: is written; default: the path itself.
      needed: bytes that are to be written; 0 if unknown.
      then: what happens once the cause is gone.
    """
    code = error_code(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = os.strerror(code) if code else lines[0][:200]
    room = ""
    if code in _FULL:
        free = free_bytes(path)
        parts = [f"needs up to {in_words(needed)}"] if needed else []
        parts += [f"{in_words(free)} are free there"] if free is not None else []
        room = f" ({', '.join(parts)})" if parts else ""
        room += "; make room" if not then else f"; make room and {then}"
    elif then:
        room = f"; mend that and {then}"
    target = f"{what} to {path}" if what else f"{path}"
    return WriteError(f"cannot write {target}: {reason}{room}")


@contextlib.contextmanager
def writing(path: epath.PathLike, *, needed: int = 0) -> Iterator[None]:
    """Makes one line of whatever a block that writes raises, if a disk is to blame.

    Args:
      path: what it writes.
      needed: bytes that are to be written; 0 if unknown.

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
    """One line for an error of a disk that nobody caught; None for all others.

    Args:
      error: what ended the command.
      where: the directory that it worked in, where the error names no file.
    """
    code = error_code(error)
    path = getattr(error, "filename", None) or where
    if code in WRITING:
        return write_error(path, error, then="run the same command again")
    if code in _CODES and isinstance(error, OSError) and error.filename:
        return UserError(f"{error.filename}: {os.strerror(code)}")
    return None


def error_code(error: BaseException) -> int:
    """The system's number of an error, also where a library only passed on its text; 0: none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        text = str(seen)
        for code in _CODES:
            if os.strerror(code) in text:
                return code
        seen = seen.__cause__
    return 0


def free_bytes(path: epath.PathLike) -> int | None:
    """Bytes that are free for ordinary users where `path` lies; None where nobody knows."""
    if "://" in os.fspath(path):
        return None
    target = pathlib.Path(os.path.abspath(path))
    for folder in (target, *target.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def in_words(count: float) -> str:
    """A number of bytes as people write it, for example "1.5 GB"."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
