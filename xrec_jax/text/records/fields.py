"""Values of records that somebody else wrote: what must be there, and of which type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean


def value_of(record: Mapping[str, Any], key: str, where: object) -> Any:
    """A text or number that a record must hold.

    A null in such a key is refused; in a key that may be missing it means that it is missing.

    Args:
      record: a line of a file.
      key: of the value.
      where: names file and line.

    Raises:
      UserError: names the key that is missing or null, or holds something else.
    """
    if key not in record:
        raise UserError(f"{where}: no key {key!r}{did_you_mean(key, record)}")
    value = record[key]
    if value is None:
        raise UserError(f"{where}: {key} is null; fill it or delete the line")
    if isinstance(value, (dict, list, bool)):
        raise UserError(f"{where}: {key} must be text or a number, not {str(value)[:40]}")
    return value


def text_of(record: Mapping[str, Any], key: str, where: object) -> str:
    """The same as text."""
    return str(value_of(record, key, where))
