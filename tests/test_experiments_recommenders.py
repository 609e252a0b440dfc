"""Experiments on recommenders: users whose histories have gaps."""

import csv

import numpy as np
import pytest

from experiments import history_gaps
from tests import runs
from xrec_jax import defaults
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.data.run_data import prepare

USERS = 20
GAPS = (2, 3, 7, 11)


def config(folder, gaps=GAPS, unit=1):
    """Users of six events at their positions; those of `gaps` lack the last but one of seven."""
    rng = np.random.default_rng(1)
    with (folder / "events.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "timestamp"])
        for user in range(USERS):
            for place, item in enumerate(rng.permutation(15)[:7]):
                if place != (5 if user in gaps else 6):
                    rows.writerow([f"u{user:02}", f"i{item:02}", place * unit])
    made = defaults.base()
    made.name, made.stages, made.seeds = "gaps", ("recommend",), (0, 1)
    made.data.format, made.data.path = "csv", str(folder / "events.csv")
    made.ranking.update(dict(ks=(3, 10), resamples=20))
    made.recommend.popularity = defaults.system("popularity")
    made.recommend.bpr = defaults.system("bpr", dim=4, train=dict(batch_size=16, epochs=1))
    return made


def test_users_with_gaps_apart(tmp_path, capsys):
    made = config(tmp_path)
    with runs.one_device():
        run.run(made, tmp_path / "run")
    gap = history_gaps.users_with_gap(prepare(made.data))
    assert np.flatnonzero(gap).tolist() == list(GAPS)
    table = history_gaps.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'o.json'}"])
    arrays = runs.per_user(tmp_path / "run")
    for system, seeds in (("popularity", (0,)), ("bpr", (0, 1))):
        values = [arrays[f"per_user/recommend/{system}/{n}.npz"]["test/ndcg@10"] for n in seeds]
        for group, rows in (("gap", gap), ("no gap", ~gap)):
            found = table[system][group]["test/ndcg@10"]
            assert found["value"] == pytest.approx(np.mean([v[rows] for v in values]))
            assert found["count"] == rows.sum()
    assert "no gap" in capsys.readouterr().out and (tmp_path / "o.json").exists()
    with pytest.raises(UserError, match="no test/ndcg@7"):
        history_gaps.main([f"--workdir={tmp_path / 'run'}", "--metrics=ndcg@7"])


def test_events_that_are_not_one_each(tmp_path):
    made = config(tmp_path)
    made.data.split.update(dict(kind="time", at="5", valid_at="0.5"))
    with pytest.raises(UserError, match="one validation and one test event"):
        history_gaps.users_with_gap(prepare(made.data))


def test_times_that_are_no_positions(tmp_path):
    with pytest.raises(UserError, match="are no positions"):
        history_gaps.users_with_gap(prepare(config(tmp_path, unit=60).data))


def test_a_single_user_has_no_interval(tmp_path, capsys):
    made = config(tmp_path, gaps=(3,))
    del made.recommend["bpr"]
    with runs.one_device():
        run.run(made, tmp_path / "run")
    history_gaps.main([f"--workdir={tmp_path / 'run'}"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if "  gap" in line]
    assert "[" not in line
