"""Figures over several runs: the interval that a further run falls into."""

import numpy as np
import pytest

from experiments.seeds import predicted, seeds_of, together
from xrec_jax.core.errors import UserError


def _figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "count": 10}


def test_interval_by_hand():
    # Runs .4, .5, .6: mean .5, s .1; t(.975, 2) = 4.302653; u = .03.
    runs = [_figure(v, v - 0.03, v + 0.03) for v in (0.4, 0.5, 0.6)]
    out = predicted(runs)
    half = np.sqrt(0.03**2 + 4.302653**2 * 0.01 * (1 + 1 / 3))
    assert out["value"] == pytest.approx(0.5)
    np.testing.assert_allclose([out["low"], out["high"]], [0.5 - half, 0.5 + half], atol=1e-6)


def test_no_interval_from_a_single_run():
    assert predicted([_figure(0.4, 0.3, 0.5)])["low"] is None


def test_coverage_of_a_further_run():
    # A figure that differs between runs by .05: the interval holds a further run in 95 % of cases.
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        *runs, further = rng.normal(0.3, 0.05, 5)
        out = predicted([_figure(v) for v in runs])
        held += out["low"] <= further <= out["high"]
    assert 0.935 <= held / 2000 <= 0.965


def test_figures_that_all_runs_have():
    first = {"assess": {"tuned": {"planted/f1": _figure(0.4), "text/words": _figure(9.0)}}}
    first["assess"]["tuned"] |= {"planted/p": _figure(0.01), "planted/f1_p": _figure(0.01)}
    second = {"assess": {"tuned": {"planted/f1": _figure(0.6)}, "base": {"planted/f1": _figure(0)}}}
    second["assess"]["tuned"] |= {"planted/p": _figure(0.02), "planted/f1_p": _figure(0.02)}
    table = together([first, second], r"f1$|words|p$")
    assert table.keys() == {"assess/tuned"}
    assert table["assess/tuned"].keys() == {"planted/f1"}
    assert table["assess/tuned"]["planted/f1"]["values"] == [0.4, 0.6]


def test_seeds_of_finished_runs(tmp_path):
    for name in ("2", "0", "notes"):
        (tmp_path / name).mkdir()
    assert seeds_of("", tmp_path) == [0, 2]
    assert seeds_of("3,1", tmp_path) == [3, 1]
    with pytest.raises(UserError, match="--seeds=a"):
        seeds_of("a", tmp_path)
    with pytest.raises(UserError, match="no run"):
        seeds_of("", tmp_path / "absent")
