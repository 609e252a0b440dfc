"""SIGKILL at random moments of a real process: the rerun ends where it would have ended."""

import json
import os
import pathlib
import random
import signal
import time

import pytest

from tests import runs

SYSTEMS = {"sasrec": 12, "lightgcn": 33}  # steps
OVERRIDES = [
    f"--config.recommend.{name}.train.{key}={value}"
    for name, epochs in (("sasrec", 6), ("lightgcn", 3))
    for key, value in (("epochs", epochs), ("log_every", 1), ("patience", 0))
]
LINES = sum(SYSTEMS.values())


def start(workdir: pathlib.Path):
    config = f"--config={runs.CONFIG}:{','.join(SYSTEMS)}"
    return runs.start("run", config, f"--workdir={workdir}", *OVERRIDES)


def lines(workdir: pathlib.Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_after(workdir: pathlib.Path, count: int, delay: float) -> bool:
    """Runs until `count` lines are logged and `delay` seconds more, then SIGKILL.

    Returns:
      Whether the process was still running.
    """
    process = start(workdir)
    while lines(workdir) < count and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), f"{out}\n{err}"
    return process.returncode != 0


@pytest.fixture(scope="module")
def killed_and_whole(tmp_path_factory):
    """Folders of a run that was killed several times and of one that was left alone."""
    folder = tmp_path_factory.mktemp("kill")
    whole = start(folder / "whole")
    runs.finish(whole)
    assert lines(folder / "whole") == LINES
    seed = int(os.environ.get("XREC_KILL_SEED", random.SystemRandom().randrange(10**6)))
    draw = random.Random(seed)
    # LightGCN is first, lines 1 to 33; its checkpoint of step 11 is complete once line 23 is there.
    counts = [draw.randrange(1, 23), draw.randrange(12, 34), draw.randrange(34, LINES - 1)]
    hits, kept = [], []
    for count in counts:
        delay = draw.uniform(0, 0.05)
        hit = kill_after(folder / "killed", count, delay)
        hits.append(hit)
        state = lines(folder / "killed")
        kept += lines_before_checkpoints(folder / "killed")
        print(f"XREC_KILL_SEED={seed}: line {count} + {delay * 1e3:.0f} ms, {state} lines, {hit=}")
    assert any(hits), "every kill came too late"
    runs.finish(start(folder / "killed"))
    (folder / "kept.jsonl").write_text("".join(kept))
    return folder / "killed", folder / "whole"


def lines_before_checkpoints(workdir: pathlib.Path) -> list[str]:
    """Lines, with their times, of the steps that the newest checkpoints hold already."""
    found = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            folder = workdir / "checkpoints" / record["stage"]
            steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
            if record["step"] <= max(steps, default=0):
                found.append(line)
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_last_checkpoint_is_equal_to_the_last_bit(killed_and_whole, name):
    """Parameters, best parameters, optimiser, key, step, data position, progress."""
    killed, whole = (runs.last_checkpoint(workdir, name) for workdir in killed_and_whole)
    assert int(killed["state"]["step"]) == SYSTEMS[name]
    runs.assert_same_bits(killed["state"], whole["state"])
    assert (killed["data"], killed["progress"]) == (whole["data"], whole["progress"])


def test_the_metric_log_is_equal(killed_and_whole):
    killed, whole = map(runs.metrics, killed_and_whole)
    assert killed == whole
    assert len({(line["stage"], line["step"]) for line in killed}) == len(killed) == LINES


def test_the_evaluation_is_equal(killed_and_whole):
    killed, whole = killed_and_whole
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    assert json.loads((killed / "evaluation.json").read_text())["recommend"].keys() >= {*SYSTEMS}
    runs.assert_same_bits(runs.per_user(killed), runs.per_user(whole))


def test_reruns_went_on_from_the_newest_checkpoint(killed_and_whole):
    """Lines of saved steps keep even their times; the others were written again."""
    killed, _ = killed_and_whole
    kept = (killed.parent / "kept.jsonl").read_text().splitlines()
    final = (killed / "metrics.jsonl").read_text().splitlines()
    assert len({*kept}) >= 11 and {*kept} <= {*final}


def test_nothing_half_written_is_left(killed_and_whole):
    killed, whole = killed_and_whole
    assert [path for path in killed.rglob("*") if "tmp" in path.name] == []
    for name, steps in SYSTEMS.items():
        found, expected = (
            {path.name for path in (folder / "checkpoints" / "recommend" / name / "0").iterdir()}
            for folder in (killed, whole)
        )
        assert found == expected and str(steps) in found
