"""Bradley-Terry strengths: P(i beats j) = 1 / (1 + exp(s_j - s_i)).

Bradley and Terry (1952). Ties count as half a win each. One virtual tie between every two systems
keeps the strengths finite if a system never lost or never won; beside hundreds of comparisons its
effect is negligible. Systems without any chain of comparisons between them are linked by these ties
alone, so that their difference is a convention, not a result.
"""

from __future__ import annotations

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.comparisons import Comparisons
from xrec_jax.evaluation.judging.ratios import points
from xrec_jax.evaluation.judging.resampling import clusters, draws, interval, sums
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

_STEPS = 200
_LONGEST = 1.0  # bound of a Newton step, within which the curvature changes little


def bradley_terry(wins: np.ndarray, *, virtual_ties: float = 1.0) -> np.ndarray:
    """Maximum-likelihood strengths, by Newton's method with bounded steps.

    Args:
      wins: `[..., systems, systems]` wins of the row's over the column's system, ties as halves;
        the diagonal is ignored. Leading dimensions are separate problems.
      virtual_ties: number of ties added between every two systems; positive.

    Returns:
      `[..., systems]` in nats, mean zero.

    Raises:
      UserError: on negative or too few numbers.
    """
    wins = np.asarray(wins, np.float64)
    count = wins.shape[-1]
    if wins.ndim < 2 or wins.shape[-2] != count or count < 2:
        raise UserError(f"wins must be a square table of two systems or more: {wins.shape}")
    if not np.all(np.isfinite(wins)) or np.any(wins < 0) or not virtual_ties > 0:
        raise UserError("wins must not be negative, and virtual_ties must be above 0")
    off_diagonal = 1.0 - np.eye(count)
    wins = (wins + virtual_ties / 2) * off_diagonal
    played = wins + wins.swapaxes(-1, -2)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(_STEPS):
        gap = strengths[..., :, None] - strengths[..., None, :]
        expected = 0.5 * (1.0 + np.tanh(gap / 2))
        gradient = (wins - played * expected).sum(axis=-1)
        curve = played * expected * (1.0 - expected)
        # Adding ones fixes the mean, which the likelihood does not determine.
        hessian = curve.sum(axis=-1)[..., None] * np.eye(count) - curve + 1.0
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strengths = strengths + step * np.minimum(1.0, _LONGEST / np.maximum(longest, 1e-300))
        if longest.max() < 1e-10:
            break
    return strengths - strengths.mean(axis=-1, keepdims=True)


def strengths(
    table: Comparisons,
    *,
    margin: float = 0.0,
    soft: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Bradley-Terry strengths of all systems, with bootstrap intervals over prompts.

    Args:
      table: the comparisons.
      margin: see `ratios.points`.
      soft: see `ratios.points`.
      resamples: bootstrap samples; 0 for no intervals.
      seed: seed of the resamples.

    Raises:
      UserError: if there is no comparison.
    """
    if not len(table):
        raise UserError("strengths need one comparison or more")
    numbered, count = clusters(table.prompts)
    gained = points(table, margin=margin, soft=soft)
    size = len(table.systems)
    # A flattened win table of each prompt, so that a resample is a weighted sum of tables.
    cells = np.zeros((len(table), size * size))
    rows = np.arange(len(table))
    cells[rows, table.one * size + table.other] = gained
    cells[rows, table.other * size + table.one] = 1.0 - gained
    by_prompt = sums(cells, numbered, count)
    fitted = bradley_terry(by_prompt.sum(axis=0).reshape(size, size))
    if not resamples:
        return {name: exact(fitted[i], count) for i, name in enumerate(table.systems)}
    weight = draws(count, resamples=resamples, seed=seed)
    sampled = bradley_terry((weight @ by_prompt).reshape(resamples, size, size))
    return {name: interval(fitted[i], sampled[:, i], count) for i, name in enumerate(table.systems)}
