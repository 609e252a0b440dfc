"""A `config.json` that somebody may have edited: every value must be of its key's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.pipelines.defaults.training import training_defaults

_WAY_OUT = "put the file back as the run wrote it"


def check_types(stored: Mapping[str, Any], known: Mapping[str, Any], path: epath.Path) -> None:
    """Refuses values that no config of this library can have written.

    Args:
      stored: content of the file.
      known: the defaults, as JSON.
      path: of the file.

    Raises:
      UserError: names the file, the key, the value and what it should be.
    """
    _check_group(stored, known, path, "")
    train = training_defaults().to_dict()
    for name, system in stored.get("recommend", {}).items():
        key = f"recommend.{name}"
        if not isinstance(system, dict):
            raise _refused(path, key, system, "a group of keys")
        _check_group(system, {"model": "", "hparams": {}, "train": train}, path, f"{key}.")
        for needed in ("model", "hparams", "train"):
            if needed not in system:
                raise UserError(f"{path}: {key} has no {needed!r}; {_WAY_OUT}")


def _check_group(
    stored: Mapping[str, Any], known: Mapping[str, Any], path: epath.Path, prefix: str
) -> None:
    for name in known.keys() & stored.keys():
        value, default = stored[name], known[name]
        wanted = _wanted(value, default)
        if wanted:
            raise _refused(path, f"{prefix}{name}", value, wanted)
        if isinstance(default, dict) and default:
            _check_group(value, default, path, f"{prefix}{name}.")


def _wanted(value: Any, default: Any) -> str:
    """What a value should be, as it is not of its default's type; "" if it is."""
    if default is None:  # a number, or none
        return "" if value is None or _is_number(value) else "a number or null"
    if isinstance(default, dict):
        return "" if isinstance(value, dict) else "a group of keys"
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return "a list"
        wanted = {_wanted(entry, default[0]) for entry in value} - {""} if default else set()
        return f"a list, each entry {wanted.pop()}" if wanted else ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if _is_number(value) and isinstance(value, int) else "a whole number"
    if isinstance(default, float):
        return "" if value is None or _is_number(value) else "a number"  # null: no limit
    return "" if isinstance(value, str) else "a text"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refused(path: epath.Path, key: str, value: Any, wanted: str) -> UserError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return UserError(f"{path}: {key}={shown} is not {wanted}; {_WAY_OUT}")
