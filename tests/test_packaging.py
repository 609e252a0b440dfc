"""What an installed wheel holds, without building one."""

import fnmatch
import runpy
import sys
import tomllib
import types

import pytest

from tests import tiny
from xrec_jax import cli
from xrec_jax.commands import configs

PACKAGE = tiny.CHECKOUT / "xrec_jax"


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((tiny.CHECKOUT / "pyproject.toml").read_text())


@pytest.fixture
def setup(monkeypatch):
    """What `setup.py` hands to setuptools, which a new environment need not have."""
    found = {}
    fake = types.ModuleType("setuptools")
    fake.setup = found.update
    fake.find_packages = lambda include: ["xrec_jax"]
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    runpy.run_path(str(tiny.CHECKOUT / "setup.py"))
    return found


def test_the_configs_are_a_package_of_the_wheel(setup):
    assert "xrec_jax.configs" in setup["packages"]
    assert setup["package_dir"] == {"xrec_jax.configs": "configs"}
    assert (tiny.CHECKOUT / "configs" / "quickstart.py").is_file()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_data_file_is_shipped(project):
    shipped = project["tool"]["setuptools"]["package-data"]
    files = [p for p in PACKAGE.rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    for path in files:
        package = ".".join(path.parent.relative_to(tiny.CHECKOUT).parts)
        assert any(fnmatch.fnmatch(path.name, p) for p in shipped.get(package, [])), path
    assert {"py.typed", "page.html", "sheet.js"} <= {path.name for path in files}


def test_the_version_is_read_without_an_import(project):
    """A build has none of the dependencies."""
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    module, _, name = attribute.rpartition(".")
    source = tiny.CHECKOUT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert f"\n{name} = " in source and "import" not in source.split('"""')[-1]


def test_an_installed_package_has_its_configs_inside(tmp_path, monkeypatch, capsys):
    package = tmp_path / "site-packages" / "xrec_jax"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "mine.py").write_text(
        '"""A config of my own.\n\nMore of it.\n"""\n\nfrom xrec_jax import defaults\n\n\n'
        "def get_config(arg=''):\n    return defaults.variant(defaults.base(), arg)\n"
    )
    (package.parent / "configs").mkdir()  # somebody else's
    monkeypatch.setattr(configs, "_PACKAGE", package)
    assert cli.main(["configs"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "mine  A config of my own."
    found = []
    monkeypatch.setattr("xrec_jax.api.run.run", lambda config, workdir: found.append(config))
    assert cli.main(["run", "--config=mine:tiny", "--workdir=w", "--config.name=mine"]) == 0
    assert found[0].name == "mine" and found[0].data.world.num_users == 80
    assert cli.main(["run", "--config=quickstart", "--workdir=w"]) == 2
    assert "valid: mine" in capsys.readouterr().err
