"""Access to values of user-written records, with checks of presence and type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean


def value_of(record: Mapping[str, Any], key: str, where: object) -> str | int | float:
    """Returns a text or number that a record must hold.

    Null is refused here; for an optional key it means that the key is missing.

    Args:
      record: record of a file.
      key: key of the value.
      where: file and line, for the message.

    Raises:
      UserError: if the key is missing, null, or holds a value of another type.
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
    """As `value_of`, converted to text."""
    return str(value_of(record, key, where))
