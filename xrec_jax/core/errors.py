"""`UserError`, raised for every mistake of the user, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input: a file, a column, a key, an id or a value.

    The command line prints its message as one line and exits with status 2. The message names the
    offending thing and the way out, so no traceback is needed.
    """


def did_you_mean(name: object, choices: Iterable[object], *, limit: int = 8) -> str:
    """Returns a clause that names the nearest valid choice, or lists the choices.

    Args:
      name: name written by the user.
      choices: every valid choice.
      limit: most choices listed if none is near.

    Returns:
      For example ``"; did you mean 'item_id'?"`` or ``"; valid: a, b, c"``.
    """
    names = [one_line(str(choice)) for choice in choices]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"; valid: {shown}"


def one_line(text: str, limit: int = 60) -> str:
    """Returns a text from a file on one line, without control characters, cut at `limit`."""
    shown = text if len(text) <= limit else text[:limit] + "..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
