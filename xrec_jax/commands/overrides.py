"""Overrides of config keys on the command line that `config_flags` cannot apply itself.

`config_flags` reads `--config.a.b=V` through attributes, so it cannot reach a key named like a
method of `ConfigDict` (`items`, `keys`, `values`, `get`, `update`); and it parses the value of a
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
    """An override: `--config.a.b=V` is `Override("a.b", "V")`."""

    key: str
    text: str


def separate(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Separates the overrides that `config_flags` cannot apply from the other arguments.

    Args:
      arguments: of a verb.

    Returns:
      The other arguments, and the overrides whose key contains the name of a method.

    Raises:
      UserError: for an override without a value.
    """
    rest: list[str] = []
    separated: list[Override] = []
    remaining = iter(arguments)
    for argument in remaining:
        match = _OVERRIDE.fullmatch(argument)
        if match is None or not any(hasattr(ConfigDict, part) for part in match[1].split(".")):
            rest.append(argument)
            continue
        # As absl allows, the value may be the next argument.
        text = match[2] if match[2] is not None else next(remaining, None)
        if text is None:
            raise UserError(f"{argument} has no value; write it as {argument}=VALUE")
        separated.append(Override(match[1], text))
    return rest, separated


def quoted(arguments: Sequence[str], config: Any) -> list[str]:
    """Arguments with bare paths for tuples of paths quoted: `p` becomes `('p',)`.

    Args:
      arguments: of a verb.
      config: of its config file, before any override.
    """
    return [_quoted(argument, config) for argument in arguments]


def _quoted(argument: str, config: Any) -> str:
    """An argument, quoted if it overrides a tuple of texts by the path of an existing file."""
    match = _OVERRIDE.fullmatch(argument)
    if match is None or not match[2] or not all(map(os.path.exists, files.joined(match[2]))):
        return argument
    holder: Any = config
    # Unknown keys pass unchanged: `check_keys` reports them with the nearest one.
    for part in match[1].split("."):
        if not isinstance(holder, ConfigDict) or part not in holder:
            return argument
        holder = holder[part]
    if not isinstance(holder, tuple) or not all(isinstance(entry, str) for entry in holder):
        return argument
    return f"--config.{match[1]}={(match[2],)!r}"


def check_keys(arguments: Sequence[str], config: Any) -> None:
    """Checks that the config has every key that is overridden.

    Args:
      arguments: of a verb.
      config: of its config file; None without one.

    Raises:
      UserError: for an unknown key; names the nearest.
    """
    for argument in arguments if config is not None else ():
        match = _OVERRIDE.fullmatch(argument)
        if match is not None and "[" not in match[1]:  # `a[0]` is an entry of a tuple
            _holder(config, match[1])


def _holder(config: ConfigDict, key: str) -> ConfigDict:
    """The group of a config that contains a key.

    Raises:
      UserError: for an unknown key; names the nearest.
    """
    *groups, last = key.split(".")
    holder: Any = config
    for part in [*groups, last]:
        if not isinstance(holder, ConfigDict) or part not in holder:
            valid = list(holder) if isinstance(holder, ConfigDict) else []
            raise UserError(f"--config.{key}: no key {part!r}{did_you_mean(part, valid)}")
        # One step behind, as the last part is set in its group.
        group, holder = holder, holder[part]
    return group


def apply(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets values in a config, parsed as `config_flags` parses those of other keys.

    Args:
      config: changed in place.
      overrides: see `separate`; the last one of a key wins, but a tuple takes all of them.

    Raises:
      UserError: for an unknown key, or a value that does not fit its type.
    """
    for key in dict.fromkeys(override.key for override in overrides):
        holder = _holder(config, key)
        holder[key.split(".")[-1]] = _read(
            holder, key, [override.text for override in overrides if override.key == key]
        )


def _read(holder: ConfigDict, key: str, texts: Sequence[str]) -> Any:
    """Parses a value as the type of the one that it replaces."""
    last = key.split(".")[-1]
    value = holder[last]
    # `config_flags` parses it under a name that is no method, with the same type.
    shadow = ConfigDict({"value": placeholder(holder.get_type(last)) if value is None else value})
    arguments = ["xrec", *(f"--config.value={text}" for text in texts)]
    # Apart from absl's global flags, where the name may be taken.
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", shadow, flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        # The message must name the key that the user wrote.
        what = " ".join(str(error).replace("config.value", f"config.{key}").split())
        raise UserError(what) from error
    return shadow.value
