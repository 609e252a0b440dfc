"""The `--config` flag: names of configs resolved to files, and errors in a config file."""

from __future__ import annotations

import ast
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Sequence

from ml_collections import ConfigDict

from xrec_jax.commands import configs
from xrec_jax.core.errors import UserError, did_you_mean

_NAME = re.compile(r"[A-Za-z]\w*")


def locate(arguments: Sequence[str]) -> list[str]:
    """Replaces the name of a config shipped with the package by the path of its file.

    Args:
      arguments: of a verb.

    Returns:
      The arguments; those that name a file already are unchanged.

    Raises:
      UserError: for an unknown name; names the nearest.
    """
    located = list(arguments)
    for place, argument in enumerate(located):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            located[place] = f"{flag}={_located(value)}"
        elif place + 1 < len(located):  # the value is the next argument
            located[place + 1] = _located(located[place + 1])
    return located


def _located(value: str) -> str:
    """`NAME:VARIANT` with the path of the file for the name; anything but a name is unchanged."""
    name, colon, variant = value.partition(":")
    if not _NAME.fullmatch(name) or pathlib.Path(name).is_file():
        return value
    if name not in configs.names():
        raise UserError(
            f"--config={name}: no config of that name and no such file; `xrec configs` lists the "
            f"names{did_you_mean(name, configs.names())}"
        )
    return f"{configs.path(name)}{colon}{variant}"


def load(arguments: Sequence[str]) -> ConfigDict | None:
    """Executes the config file on its own, so that an error in it is reported with its line.

    Args:
      arguments: of a verb, after `locate`.

    Returns:
      The config before any override; None without the flag.

    Raises:
      UserError: for an error in the file; names file and line.
    """
    value = next(
        (a.partition("=")[2] for a in arguments if a.startswith(("--config=", "-config="))), None
    )
    if value is None:
        return None
    name, colon, variant = value.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"--config={name}: no such file")
    module = types.ModuleType("xrec_config_check")
    # A config may look for files beside itself.
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path}: it defines no get_config(arg)")
        config = module.get_config(*([variant] if colon else []))
    except UserError as error:
        # Errors of the package do not all name the file.
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UserError(message) from None
    except Exception as error:
        raise UserError(_fault(path, error)) from error
    finally:
        del sys.modules[module.__name__]
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returns a {type(config).__name__}, not a ConfigDict")
    return config


def import_named(arguments: Sequence[str]) -> None:
    """Imports what `--config.imports` names: a stage among it brings keys that may be overridden.

    Args:
      arguments: of a verb.

    Raises:
      UserError: if a module cannot be imported.
    """
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag.lstrip("-") != "config.imports" or not value:
            continue
        from xrec_jax.run_config import import_extensions  # imports JAX

        try:
            names = ast.literal_eval(value)  # ('a', 'b')
        except (SyntaxError, ValueError):
            names = value  # a,b
        import_extensions({"imports": names})


def _fault(path: pathlib.Path, error: Exception) -> str:
    """Message for an exception in a config file, with the line of the file that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    where = f"{path}, line {line}" if line else str(path)
    what = error.msg if isinstance(error, SyntaxError) else plain_message(error)
    return f"{where}: {type(error).__name__}: {what}"


def plain_message(error: Exception) -> str:
    """An exception's message on one line, without the quotes and escapes of a KeyError's."""
    # The text of a KeyError is the `repr` of its key.
    message = str(error).replace("\\n", " ").replace("\\'", "'")
    return " ".join(message.split()).strip("'\"")
