"""What registries have in common."""

from __future__ import annotations

_LIBRARY = f"{__name__.partition('.')[0]}."


def replaces_library(known: object, new: object) -> bool:
    """Whether an entry of a registry is the library's own, and another module would replace it.

    Args:
      known: class or function that is registered.
      new: the one to be registered under the same name.
    """
    before, after = (getattr(entry, "__module__", "") for entry in (known, new))
    return before.startswith(_LIBRARY) and before != after
