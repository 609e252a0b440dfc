"""Lines on a terminal: text of people's files cannot steer it, and its reader may go away."""

from __future__ import annotations

import os
import re
import sys

# Control characters (but tab and line feed), the marks that turn the direction of what follows,
# and halves of surrogate pairs, which no stream can encode. Joiners stay: scripts need them.
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with every character that steers a terminal as an escape, such as `\x1b`."""
    return _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """`printable`, with line feeds and separators of lines as escapes too."""
    return re.sub("[\n\u2028\u2029]", lambda end: ascii(end[0])[1:-1], printable(text))


def show(text: str, *, error: bool = False) -> None:
    """Prints a line at once.

    Where nobody reads any more (`xrec run ... | head -1`), or what reads is a file on a full disk,
    the rest is said to nobody and the work goes on: what it saves is not lost with the reader.

    Args:
      text: the line.
      error: on the standard error instead of the standard output.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(printable(text), file=stream, flush=True)
    except OSError as problem:
        # What is still in the buffer goes there as well, so that the end of Python says nothing.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not error and not isinstance(problem, BrokenPipeError):
            reason = problem.strerror or str(problem)
            show(f"xrec: cannot write standard output ({reason}); going on without it", error=True)
