"""Every value of a `config.json` must be of its key's type: when it is written, and when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.recommenders.content import content_defaults
from xrec_jax.training.defaults import training_defaults

_WAY_OUT = "put the file back as the run wrote it"
# The default is a name, and a group of keys may stand in its place.
_NAME_OR_GROUP = ("instruct.template",)


def check_types(
    stored: Mapping[str, Any],
    known: Mapping[str, Any],
    path: epath.PathLike,
    way_out: str = _WAY_OUT,
) -> None:
    """Refuses values that no run can read back.

    Args:
      stored: content of the file.
      known: the defaults, as JSON.
      path: of the file.
      way_out: what can be done about it.

    Raises:
      UserError: names the file, the key, the value and what it should be.
    """
    try:
        _check_all(stored, known)
    except _WrongValueError as error:
        raise UserError(f"{path}: {error}; {way_out}") from None


class _WrongValueError(Exception):
    """Says which key is wrong."""


def _check_all(stored: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    _check_group(stored, known, "")
    train, content = training_defaults().to_dict(), content_defaults().to_dict()
    for name, system in stored.get("recommend", {}).items():
        key = f"recommend.{name}"
        if not isinstance(system, dict):
            raise _wrong(key, system, "a group of keys")
        groups = {"model": "", "hparams": {}, "content": content, "train": train}
        _check_group(system, groups, f"{key}.")
        for needed in ("model", "hparams", "train"):
            if needed not in system:
                raise _WrongValueError(f"{key} has no {needed!r}")


def _check_group(stored: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for name in sorted(known.keys() & stored.keys()):
        key, value, default = f"{prefix}{name}", stored[name], known[name]
        if key in _NAME_OR_GROUP and isinstance(value, dict):
            continue
        wanted = _wanted(value, default)
        if wanted:
            raise _wrong(key, value, wanted)
        if isinstance(default, dict) and default:
            _check_group(value, default, f"{key}.")


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


def _wrong(key: str, value: Any, wanted: str) -> _WrongValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return _WrongValueError(f"{key}={shown} is not {wanted}")
