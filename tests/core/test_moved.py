"""Former import paths give the modules of today, and say so."""

import importlib
import pathlib
import sys

import pytest

from xrec_jax.core import moved


@pytest.mark.parametrize("former", sorted(moved.MODULES))
def test_a_former_path_gives_the_module_of_today(former):
    place = moved.MODULES[former]
    with pytest.warns(DeprecationWarning, match=rf"xrec_jax\.{former} is xrec_jax\.{place} now"):
        sys.modules.pop(f"xrec_jax.{former}", None)
        module = importlib.import_module(f"xrec_jax.{former}")
    current = importlib.import_module(f"xrec_jax.{place}")
    if place in moved.NAMES:
        for name, today in moved.NAMES[place].items():
            assert getattr(module, name) is getattr(current, today)
    else:
        assert module is current


def test_other_names_are_not_found():
    for name in ("pipelines.nothing", "llm.nothing", "nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"xrec_jax.{name}")


def test_no_former_path_exists_today():
    """A module of that name would be found first, and the table would lie."""
    package = pathlib.Path(moved.__file__).parents[1]
    for former in moved.MODULES:
        assert not package.joinpath(*former.split(".")).with_suffix(".py").exists()
