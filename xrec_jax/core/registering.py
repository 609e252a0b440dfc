"""Rules common to all registries."""

from __future__ import annotations

_LIBRARY = f"{__name__.partition('.')[0]}."


def replaces_library(known: object, new: object) -> bool:
    """True if another module would replace a registry entry of the library itself.

    Args:
      known: registered class or function.
      new: class or function to be registered under the same name.
    """
    before, after = (getattr(entry, "__module__", "") for entry in (known, new))
    return before.startswith(_LIBRARY) and before != after
