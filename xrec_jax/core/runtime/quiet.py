"""Captures the standard error of native code that prints before it fails."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

_ONE_AT_A_TIME = threading.RLock()  # two threads would hand each other the wrong stream back


@contextlib.contextmanager
def standard_error(*, unless: type[BaseException]) -> Iterator[None]:
    """Holds back the standard error of this process, and prints it at the end of the block.

    Rust code prints a stack before its panic becomes an exception; where that exception ends in a
    message of its own, the stack is dropped.

    Args:
      unless: exception type on which the text is dropped instead.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        # Descriptor 2 itself is redirected: native code does not go through `sys.stderr`.
        held = screen = None
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()
            held = stack.enter_context(tempfile.TemporaryFile())
            screen = os.dup(2)
        if held is None or screen is None:  # no standard error, or no place to keep it
            yield
        else:
            yield from _held_back(held, screen, unless)


def _held_back(held: IO[bytes], screen: int, unless: type[BaseException]) -> Iterator[None]:
    failed = False
    os.dup2(held.fileno(), 2)
    try:
        yield
    except unless:
        failed = True
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(screen, 2)
        os.close(screen)
        with contextlib.suppress(OSError):
            held.seek(0)
            if not failed and (text := held.read()):
                os.write(2, text)
