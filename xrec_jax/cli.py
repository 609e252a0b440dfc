"""Level 6: the command line, `xrec VERB`."""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from xrec_jax.commands import overrides
from xrec_jax.commands.verbs import VERBS
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.runtime import startup
from xrec_jax.core.runtime.memory import exhausted, keep_freed_memory
from xrec_jax.core.runtime.terminal import one_line, show
from xrec_jax.core.storage.disk import WriteError, unforeseen


def usage() -> str:
    """The text of `xrec --help`."""
    verbs = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: xrec VERB [flags]\n\n{verbs}\n\nxrec VERB --help lists a verb's flags."


def _split_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and what follows it.

    Raises:
      UserError: if there is no such verb.
    """
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return name, list(arguments[words:])
    first = arguments[0]
    family = [name for name in VERBS if name.startswith(f"{first} ")]
    if family:
        raise UserError(f"{first} needs a second word: {' or '.join(family)}")
    raise UserError(f"no verb {first!r}{did_you_mean(first, VERBS)}")


def _help(name: str, values: flags.FlagValues) -> str:
    lines = [f"usage: xrec {name} [flags]", "", f"{VERBS[name].summary}", ""]
    for flag_name in sorted(values):
        flag = values[flag_name]
        default = "" if flag.default in (None, "") else f" (default {flag.default})"
        lines.append(f"  --{flag_name}: {flag.help}{default}")
    return "\n".join(lines)


def _check_config_file(arguments: Sequence[str]) -> ConfigDict | None:
    """Runs the config file once by itself, so that a fault in it is told as one.

    Returns:
      Its config; None where none is given.

    Raises:
      UserError: names the file, the line and the fault.
    """
    given = next((a for a in arguments if a.startswith(("--config=", "-config="))), None)
    if given is None:
        return None
    name, _, argument = given.partition("=")[2].partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"--config={name}: no such file")
    module = types.ModuleType("xrec_config_check")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path}: it defines no get_config(arg)")
        config = module.get_config(*([argument] if ":" in given else []))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        what = error.msg if isinstance(error, SyntaxError) else _one_line(error)
        raise UserError(f"{where}: {type(error).__name__}: {what}") from error
    finally:
        del sys.modules[module.__name__]
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returns a {type(config).__name__}, not a ConfigDict")
    return config


def _one_line(error: Exception) -> str:
    """An exception's message on one line, without the quotes and escapes of a KeyError's."""
    text = str(error).replace("\\n", " ").replace("\\'", "'")
    return " ".join(text.split()).strip("'\"")


def _define(name: str, arguments: Sequence[str]) -> Any:
    """The flags of a verb, before any is read."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may stand behind files
    VERBS[name].define(values, arguments)
    return values


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """Parses flags; every mistake becomes a `UserError`."""
    arguments, by_hand = overrides.separate(arguments)
    values = _define(name, arguments)
    if "config" in values:
        config = _check_config_file(arguments)
        overrides.check_keys(arguments, config)
        arguments = overrides.quoted(arguments, config)
        values = _define(name, arguments)  # the library looks for overrides here
    elif by_hand:
        raise UserError(f"{name} has no flag --config.{by_hand[0].key}")
    try:
        rest = values([f"xrec {name}", *arguments])
        if "config" in values and values["config"].value is not None:
            # The library applies its overrides when the value is first read.
            overrides.apply(values.config, by_hand)
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, list(values))
        raise UserError(f"{name} has no flag --{error.flagname}{hint}") from error
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"--config: {_one_line(error)}") from error
    if len(rest) > 1 and "answers" in values:  # files as a shell's pattern gives them
        values["answers"].value = [*values.answers, *rest[1:]]
    elif len(rest) > 1:
        raise UserError(f"{name} does not take {rest[1]!r}; flags look like --name=value")
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: arguments after the program's name; default those of the process.

    Returns:
      0 when all went well, 2 on a user's mistake, 143 after SIGTERM or SIGHUP with everything saved
      and 130 after SIGINT; `audit` returns 1 when it found errors.
    """
    if argv is None:  # the process is this command's alone
        startup.open_standard_streams()
        startup.speak_utf8()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv), alone=argv is None)
    except KeyboardInterrupt:
        if argv is None:
            startup.next_interrupt_ends()
        show("xrec: interrupted; the same command goes on from what is saved", error=True)
        if argv is None and os.environ.get("XREC_COORDINATOR"):
            _leave(130)
        return 130


def _main(arguments: list[str], *, alone: bool) -> int:
    keep_freed_memory()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(usage())
        return 0 if arguments else 2
    shared = False  # with other processes, which may wait for this one for ever
    try:
        name, rest = _split_verb(arguments)
        if any(word in ("-h", "--help", "-help") for word in rest):
            show(_help(name, _define(name, rest)))
            return 0
        startup.check_working_directory()
        values = _parse(name, rest)
        startup.import_jax()
        from xrec_jax.core.runtime import peers
        from xrec_jax.core.runtime.distributed import initialize
        from xrec_jax.training.loop import Interrupted

        coordinator = os.environ.get("XREC_COORDINATOR", "")
        shared = bool(coordinator) and alone
        if shared:
            peers.NativeErrors(lambda text: peers.gone(text, coordinator))
        initialize(command=name)
        try:
            return VERBS[name].run(values)
        except Interrupted as stop:
            show(f"xrec: {stop}", error=True)
            return stop.status
        except UserError:
            raise
        except Exception as error:
            told = startup.no_devices(error) or exhausted(error)
            if told := told or unforeseen(error, _place(values)):
                raise told from error
            if shared:
                if peers.lost_peer(error):
                    peers.end_over(error, coordinator)
                traceback.print_exc()
                _leave(1)
            raise
    except UserError as error:
        show(one_line(f"xrec: error: {error}"), error=True)
        if alone and (shared or isinstance(error, WriteError)):
            _leave(2)
        return 2


def _place(values: flags.FlagValues) -> str:
    """Where a command works: its output or its run directory."""
    places = [values[name].value for name in ("output", "workdir") if name in values]
    first = next((place for place in places if place), ".")
    return first if isinstance(first, str) else first[0]


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads that still try to write, or for their peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
