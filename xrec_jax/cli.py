"""Entry point of the command line, `xrec VERB`: parses flags, runs the verb, reports errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags

from xrec_jax.commands import FORMER_NAMES, VERBS, config_file, overrides
from xrec_jax.commands.config_file import plain_message
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.runtime import startup
from xrec_jax.core.runtime.memory import exhausted, keep_freed_memory
from xrec_jax.core.runtime.terminal import one_line, show
from xrec_jax.core.storage.disk import WriteError, unforeseen
from xrec_jax.core.version import __version__


def usage() -> str:
    """Text of `xrec --help`."""
    verbs = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items())
    more = "xrec VERB --help lists a verb's flags; xrec --version says which version this is."
    return f"usage: xrec VERB [flags]\n\n{verbs}\n\n{more}"


def _split_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Separates the verb, of one word or two, from its arguments.

    Args:
      arguments: of the command line, at least one.

    Returns:
      The name of the verb, and the arguments after it.

    Raises:
      UserError: for an unknown verb, or the first word only of one that has two.
    """
    for words in (2, 1):
        name = " ".join(arguments[:words])
        name = FORMER_NAMES.get(name, name)
        if name in VERBS:
            return name, list(arguments[words:])
    first = arguments[0]
    family = [name for name in VERBS if name.startswith(f"{first} ")]
    if family:
        raise UserError(f"{first} needs a second word: {' or '.join(family)}")
    raise UserError(f"no verb {first!r}{did_you_mean(first, VERBS)}")


def _help(name: str, values: flags.FlagValues) -> str:
    """Text of `xrec VERB --help`."""
    lines = [f"usage: xrec {name} [flags]", "", f"{VERBS[name].summary}", ""]
    for flag_name in sorted(values):
        flag = values[flag_name]
        default = "" if flag.default in (None, "") else f" (default {flag.default})"
        lines.append(f"  --{flag_name}: {flag.help}{default}")
    return "\n".join(lines)


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """Parses the flags of a verb.

    Args:
      name: of the verb.
      arguments: after it.

    Returns:
      The `absl.flags.FlagValues`, with the overrides of the config applied.

    Raises:
      UserError: for every mistake, whichever library finds it.
    """
    verb = VERBS[name]
    arguments, by_hand = overrides.separate(arguments)
    if verb.takes_config:
        # The file is executed once on its own first, so that an error in it is reported with its
        # line, and unknown or ambiguous overrides before absl sees them.
        arguments = config_file.locate(arguments)
        config_file.import_named(arguments)
        config = config_file.load(arguments)
        overrides.check_keys(arguments, config)
        arguments = overrides.quoted(arguments, config)
    elif by_hand:
        raise UserError(f"{name} has no flag --config.{by_hand[0].key}")
    values = verb.define(arguments)
    try:
        rest = values([f"xrec {name}", *arguments])
        if verb.takes_config and values["config"].value is not None:
            # The library applies its overrides when the value is first read.
            overrides.apply(values.config, by_hand)
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, list(values))
        raise UserError(f"{name} has no flag --{error.flagname}{hint}") from error
    except flags.Error as error:
        raise UserError(plain_message(error)) from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"--config: {plain_message(error)}") from error
    # `rest` is the program's name and what absl took for no flag.
    if len(rest) > 1 and verb.positional:
        flag = values[verb.positional]
        flag.value = [*flag.value, *rest[1:]]
    elif len(rest) > 1:
        raise UserError(f"{name} does not take {rest[1]!r}; flags look like --name=value")
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: arguments after the program's name; default those of the process.

    Returns:
      Exit status: 0 for success, 2 for a user's mistake, 143 after SIGTERM or SIGHUP with
      everything saved, 130 after SIGINT; 1 where `audit` finds errors.
    """
    if argv is None:  # the command owns the process: it may mend streams, re-execute and exit
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
    """As `main`.

    Args:
      arguments: after the program's name.
      alone: whether the command owns the process.
    """
    keep_freed_memory()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        show(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        show(f"xrec {__version__}")
        return 0
    shared = False  # whether other processes of the run may be waiting for this one
    try:
        name, rest = _split_verb(arguments)
        if any(word in ("-h", "--help", "-help") for word in rest):
            show(_help(name, VERBS[name].define(rest)))
            return 0
        startup.check_working_directory()
        values = _parse(name, rest)
        if not VERBS[name].needs_jax:
            return VERBS[name].run(values)
        # Only now JAX: help, mistakes in flags and `xrec configs` are answered without it.
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
            # Failures of the machine, not of the code, are reported as a user's mistake is.
            reported = startup.no_devices(error) or exhausted(error)
            if reported := reported or unforeseen(error, _output_path(values)):
                raise reported from error
            if shared:  # end this process at once: its peers notice, instead of waiting for it
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


def _output_path(values: flags.FlagValues) -> str:
    """Where the verb writes: its output or its run directory; "." where it names neither."""
    paths = [values[name].value for name in ("output", "workdir") if name in values]
    first = next((path for path in paths if path), ".")
    return first if isinstance(first, str) else first[0]


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads that still write, or for other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
