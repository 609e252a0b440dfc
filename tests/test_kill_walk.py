"""Killed before a file operation, and run again: the same bytes as if nothing had happened."""

import pathlib

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
