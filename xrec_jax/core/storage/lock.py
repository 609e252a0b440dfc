"""A lock file that keeps a second process from writing to the same place.

The lock names its holder: host, process id and start time. It is created atomically, and while the
holder lives the operating system holds it as well (`flock`), which also distinguishes containers
with equal names and ids. A lock whose holder is gone is taken over. An object store has neither, so
two processes that begin in the same second may both get it.
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
      path: path of the lock file.
      what: name of the locked object, for messages.
      instead: advice to a refused user, such as "give another --workdir".
    """

    def __init__(self, path: epath.PathLike, *, what: str, instead: str):
        self._path = epath.Path(path)
        self._what, self._instead = what, instead
        self._handle: int | None = None
        self._mine = ""
        self._made: list[pathlib.Path] = []

    def check(self) -> None:
        """Raises a `UserError` if another process holds the lock; changes nothing."""
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
          A sentence about the holder that is gone, if one was replaced; else "".

        Raises:
          UserError: if another process holds the lock, or the file cannot be written.
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
        """Releases the lock if this object still holds it; never fails."""
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
            # Create, or else look at the file that is there; between the two steps another process
            # may come or go, hence the loop.
            if self._create(path):
                return note
            note = self._clear() or note
        raise UserError(f"{path}: other processes take and leave this lock all the time")

    def _create(self, path: pathlib.Path) -> bool:
        """Creates the complete lock file, already held, unless there is one."""
        new = temporary_sibling(path)
        try:
            handle = self._filled(new)
            try:
                # A hard link makes the filled and held file appear in one step, and fails if there
                # is one.
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
        """Creates a file that names the holder; returns its descriptor, held."""
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
        """Removes a lock whose holder is gone; returns a sentence about it."""
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
        """Raises if the holder is alive or may be.

        Args:
          text: content of the lock file.
          free: state by the operating system: False if it is held, True if not, None if unknown.

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
        # Processes of another host cannot be looked up here.
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
        """True if the path still leads to the open file."""
        try:
            now, held = os.stat(self._path), os.fstat(handle)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)

    def _unmake(self) -> None:
        """Removes folders that were created for the lock and are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made = []


def _hold(handle: int) -> bool | None:
    """Locks an open file against other processes.

    Returns:
      False if another process holds it; None if the file system has no locks.
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
