"""`xrec configs`: the configs that come with the package, and where they lie."""

from __future__ import annotations

import ast
import pathlib

from absl.flags import FlagValues

from xrec_jax.commands.verb import Verb
from xrec_jax.core.runtime.terminal import show

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """Where the configs lie: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Names of the configs, sorted."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def path(name: str) -> pathlib.Path:
    """The file of a config."""
    return folder() / f"{name}.py"


def summary(name: str) -> str:
    """The first line of a config's docstring; the config is read, not run."""
    docstring = ast.get_docstring(ast.parse(path(name).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _configs(values: FlagValues) -> int:
    del values
    width = max(map(len, names()), default=0)
    for name in names():
        show(f"{name:<{width}}  {summary(name)}")
    show("\nxrec run --config=NAME --workdir=DIR; --config=NAME:tiny is a smoke test of seconds.")
    return 0


CONFIGS = Verb(
    name="configs",
    summary="list the configs that come with the package",
    flags=(),
    run=_configs,
    needs_jax=False,
)
