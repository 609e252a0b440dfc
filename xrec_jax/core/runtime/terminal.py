"""Terminal output: control characters are escaped, and a closed output is tolerated."""

from __future__ import annotations

import os
import re
import sys

# Control characters (but tab and line feed), the marks that turn the direction of what follows,
# and halves of surrogate pairs, which no stream can encode. Joiners stay: scripts need them.
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escapes the characters of `text` that would control a terminal, such as `\x1b`."""
    return _STEERS.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """As `printable`, with line feeds and line separators escaped too."""
    return re.sub("[\n\u2028\u2029]", lambda end: ascii(end[0])[1:-1], printable(text))


def show(text: str, *, error: bool = False) -> None:
    """Prints a line at once.

    If the reader is gone (`xrec run ... | head -1`) or the output is a file on a full disk, later
    lines are discarded and the work continues, so that its results are not lost.

    Args:
      text: the line.
      error: print on standard error instead of standard output.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(printable(text), file=stream, flush=True)
    except OSError as problem:
        # The unflushed buffer goes there as well, so that Python does not complain at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not error and not isinstance(problem, BrokenPipeError):
            reason = problem.strerror or str(problem)
            show(f"xrec: cannot write standard output ({reason}); going on without it", error=True)
