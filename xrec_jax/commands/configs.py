"""`xrec configs`: the configs shipped with the package."""

from __future__ import annotations

import ast
import pathlib

from absl.flags import FlagValues

from xrec_jax.commands.verb import Verb
from xrec_jax.core.runtime.terminal import show

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """Folder of the configs: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def path(name: str) -> pathlib.Path:
    """File of a shipped config."""
    return folder() / f"{name}.py"


def summary(name: str) -> str:
    """First line of a config's docstring, without executing the config."""
    docstring = ast.get_docstring(ast.parse(path(name).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _configs(values: FlagValues) -> int:
    # All verbs are called with their flags; this one has none.
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
