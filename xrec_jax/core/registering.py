"""Rules common to all registries."""

from __future__ import annotations

_LIBRARY = f"{__name__.partition('.')[0]}."


def is_library(entry: object) -> bool:
    """True if a registered class or function is one of the library's own."""
    return getattr(entry, "__module__", "").startswith(_LIBRARY)


def replaces_library(known: object, new: object) -> bool:
    """True if another module would replace a registry entry of the library itself.

    Args:
      known: registered class or function.
      new: class or function to be registered under the same name.
    """
    before, after = (getattr(entry, "__module__", "") for entry in (known, new))
    return is_library(known) and before != after
