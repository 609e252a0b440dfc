"""Length-controlled win ratios.

In the spirit of AlpacaEval 2 (Dubois et al., arXiv 2404.04475, equation 1, without its term for the
difficulty of the instruction), a verdict is modelled as

    logit P(i beats j) = s_i - s_j + b tanh((n_i - n_j) / d)

with strengths s, numbers of words n and d the standard deviation of their differences over all
comparisons. The ratio at equal length is the mean of 1 / (1 + exp(s_j - s_i)) over opponents. If
one system is always the longer, its strength and the effect of length cannot be separated, and both
share the credit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.comparisons import Comparisons
from xrec_jax.evaluation.judging.ratios import points
from xrec_jax.evaluation.judging.resampling import clusters, interval, resampled
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

_RIDGE = 1e-3  # penalty of strengths and slope; keeps both finite for separable verdicts
_STEPS = 200
_LONGEST = 1.0


class LengthFit(NamedTuple):
    """Fitted model.

    Attributes:
      strengths: `[systems]` nats, mean zero.
      slope: b in the module's equation, in nats.
    """

    strengths: np.ndarray
    slope: float


def difference(table: Comparisons) -> np.ndarray:
    """Length feature `[rows]`: tanh of the difference in words over its root mean square."""
    gap = (table.words[:, 0] - table.words[:, 1]).astype(np.float64)
    spread = np.sqrt(np.mean(gap**2))
    return np.tanh(gap / spread) if spread > 0 else gap


def fit(
    table: Comparisons,
    gained: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    start: LengthFit | None = None,
) -> LengthFit:
    """Maximum-likelihood strengths and slope with a slight ridge, by Newton's method.

    Args:
      table: the comparisons.
      gained: `[rows]` points of `one` in each, from 0 to 1.
      weight: `[rows]` weights of the comparisons; by default 1.
      start: initial values.
    """
    size = len(table.systems)
    cells, features = _cells(table)
    weight = np.ones(len(table)) if weight is None else weight
    # Parameters: the strengths, and last the slope of the length feature.
    guess = np.zeros(size + 1)
    if start is not None:
        guess[:size], guess[size] = start.strengths, start.slope
    ridge = np.full(size + 1, _RIDGE)
    for _ in range(_STEPS):
        # Gradient and Hessian of the penalised log-likelihood; long steps are cut to stay stable.
        logit = guess[table.one] - guess[table.other] + guess[size] * features
        # The logistic function as a tanh, which cannot overflow.
        expected = 0.5 * (1.0 + np.tanh(logit / 2))
        residual = weight * (gained - expected)
        curve = weight * expected * (1.0 - expected)
        gradient = np.zeros(size + 1)
        gradient[:size] = np.bincount(table.one, residual, size) - np.bincount(
            table.other, residual, size
        )
        gradient[size] = residual @ features
        gradient -= ridge * guess
        hessian = _hessian(table, cells, features, curve, size) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        longest = np.abs(step).max()
        guess = guess + step * min(1.0, _LONGEST / max(longest, 1e-300))
        if longest < 1e-9:
            break
    # Verdicts determine differences only, so the mean is set to zero.
    strengths = guess[:size] - guess[:size].mean()
    return LengthFit(strengths, float(guess[size]))


def _cells(table: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    return table.one * len(table.systems) + table.other, difference(table)


def _hessian(
    table: Comparisons, cells: np.ndarray, features: np.ndarray, curve: np.ndarray, size: int
) -> np.ndarray:
    """Weighted Gram matrix: sum of `curve x x'` over rows, with x of +1, -1 and the feature."""
    # Laplacian of the graph of comparisons, weighted by the curvature of the likelihood.
    information = np.bincount(cells, curve, size * size).reshape(size, size)
    information = information + information.T
    hessian = np.zeros((size + 1, size + 1))
    hessian[:size, :size] = np.diag(information.sum(axis=1)) - information
    along = curve * features
    hessian[:size, size] = np.bincount(table.one, along, size) - np.bincount(
        table.other, along, size
    )
    hessian[size, :size] = hessian[:size, size]
    hessian[size, size] = along @ features
    return hessian


def ratios_at_equal_length(strengths: np.ndarray) -> np.ndarray:
    """Mean probability `[systems]` of beating each of the others."""
    gap = strengths[:, None] - strengths[None, :]
    probability = 0.5 * (1.0 + np.tanh(gap / 2))
    # Less the 1/2 of each system against itself.
    return (probability.sum(axis=1) - 0.5) / (len(strengths) - 1)


def length_controlled(
    table: Comparisons,
    *,
    margin: float = 0.0,
    soft: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Length-controlled win ratio of each system, that is at equal length.

    Args:
      table: the comparisons.
      margin: see `ratios.points`.
      soft: see `ratios.points`.
      resamples: bootstrap samples over prompts, each with a fit of its own; 0 for no intervals.
      seed: seed of the resamples.

    Raises:
      UserError: if there is no comparison.
    """
    if not len(table):
        raise UserError("length control needs one comparison or more")
    numbered, count = clusters(table.prompts)
    gained = points(table, margin=margin, soft=soft)
    full = fit(table, gained)
    value = ratios_at_equal_length(full.strengths)
    if not resamples:
        return {name: exact(value[i], count) for i, name in enumerate(table.systems)}

    def refit(weight: np.ndarray) -> np.ndarray:
        # Starting from the full fit saves most of Newton's steps.
        refitted = fit(table, gained, weight=weight[numbered], start=full)
        return ratios_at_equal_length(refitted.strengths)

    sampled = resampled(refit, count, resamples=resamples, seed=seed)
    return {name: interval(value[i], sampled[:, i], count) for i, name in enumerate(table.systems)}
