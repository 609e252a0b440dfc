"""Code that a run directory names: who runs it, and who is asked first."""

import json
import shutil

import pytest

import xrec_jax
from tests import runs, tiny
from tests.runs import finished  # noqa: F401 (a fixture)
from xrec_jax import cli
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.run_config import import_extensions, read_config


@pytest.fixture
def stranger(finished, tmp_path, monkeypatch):  # noqa: F811
    """A run whose config names a module, and a function that says whether that was imported."""
    workdir, ran = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(finished, workdir)
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"imports": ["stranger_code"]}))
    (workdir / "done" / "config.json").unlink()  # a stranger's own run was started so
    (tmp_path / "stranger_code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield workdir, ran.exists
    cli.sys.modules.pop("stranger_code", None)


def test_verbs_ask_before_they_run_code_of_a_run_directory(stranger, tmp_path, capsys):
    workdir, ran = stranger
    before, output = runs.contents(tmp_path), f"--output={tmp_path}/o.jsonl"
    for line in (
        ["evaluate"],
        ["recommend", output],
        ["explain", output],
        ["audit"],
        ["compare", f"--workdir={workdir.parent}"],
    ):
        assert cli.main([line[0], f"--workdir={workdir}", *line[1:]]) == 2, line
        (said,) = capsys.readouterr().err.splitlines()
        assert "config.json: imports names code to run: stranger_code;" in said, line
        assert "--allow_imports" in said
    assert not ran() and runs.contents(tmp_path) == before


def test_with_the_flag_they_run_it(stranger, tmp_path):
    workdir, ran = stranger
    output = tmp_path / "o.jsonl"
    line = ["recommend", f"--workdir={workdir}", f"--output={output}", "--users=u00001"]
    assert cli.main([*line, "--allow_imports"]) == 0
    assert ran() and output.exists()


def test_restore_asks_too(stranger):
    workdir, ran = stranger
    with pytest.raises(UserError, match=r"stranger_code; .* allow_imports=True"):
        xrec_jax.restore(workdir)
    assert not ran()
    assert "popularity" in xrec_jax.restore(workdir, allow_imports=True).systems
    assert ran()
    xrec_jax.restore(workdir)  # what is imported already is not asked for again


def test_what_needs_no_extension_goes_without(stranger, tmp_path, capsys):
    """The report, results of raters, the base of an export."""
    workdir, ran = stranger
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert (workdir / "report.html").exists()
    capsys.readouterr()
    assert cli.main(["export-peft", f"--workdir={workdir}", f"--output={tmp_path}/a"]) == 2
    assert "no adapter yet" in capsys.readouterr().err
    assert not ran()


def test_a_run_imports_what_its_own_config_names(stranger, tmp_path):
    _, ran = stranger
    config = tiny.config("popularity")
    config.imports = ("stranger_code",)
    run.run(config, tmp_path / "other")
    assert ran()
    assert read_config(RunDir(tmp_path / "other")).imports == ("stranger_code",)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise KeyError('no such\\nkey')", r"'bad_code' fails when imported \(KeyError: .*\)"),
        ("import sys; sys.exit(3)", r"'bad_code' fails when imported \(SystemExit: 3\)"),
        ("import nowhere_at_all", r"cannot import 'bad_code' \(.*nowhere_at_all.*PYTHONPATH"),
    ],
)
def test_an_extension_that_fails_is_one_line(code, said, tmp_path, monkeypatch):
    (tmp_path / "bad_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        import_extensions({"imports": ("bad_code",)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("",), (".relative",), (3,), {"a": 1}, ("a b",)])
def test_imports_must_be_names(names):
    with pytest.raises(UserError, match=r"config.imports=.* must be names of modules"):
        import_extensions({"imports": names})
