"""A verb of the command line, declared as data: its name, its flags and the function that does it.

Neither this module nor the files of the verbs import JAX, so help and mistakes are answered at
once. What a verb does is a function of `xrec_jax.api`, imported when the verb runs.
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
      kind: of its values: "texts" may be given again, a "switch" is `--name` or `--noname`, and of
        the "config" every key can be overridden.
      name: without dashes.
      default: where it is not given.
      help: its line in the verb's help.
    """

    kind: Literal["config", "text", "texts", "integer", "number", "switch"]
    name: str
    default: Any
    help: str


def text(name: str, description: str, default: str = "") -> Flag:
    """A flag whose value is text."""
    return Flag("text", name, default, description)


def texts(name: str, description: str) -> Flag:
    """A flag that may be given again; its value is a list."""
    return Flag("texts", name, [], description)


def integer(name: str, default: int, description: str) -> Flag:
    """A flag whose value is a whole number."""
    return Flag("integer", name, default, description)


def number(name: str, default: float, description: str) -> Flag:
    """A flag whose value is a number."""
    return Flag("number", name, default, description)


def switch(name: str, description: str) -> Flag:
    """A flag that is off unless it is given."""
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
RUN_DIRECTORY = (WORKDIR, ALLOW_IMPORTS)  # of the verbs that open an existing run


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
      name: one word or two.
      summary: its line in `xrec --help`.
      flags: what it takes.
      run: does it with the values of the flags; returns the exit status.
      positional: the flag that also takes what stands without one, if any.
      needs_jax: whether JAX, and the other processes of the run, must be there before it runs.
    """

    name: str
    summary: str
    flags: tuple[Flag, ...]
    run: Callable[[FlagValues], int]
    positional: str = ""
    needs_jax: bool = True

    def define(self, arguments: Sequence[str]) -> Any:
        """The flags, before any is read.

        Args:
          arguments: of the verb: the config's flag looks for overrides there.
        """
        values = FlagValues()
        values.set_gnu_getopt(True)  # flags may stand behind files
        for flag in self.flags:
            if flag.kind == "config":
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
    """Raises a `UserError` for the first of these flags that is missing."""
    for name in names:
        if not values[name].value:
            raise UserError(f"--{name} is missing; see xrec VERB --help")
