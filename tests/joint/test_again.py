"""A joint run started again: skipped, evaluated, cut off and gone on with."""

import json
import os
import shutil
import signal

import jax
import pytest

from tests import runs, tiny
from tests.joints import (
    evaluation,
    jsonl,
    newest,
    opened,  # noqa: F401 (a fixture)
    seed_run,
)
from tests.runs import joint  # noqa: F401 (a fixture)
from xrec_jax import cli
from xrec_jax.api import run
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.joint.trainer import train
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.training.loop import Interrupted


def test_a_second_run_changes_nothing(joint, capsys, tmp_path):  # noqa: F811
    shutil.copytree(joint / "run", tmp_path / "run")
    before = runs.contents(tmp_path / "run")
    with runs.one_device():
        run.run(tiny.joint(joint / "model"), tmp_path / "run")
    assert runs.contents(tmp_path / "run") == before
    assert "joint/0" not in capsys.readouterr().out


def test_evaluate_gives_the_same_figures(joint, tmp_path):  # noqa: F811
    shutil.copytree(joint / "run", tmp_path / "run")
    expected = evaluation(joint / "run")
    path = tmp_path / "run" / "evaluation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "joint"}))
    with runs.one_device():
        assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert evaluation(tmp_path / "run") == expected


def test_evaluate_of_a_run_that_is_not_finished(joint, capsys, tmp_path):  # noqa: F811
    shutil.copytree(joint / "warm", tmp_path / "run")
    with runs.one_device():
        assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "joint/0 is not finished" in capsys.readouterr().err


class Stopping(MetricWriter):
    """A metric log that sends SIGTERM to its own process after round 1."""

    def write(self, stage, step, metrics):
        super().write(stage, step, metrics)
        if (stage, step) == ("joint/0", 1):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(joint, opened, tmp_path):  # noqa: F811
    """By SIGTERM after round 1, between the rollout and the updates of round 2, and at the end."""
    workdir = tmp_path / "run"
    shutil.copytree(joint / "warm", workdir)
    with use_mesh(tiny.mesh(1)):
        writer = Stopping(workdir)
        with pytest.raises(Interrupted, match="saved at step 1"):
            train(seed_run(workdir), writer)
        writer.close()
        for step in (3, 4):
            writer = MetricWriter(workdir)
            with runs.cut_after(step):
                train(seed_run(workdir), writer)
            writer.close()
        state, data, _ = newest(seed_run(workdir))
    runs.assert_same_bits(jax.device_get(state.saved()), jax.device_get(opened.state.saved()))
    untimed = [
        [runs.untimed(json.loads(json.dumps(number))) for number in one["rounds"]]
        for one in (data, opened.data)
    ]
    assert untimed[0] == untimed[1] and data["guard"] == opened.data["guard"]
    assert runs.metrics(workdir, "joint") == runs.metrics(joint / "run", "joint")


def test_without_a_round_the_warm_start_is_what_is_tested(joint, tmp_path):  # noqa: F811
    """All that is left beside it are the last updates of its recommender."""
    workdir = tmp_path / "run"
    shutil.copytree(joint / "warm", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["joint"].update(rounds=0, systems=["sft"])
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "done" / "config.json").unlink()  # else the other value is refused
    with runs.one_device():
        run.run(read_config(RunDir(workdir)), workdir)
    (only,) = jsonl(workdir / "joint" / "0" / "rounds.jsonl")
    (first, *_) = jsonl(joint / "run" / "joint" / "0" / "rounds.jsonl")
    assert runs.untimed(only) == runs.untimed(first)
    texts = {"joint": [], "sft": []}
    for record in jsonl(workdir / "explanations" / "joint_0.jsonl"):
        texts[record["system"]].append(record["text"])
    assert texts["joint"] == texts["sft"] and len(texts["sft"]) == 19
    told = evaluation(workdir)
    assert told["rounds"]["valid/best_gain"]["value"] == pytest.approx(only["valid/gain"])
    assert told["rounds"]["planted/f1_difference"]["value"] == 0
    assert {"joint", "sft", "alone", "joint vs alone", "joint vs sft"} <= told.keys()
