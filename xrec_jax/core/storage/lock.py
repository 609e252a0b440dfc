"""A file that keeps a second process from writing where one writes already.

The lock names its holder: host, process id and start time. It appears whole or not at all, and
while the holder lives the operating system holds it as well (`flock`), which also tells apart two
containers that look alike. A lock whose holder is gone is taken over. In an object store, which has
neither, two processes that begin in the same second may both get it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import process
from xrec_jax.core.runtime.process import Process
from xrec_jax.core.storage.files import is_local, temporary_sibling

try:
    import fcntl
except ImportError:  # not a Unix system: the record has to do
    fcntl = None  # type: ignore[assignment]

_TRIES = 20


class Lock:
    """A lock file.

    Args:
      path: of the file.
      what: is locked, as errors name it.
      instead: what a user may do who is refused, such as "give another --workdir".
    """

    def __init__(self, path: epath.PathLike, *, what: str, instead: str):
        self._path = epath.Path(path)
        self._what, self._instead = what, instead
        self._handle: int | None = None
        self._mine = ""
        self._made: list[pathlib.Path] = []

    def check(self) -> None:
        """Raises a `UserError` if another process holds it; changes nothing."""
        if not is_local(self._path):
            if self._path.exists():
                self._refuse_holder(self._path.read_text())
            return
        handle = self._open()
        if handle is not None:
            with contextlib.closing(os.fdopen(handle, encoding="utf-8", errors="replace")) as file:
                free = _hold(handle)
                self._refuse_holder(file.read(), free=free)

    def acquire(self) -> str:
        """Takes the lock.

        Returns:
          A sentence about a holder that is gone, where there was one; else "".

        Raises:
          UserError: if another process holds it, or the file cannot be written.
        """
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._mine = json.dumps({**process.this()._asdict(), "since": since}) + "\n"
        if not is_local(self._path):
            note = self._refuse_holder(self._path.read_text()) if self._path.exists() else ""
            self._path.write_text(self._mine)
            return note
        try:
            return self._take()
        except OSError as error:
            self._unmake()
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error

    def release(self) -> None:
        """Gives it back, where it is still this one's; never fails."""
        with contextlib.suppress(OSError):
            if is_local(self._path):
                if self._handle is not None and self._is_current(self._handle):
                    os.unlink(self._path)
            elif self._mine and self._path.read_text() == self._mine:
                self._path.unlink()
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._mine = None, ""
        self._unmake()

    def _take(self) -> str:
        path = pathlib.Path(self._path)
        self._made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        note = ""
        for _ in range(_TRIES):
            if self._create(path):
                return note
            note = self._clear() or note
        raise UserError(f"{path}: other processes take and leave this lock all the time")

    def _create(self, path: pathlib.Path) -> bool:
        """Puts a whole lock file there, held already, unless there is one."""
        new = temporary_sibling(path)
        try:
            handle = self._filled(new)
            try:
                os.link(new, path)
            except FileExistsError:
                os.close(handle)
                return False
            except OSError:  # no links on this file system
                os.close(handle)
            else:
                self._handle = handle
                return True
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
        try:
            self._handle = self._filled(path)
        except FileExistsError:
            return False
        return True

    def _filled(self, path: pathlib.Path) -> int:
        """A new file that says who holds the lock, open and held."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _hold(handle)
            os.write(handle, self._mine.encode())
        except OSError:
            os.close(handle)
            path.unlink()
            raise
        return handle

    def _clear(self) -> str:
        """Removes a lock whose holder is gone; a sentence about it."""
        handle = self._open()
        if handle is None:
            return ""
        with contextlib.closing(os.fdopen(handle, encoding="utf-8", errors="replace")) as file:
            free = _hold(handle)
            if free is not False and not self._is_current(handle):
                return ""  # somebody else was faster
            note = self._refuse_holder(file.read(), free=free)
            os.unlink(self._path)
            return note

    def _refuse_holder(self, text: str, *, free: bool | None = None) -> str:
        """Refuses if the holder lives or may live.

        Args:
          text: of the lock.
          free: what the operating system knows: False that it is held, True that it is not.

        Returns:
          A sentence about a holder that is gone.
        """
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        holder = Process.of(record)
        if holder is None:
            raise UserError(
                f"{self._what} is locked, and {self._path} does not say by whom; if nothing runs "
                "there, delete that file"
            )
        since = record.get("since")
        who = f"{holder}, since {since}" if isinstance(since, str) else str(holder)
        me = process.this()
        if free is not False and holder.host != me.host:
            raise UserError(
                f"{self._what} is in use by {who}; wait for it or {self._instead}; if that process "
                f"is gone, delete {self._path}"
            )
        own = free is True and holder.pid == me.pid  # nobody holds it, so an earlier one of us
        if free is False or (holder.runs() and not own):
            raise UserError(f"{self._what} is in use by {who}; wait for it or {self._instead}")
        return f"{self._what}: taken over from {who}, which is gone"

    def _open(self) -> int | None:
        try:
            return os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror or error}") from error

    def _is_current(self, handle: int) -> bool:
        """Whether the path still leads to an open file."""
        try:
            now, held = os.stat(self._path), os.fstat(handle)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)

    def _unmake(self) -> None:
        """Removes folders that were made for the lock and hold nothing."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made = []


def _hold(handle: int) -> bool | None:
    """Holds an open file against other processes.

    Returns:
      False if one of them holds it; None where the file system knows no such thing.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
