"""Outputs that would destroy what a command reads, or a file of a run."""

import json

import pytest
from etils import epath

from xrec_jax.api import audit as audit_command
from xrec_jax.api import compare, rate, recommend
from xrec_jax.core.errors import UserError
from xrec_jax.core.outputs import check_output
from xrec_jax.core.storage.marks import Marks


@pytest.fixture
def run(tmp_path):
    """A folder that looks like a run whose stage `explain` left a file."""
    folder = tmp_path / "run"
    for name in (
        "config.json",
        "evaluation.json",
        "metrics.jsonl",
        "checkpoints/x.jsonl",
        "explanations/pairs.jsonl",
        "explanations/mine.jsonl",
        "audit.json",
        "top.jsonl",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    left = [epath.Path(folder / "explanations" / "pairs.jsonl")]
    Marks(epath.Path(folder)).write("explain", left, evaluation={}, metrics=[])
    return folder


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "evaluation.json",
        "metrics.jsonl",
        "checkpoints/x.jsonl",
        "done/explain.json",
        "explanations/pairs.jsonl",
    ],
)
def test_a_file_of_a_run_is_no_output(run, name):
    before = (run / name).read_bytes()
    refused(lambda: check_output(run / name), name, f"a file of the run in {run}")
    assert (run / name).read_bytes() == before


def test_the_other_files_in_a_run_are_free(run):
    for name in ("top.jsonl", "audit.json", "explanations/mine.jsonl", "new/top.jsonl"):
        check_output(run / name)


def test_a_file_that_is_read_is_no_output(tmp_path):
    pairs, link = tmp_path / "pairs.jsonl", tmp_path / "link.jsonl"
    pairs.write_text("")
    link.symlink_to(pairs)
    for path in (pairs, link):
        refused(
            lambda path=path: recommend.check_output(str(path), pairs=str(pairs)), "--pairs reads"
        )
    recommend.check_output(str(tmp_path / "new.jsonl"), pairs=str(pairs), users="all")


def test_every_command_refuses(run, tmp_path):
    lines, figures = str(run / "metrics.jsonl"), str(run / "evaluation.json")
    key = tmp_path / "KEY.json"
    key.write_text(json.dumps({}))
    refused(
        lambda: recommend.recommend(str(run), users="all", top_k=1, output=lines),
        "a file of the run",
    )
    refused(lambda: compare.compare([run, run], output=figures), "a file of the run")
    refused(lambda: audit_command.audit_workdir(run, output=figures), "a file of the run")
    refused(lambda: rate.collect(["r.json"], key=key, output=figures), "a file of the run")
    refused(lambda: rate.collect(["r.json"], key=key, output=key), "--key reads")
