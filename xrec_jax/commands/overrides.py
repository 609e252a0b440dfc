"""Level 6: values of the command line that go into a config, where the flags' library cannot.

It reads `--config.a.b=V` by attributes, so a key that has the name of a method of a `ConfigDict`
(`items`, `keys`, `values`, `get`, `update`) is out of its reach; and it reads what is given for a
tuple as Python, which a path rarely is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.storage import files

_OVERRIDE = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)


class Override(NamedTuple):
    """A value for a key: `--config.a.b=V` is `Override("a.b", "V")`."""

    key: str
    text: str


def separate(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Takes out what the flags' library cannot set.

    Args:
      arguments: of a verb.

    Returns:
      The other arguments, and the overrides whose key holds the name of a method.

    Raises:
      UserError: if one has no value.
    """
    rest: list[str] = []
    found: list[Override] = []
    waiting = iter(arguments)
    for argument in waiting:
        match = _OVERRIDE.fullmatch(argument)
        if match is None or not any(hasattr(ConfigDict, part) for part in match[1].split(".")):
            rest.append(argument)
            continue
        text = match[2] if match[2] is not None else next(waiting, None)
        if text is None:
            raise UserError(f"{argument} has no value; write it as {argument}=VALUE")
        found.append(Override(match[1], text))
    return rest, found


def quoted(arguments: Sequence[str], config: Any) -> list[str]:
    """Arguments in which a path that is given for a tuple of paths reads as one.

    Args:
      arguments: of a verb.
      config: of its config file, before any override.
    """
    return [_quoted(argument, config) for argument in arguments]


def _quoted(argument: str, config: Any) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or not match[2] or not all(map(os.path.exists, files.joined(match[2]))):
        return argument
    holder: Any = config
    for part in match[1].split("."):
        if not isinstance(holder, ConfigDict) or part not in holder:
            return argument
        holder = holder[part]
    if not isinstance(holder, tuple) or not all(isinstance(entry, str) for entry in holder):
        return argument
    return f"--config.{match[1]}={(match[2],)!r}"


def check_keys(arguments: Sequence[str], config: Any) -> None:
    """Raises a `UserError` for an override of a key that the config has not.

    Args:
      arguments: of a verb.
      config: of its config file; None without one.
    """
    for argument in arguments if config is not None else ():
        match = _OVERRIDE.fullmatch(argument)
        if match is not None and "[" not in match[1]:  # that is an entry of a tuple
            _holder(config, match[1])


def _holder(config: ConfigDict, key: str) -> ConfigDict:
    """The group that holds a key.

    Raises:
      UserError: if there is no such key; names the nearest.
    """
    *groups, last = key.split(".")
    holder: Any = config
    for part in [*groups, last]:
        if not isinstance(holder, ConfigDict) or part not in holder:
            valid = list(holder) if isinstance(holder, ConfigDict) else []
            raise UserError(f"--config.{key}: no key {part!r}{did_you_mean(part, valid)}")
        group, holder = holder, holder[part]
    return group


def apply(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets values in a config, each read as the library reads those of other keys.

    Args:
      config: changed.
      overrides: see `separate`; of one key the last holds, but a tuple takes them all.

    Raises:
      UserError: names the key that there is not, or the value that does not fit.
    """
    for key in dict.fromkeys(override.key for override in overrides):
        holder = _holder(config, key)
        holder[key.split(".")[-1]] = _read(
            holder, key, [one.text for one in overrides if one.key == key]
        )


def _read(holder: ConfigDict, key: str, texts: Sequence[str]) -> Any:
    """A value of the type of the one that it replaces, read under a name that no method has."""
    last = key.split(".")[-1]
    value = holder[last]
    shadow = ConfigDict({"value": placeholder(holder.get_type(last)) if value is None else value})
    arguments = ["xrec", *(f"--config.value={text}" for text in texts)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", shadow, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        what = " ".join(str(error).replace("config.value", f"config.{key}").split())
        raise UserError(what) from error
    return shadow.value
