"""Keyed draws for text: what is drawn depends on the key alone, not on what came before."""

from __future__ import annotations

import hashlib
import random


def keyed_hash(*key: object) -> int:
    """A 64-bit number from a key; the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def keyed_random(*key: object) -> random.Random:
    """A stream of random numbers of its own for a key."""
    return random.Random(keyed_hash(*key))
