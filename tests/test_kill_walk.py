"""Killed before a file operation, and run again: the same bytes as if nothing had happened."""

import os
import pathlib
import signal
import subprocess

import pytest

from experiments import kill_walk
from tests import runs, tiny

SAMPLED = 8  # states of all that a kill can leave


def config():
    """A run of the stages that need no language model."""
    made = tiny.config("popularity")
    made.stages = ("recommend", "explain", "judge", "assess", "report")
    made.explain.update(dict(explainers=("template",), users=15, top_k=1))
    made.assess.update(dict(resamples=10, draws=1, groups=("gender",)))
    made.judge.source = "planted"
    return made


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    with runs.one_device():
        yield kill_walk.walk(config, folder / "run", folder / "copies")


def differing(walked, states):
    """What differs after a rerun, by the operation that did not happen."""
    found = {(s.number, s.operation, s.half): kill_walk.rerun(config, walked, s) for s in states}
    return {state: names for state, names in found.items() if names}


def test_the_walk_passes_every_kind_of_operation(walked):
    kinds = {state.operation.split()[0] for state in walked.states}
    assert kinds >= {"open", "os.rename", "os.mkdir", "os.remove"}
    assert {state.stage for state in walked.states} >= {*config().stages}
    assert walked.operations >= len({state.number for state in walked.states}) > 60
    finished = walked.ends["report"]
    assert "done/assess.json" in finished and not any(".tmp" in name for name in finished)


def test_only_what_changes_a_folder_is_an_operation(tmp_path):
    (tmp_path / "old").write_text("text")
    told = []
    with kill_walk.watched(tmp_path, lambda event, paths: told.append((event, *paths))):
        (tmp_path / "old").read_text()
        os.close(os.open(tmp_path / "old", os.O_RDWR))
        with pytest.raises(FileNotFoundError):
            os.open(tmp_path / "none", os.O_RDWR)
        (tmp_path / "new").write_text("text")
        with (tmp_path / "old").open("a") as file:
            file.write("more")
        os.replace(tmp_path / "new", tmp_path / "newer")
    new, old = str(tmp_path / "new"), str(tmp_path / "old")
    renamed = ("os.rename", new, str(tmp_path / "newer"))
    assert told == [("open", new), ("append", old), renamed]


def test_a_command_dies_where_it_is_told_to(tmp_path):
    (tmp_path / "config.py").write_text(
        "from xrec_jax import defaults\n\n\ndef get_config():\n    return defaults.base()\n"
    )
    command = kill_walk.dying_command(1, tmp_path)
    output = tmp_path / "findings.json"
    audit = ["audit", f"--config={tmp_path}/config.py", f"--output={output}"]
    small = [f"--config.data.world.{key}=12" for key in ("num_users", "mean_visits")]
    killed = subprocess.run([*command, *audit, *small], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL and not output.exists()


def test_any_beginning_of_the_states_is_spread(tmp_path):
    def state(number, stage, operation):
        return kill_walk.State(number, operation, stage, False, tmp_path)

    states = [state(n, "pretrain", f"os.mkdir checkpoints/{n}") for n in range(1, 10)]
    states += [state(10, "pretrain", "append metrics.jsonl"), state(11, "instruct", "open a")]
    assert [s.number for s in kill_walk.spread(states, 3)] == [10, 11, 9, 8]
    assert sorted(kill_walk.spread(states, 1)) == states


def test_a_kill_between_two_writes_changes_nothing(walked):
    step = len(walked.states) // SAMPLED
    assert differing(walked, walked.states[step // 2 :: step]) == {}


def test_the_figures_of_assess_come_all_at_once(walked):
    """There is no moment at which one section is written and the other is not."""
    for state in walked.states:
        path = pathlib.Path(state.copy) / "evaluation.json"
        text = path.read_text() if path.exists() else ""
        assert ('"assess"' in text) == ('"bias"' in text), state


def test_the_parts_of_an_output_go_whenever_the_kill_came(walked):
    [state] = [s for s in walked.states if s.operation.endswith("template.jsonl.parts.done")][:1]
    assert differing(walked, [state]) == {}
