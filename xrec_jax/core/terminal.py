"""Text of people's files on a terminal: what would steer the terminal is shown, not obeyed."""

from __future__ import annotations

import re

# Control characters (but tab and line feed), the marks that turn the direction of what follows,
# and halves of surrogate pairs, which no stream can encode. Joiners stay: scripts need them.
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with every character that steers a terminal as an escape, such as `\x1b`."""
    return _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)
