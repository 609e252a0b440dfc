"""A stage of one's own: one file, named in `config.imports`, that no list of the library knows."""

import json
import shutil
import sys

import pytest

from tests import runs, tiny
from xrec_jax import cli, defaults, stages
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.run_config import read_config
from xrec_jax.stages import base

# All of it: defaults, `:tiny`, a path, what is refused, what is done, left, measured and shown.
OWN_STAGE = '''
"""The `lengths` stage: how long the users' histories are, beside a threshold from a file."""

import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import Left
from xrec_jax.core.storage import files
from xrec_jax.evaluation.statistics.intervals import exact
from xrec_jax.report.run_files import Section
from xrec_jax.stages import Context, Stage, register

NAME = "lengths"


def section():
    return ConfigDict(dict(path="", least=1, resamples=1000))


def shrink(config):
    config.lengths.resamples = 10


def check(ctx: Context):
    if ctx.config.lengths.least < 1:
        raise UserError(f"lengths.least={ctx.config.lengths.least} must be at least 1")


def run(ctx: Context, writer):
    if (ctx.rundir.path / NAME / "lengths.json").exists():
        return
    counts = np.bincount(ctx.data.split.train.user, minlength=ctx.data.dataset.num_users)
    files.write_json(ctx.rundir.path / NAME / "lengths.json", counts.tolist())
    writer.write(NAME, 1, {"train/users": len(counts)})
    evaluate(ctx)


def left(ctx: Context):
    return Left([ctx.rundir.path / NAME])


def evaluate(ctx: Context):
    counts = np.array(files.read_json(ctx.rundir.path / NAME / "lengths.json"))
    shares = {"test/long": exact(float(np.mean(counts >= ctx.config.lengths.least)), len(counts))}
    ctx.rundir.write_evaluation(NAME, {"histories": shares})


def report_section(material):
    if not (shares := material.stage(NAME)):
        return None
    return Section(NAME, "Lengths", "How many are long.", shares["histories"]["test/long"]["value"])


register(
    Stage(
        name=NAME,
        section=section,
        shrink=shrink,
        check=check,
        run=run,
        left=left,
        evaluate=evaluate,
        paths=("path",),
        report_section=report_section,
    )
)
'''
CONFIG = """
import own_stage

from tests import tiny
from xrec_jax import defaults


def get_config(arg=""):
    config = tiny.config("popularity")
    config.imports = ("own_stage",)
    config.stages = ("recommend", "lengths", "report")
    config.lengths.path = "threshold.txt"
    return defaults.variant(config, arg)
"""


def forget():
    """As a process that never imported it."""
    sys.modules.pop("own_stage", None)
    base._REGISTRY.pop("lengths", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the stage and a config that names it."""
    (tmp_path / "own_stage.py").write_text(OWN_STAGE)
    (tmp_path / "own_config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def config(**changed):
    """A config that was made before anybody imported the stage."""
    made = tiny.config("popularity")
    made.imports = ("own_stage",)
    made.stages = ("recommend", "lengths")
    if changed:
        made.lengths = changed
    return made


def evaluation(workdir):
    return json.loads((workdir / "evaluation.json").read_text())


def test_it_runs_resumes_and_is_evaluated_by_the_command_line(folder, capsys):
    line = ["--config=own_config.py", f"--workdir={folder}/w"]
    assert cli.main(["run", *line, "--config.lengths.least=9"]) == 0
    found = evaluation(folder / "w")
    assert found["lengths"]["histories"]["test/long"]["count"] == 75
    assert "How many are long." in (folder / "w" / "report.html").read_text()
    # The section is kept as those of the library: resolved, its paths absolute.
    kept = json.loads((folder / "w" / "config.json").read_text())["lengths"]
    assert kept == {"path": f"{folder}/threshold.txt", "least": 9, "resamples": 1000}
    assert [one["stage"] for one in runs.metrics(folder / "w")] == ["lengths"]

    # What is done is skipped, wherever its file lies now; another value is another run.
    before = runs.contents(folder / "w" / "lengths")
    moved = ["--config.lengths.least=9", "--config.lengths.path=moved.txt"]
    assert cli.main(["run", *line, *moved]) == 0
    assert runs.contents(folder / "w" / "lengths") == before
    assert len(runs.metrics(folder / "w")) == 1
    assert cli.main(["run", *line]) == 2
    assert "holds a run with lengths.least=9, not 1" in capsys.readouterr().err

    # What it left and is gone is made again.
    (folder / "w" / "lengths" / "lengths.json").unlink()
    assert cli.main(["run", *line, *moved]) == 0
    assert runs.contents(folder / "w" / "lengths") == before

    # Others open the run without its code, or allow it.
    shutil.copy(folder / "w" / "evaluation.json", folder / "before.json")
    forget()
    assert cli.main(["report", f"--workdir={folder}/w"]) == 0
    assert "How many are long." not in (folder / "w" / "report.html").read_text()
    assert cli.main(["evaluate", f"--workdir={folder}/w"]) == 2
    assert "imports names code to run: own_stage" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--workdir={folder}/w", "--allow_imports"]) == 0
    assert evaluation(folder / "w") == json.loads((folder / "before.json").read_text())
    assert "How many are long." in (folder / "w" / "report.html").read_text()


def test_a_config_that_does_not_know_it_takes_it_from_the_command_line(folder):
    line = [f"--config={runs.CONFIG}:popularity", f"--workdir={folder}/w"]
    named = ["--config.imports=own_stage,", "--config.stages=recommend,lengths"]
    assert cli.main(["run", *line, *named, "--config.lengths.least=3"]) == 0
    assert read_config(RunDir(folder / "w")).lengths.least == 3


def test_it_is_refused_before_anything_is_written(folder):
    with pytest.raises(UserError, match=r"lengths\.least=0 must be at least 1"):
        run.run(config(least=0, path="", resamples=1), folder / "w")
    assert not (folder / "w").exists()


def test_a_config_from_before_the_import_gets_the_section(folder):
    """And a run from before a key came gets that key's default."""
    run.run(config(), folder / "w")
    forget()
    (folder / "own_stage.py").write_text(OWN_STAGE.replace("least=1", "least=1, most=99"))
    opened = read_config(RunDir(folder / "w", allow_imports=True))
    expected = {"path": "", "least": 1, "most": 99, "resamples": 1000}
    assert opened.lengths.to_dict() == expected


def test_a_smoke_test_shrinks_it(folder):
    assert cli.main(["run", "--config=own_config.py:tiny", f"--workdir={folder}/w"]) == 0
    assert read_config(RunDir(folder / "w")).lengths.resamples == 10


def test_a_value_of_another_type_is_refused(folder):
    with pytest.raises(UserError, match=r"lengths\.path=3 is not a text"):
        run.run(config(least=1, path=3, resamples=1), folder / "w")


def test_what_is_shown_comes_behind_it(folder):
    import own_stage  # noqa: F401 (it registers)

    assert stages.names() == (
        "recommend",
        "pretrain",
        "instruct",
        "explain",
        "judge",
        "attributes",
        "joint",
        "assess",
        "lengths",
        "showcase",
        "report",
    )


def test_a_name_that_every_config_has_is_refused():
    stages.register(stages.Stage(name="data", check=lambda ctx: None, run=lambda ctx, writer: None))
    try:
        with pytest.raises(UserError, match="stage 'data' has the name of a section"):
            defaults.base()
    finally:
        base._REGISTRY.pop("data")
