"""Typed views of config sections."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

_Section = TypeVar("_Section")


def read_section(kind: type[_Section], section: Any) -> _Section:
    """Builds a dataclass from the keys of a config section that its fields name.

    Args:
      kind: a dataclass.
      section: a `ConfigDict` or another object with these attributes; it may have further ones.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: getattr(section, field.name) for field in fields})
