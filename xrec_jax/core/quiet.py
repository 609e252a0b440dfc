"""Standard error of native code, which prints before it fails."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error(*, unless: type[BaseException]) -> Iterator[None]:
    """Holds back what this process prints on standard error, and prints it at the end.

    Rust code prints a stack before its panic becomes an exception; where that exception ends in a
    message of its own, the stack is dropped.

    Args:
      unless: the exception that drops what was held back.
    """
    try:
        sys.stderr.flush()
        screen = os.dup(2)
    except (AttributeError, OSError, ValueError):  # there is no standard error
        yield
        return
    failed = False
    with tempfile.TemporaryFile() as held:
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
            held.seek(0)
            text = held.read()
            if text and not failed:
                with contextlib.suppress(OSError):
                    os.write(2, text)
