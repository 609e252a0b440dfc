"""A deliberate mistake of `experiments/mutations.py`, and the tests that must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake.

    Attributes:
      name: of it.
      file: that it is in, from the root of the checkout.
      old: text that stands there exactly once.
      new: what is put in its place.
      tests: pytest's names of the tests that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
