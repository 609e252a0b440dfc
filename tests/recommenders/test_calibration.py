"""The fitted temperature against a plain search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.recommenders.explained.calibration import HIGH, LOW, fit_temperature


def inner(states, table):
    return states @ table.T


def problem(rows, sureness, seed=0):
    """Scores `sureness` times as large as those the targets are drawn by."""
    rng = np.random.default_rng(seed)
    states, table = rng.normal(size=(rows, 6)), rng.normal(size=(37, 6))
    logits = states @ table.T
    target = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1).astype(np.int32)
    target[::7] = -1
    table = np.concatenate([table, 50 + rng.normal(size=(3, 6))])  # padding rows count nothing
    return (sureness * states).astype(np.float32), table.astype(np.float32), target


def cross_entropy(scores, target, temperature):
    rows = np.flatnonzero(target >= 0)
    x = np.asarray(scores, np.float64)[rows] / temperature
    x -= x.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(rows)), target[rows]])


@pytest.mark.parametrize(("rows", "sureness"), [(301, 1.7), (128, 0.6), (45, 2.9)])
def test_no_other_temperature_is_better(rows, sureness):
    states, table, target = problem(rows, sureness)
    found = float(fit_temperature(states, table, target, inner, items=37))
    scores = states @ table[:37].T
    grid = np.exp(np.linspace(np.log(LOW), np.log(HIGH), 2001))
    losses = [cross_entropy(scores, target, t) for t in grid]
    step = grid[1] / grid[0]
    assert grid[np.argmin(losses)] / step < found < grid[np.argmin(losses)] * step
    assert abs(np.log(found / sureness)) < 0.35  # what the targets were drawn by
    other = float(fit_temperature(states, table, target, inner, items=37, chunk=32))
    assert other == pytest.approx(found, rel=1e-5)


def test_scores_that_are_no_inner_products():
    states, table, target = problem(90, 1.0)
    found = fit_temperature(states, table, target, lambda s, t: 2.3 * inner(s, t), items=37)
    plain = fit_temperature(states, table, target, inner, items=37)
    np.testing.assert_allclose(found, 2.3 * plain, rtol=1e-4)


def test_ends_and_nothing_to_fit():
    states, table, target = problem(60, 30.0)
    fit = jax.jit(lambda *given: fit_temperature(*given, inner, items=37))
    np.testing.assert_allclose(fit(states, table, target), HIGH, rtol=1e-5)
    best = (states @ table[:37].T).argmax(axis=1).astype(np.int32)
    np.testing.assert_allclose(fit(states / 60, table, best), LOW, rtol=1e-5)
    assert float(fit(states, table, jnp.full(60, -1, jnp.int32))) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_numbers_have_no_temperature(bad):
    states, table, target = problem(40, 1.0)
    table[3, 1] = bad
    assert np.isnan(fit_temperature(states, table, target, inner, items=37))
