"""Checks and repairs of the process environment before a command starts."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import traceback

from xrec_jax.core.errors import UserError


def open_standard_streams() -> None:
    """Opens /dev/null for those of standard input, output and error that the caller closed.

    Otherwise the next files to be opened get these descriptors, and error messages of libraries
    are written into them.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))


def speak_utf8() -> None:
    """Restarts Python in its UTF-8 mode if the locale has another encoding.

    Names of files, the text in them and native libraries are UTF-8 whatever the locale says.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding().lower() == "utf-8":
        return
    environment = os.environ | {"PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def check_working_directory() -> None:
    """Refuses to start where there is no working directory.

    Raises:
      UserError: if it was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            "the working directory does not exist any more; cd to another one"
        ) from error


def import_jax() -> None:
    """Imports JAX, which reads its environment variables then.

    Raises:
      UserError: if one of them has a value that JAX refuses.
    """
    try:
        import jax  # noqa: F401
    except (TypeError, ValueError) as error:
        raise UserError(f"JAX cannot start: {_one_line(error)}") from error


def no_devices(error: Exception) -> UserError | None:
    """A one-line error if JAX failed because it has no device to run on; None for other errors."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or pathlib.PurePath(frames[-1].filename).name != "xla_bridge.py":
        return None
    platforms = os.environ.get("JAX_PLATFORMS", "")
    where = f" with JAX_PLATFORMS={platforms}" if platforms else ""
    reason = "there is none"  # JAX says so by an assertion
    if isinstance(error, RuntimeError):
        reason = _one_line(error).partition(" (set JAX_PLATFORMS")[0]
    return UserError(
        f"JAX finds no device{where}: {reason}; JAX_PLATFORMS=cpu runs on the processor"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def next_interrupt_ends() -> None:
    """Lets a further Ctrl-C end the process at once, whatever it still waits for."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
