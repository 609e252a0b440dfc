"""Declaration of a verb of the command line: its name, its flags and its function.

Neither this module nor the files of the verbs import JAX, so `--help` and errors in flags answer
at once. Each verb calls a function of `xrec_jax.api`, which is imported when the verb runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from absl import flags as absl_flags
from absl.flags import FlagValues
from ml_collections import config_flags

from xrec_jax.core.errors import UserError


class Flag(NamedTuple):
    """A flag of a verb.

    Attributes:
      kind: type of its value. "texts" may be repeated; a "switch" is `--name` or `--noname`; every
        key of a "config" can be overridden.
      name: without dashes.
      default: value without the flag.
      help: its line in `xrec VERB --help`.
    """

    kind: Literal["config", "text", "texts", "integer", "number", "switch"]
    name: str
    default: Any
    help: str


def text(name: str, description: str, default: str = "") -> Flag:
    """A flag with a text."""
    return Flag("text", name, default, description)


def texts(name: str, description: str) -> Flag:
    """A flag that may be repeated; its value is the list of texts."""
    return Flag("texts", name, [], description)


def integer(name: str, default: int, description: str) -> Flag:
    """A flag with a whole number."""
    return Flag("integer", name, default, description)


def number(name: str, default: float, description: str) -> Flag:
    """A flag with a floating-point number."""
    return Flag("number", name, default, description)


def switch(name: str, description: str) -> Flag:
    """A flag without a value, off by default."""
    return Flag("switch", name, False, description)


CONFIG = Flag(
    "config",
    "config",
    None,
    "a name that `xrec configs` lists, or a file; NAME:tiny is a smoke test; override as "
    "--config.a.b=value",
)
WORKDIR = text("workdir", "the run directory, local or gs://")
ALLOW_IMPORTS = switch(
    "allow_imports",
    "import the modules that the run's config.json names: code of whoever made the run",
)
RUN_DIRECTORY = (WORKDIR, ALLOW_IMPORTS)  # for verbs that open an existing run


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
      name: one word or two.
      summary: its line in `xrec --help`.
      flags: in the order of the declaration; the help sorts them.
      run: called with the parsed flags; returns the exit status.
      positional: name of the flag that collects positional arguments; "" where there are none.
      needs_jax: whether JAX is imported, and initialised across processes, before `run`.
    """

    name: str
    summary: str
    flags: tuple[Flag, ...]
    run: Callable[[FlagValues], int]
    positional: str = ""
    needs_jax: bool = True

    def define(self, arguments: Sequence[str]) -> Any:
        """Unparsed `absl.flags.FlagValues` with the flags of the verb.

        Args:
          arguments: of the verb, in which the config's flag looks for overrides.
        """
        # Not absl's global flags, where equal names of other verbs would collide.
        values = FlagValues()
        values.set_gnu_getopt(True)  # flags may stand behind files
        for flag in self.flags:
            if flag.kind == "config":
                # It defines a flag for every override that it sees in these arguments.
                config_flags.DEFINE_config_file(
                    flag.name,
                    flag.default,
                    flag.help,
                    flag_values=values,
                    sys_argv=["xrec", *arguments],
                )
            else:
                define = _DEFINE[flag.kind]
                define(flag.name, flag.default, flag.help, flag_values=values)
        return values

    @property
    def takes_config(self) -> bool:
        """Whether it has the flag `--config`."""
        return CONFIG in self.flags


_DEFINE: dict[str, Callable[..., Any]] = {
    "text": absl_flags.DEFINE_string,
    "texts": absl_flags.DEFINE_multi_string,
    "integer": absl_flags.DEFINE_integer,
    "number": absl_flags.DEFINE_float,
    "switch": absl_flags.DEFINE_boolean,
}


def required(values: FlagValues, *names: str) -> None:
    """Raises a `UserError` if one of the named flags has no value."""
    for name in names:
        # An empty text or list is missing as well.
        if not values[name].value:
            raise UserError(f"--{name} is missing; see xrec VERB --help")
