"""Access to the data section of a config: defaults for missing keys, errors for unknown ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean


def option(config: object, key: str, default: Any) -> Any:
    """Returns `config[key]`, or `default` if the key is absent or None.

    Args:
      config: a ConfigDict, a mapping, an object with attributes, or None.
      key: name of the entry.
      default: value of an absent entry.
    """
    if config is None:
        return default
    get = getattr(config, "get", None)
    value = get(key) if callable(get) else getattr(config, key, None)
    return default if value is None else value


def choice(config: object, key: str, default: str, choices: Iterable[str]) -> str:
    """Returns the entry `key`, which must be one of `choices`.

    Raises:
      UserError: if the value is another one.
    """
    value = option(config, key, default)
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value!r} is unknown{did_you_mean(value, choices)}")
    return value


def section(config: object, key: str, keys: Iterable[str]) -> Any:
    """Returns the sub-config `key`, whose own keys must be among `keys`.

    Raises:
      UserError: if the sub-config is not a mapping or has an unknown key.
    """
    value = option(config, key, {})
    keys = tuple(keys)
    if not isinstance(value, Mapping) and not callable(getattr(value, "keys", None)):
        raise UserError(f"{key}={value!r} must be a mapping with keys {', '.join(keys)}")
    for name in dict(value):
        if name not in keys:
            raise UserError(f"{key}.{name} is unknown{did_you_mean(name, keys)}")
    return value


def number(config: object, key: str, default: float, *, integer: bool = False) -> Any:
    """Returns the entry `key`, which must be a number, or an integer if `integer` is set.

    Raises:
      UserError: if the value is of another type or NaN.
    """
    value = option(config, key, default)
    allowed: tuple[type, ...] = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or value != value:
        raise UserError(f"{key}={value!r} must be {'an integer' if integer else 'a number'}")
    return value
