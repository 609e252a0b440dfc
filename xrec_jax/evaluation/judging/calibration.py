"""Accuracy and calibration of a judge's probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.resampling import clustered_mean, clusters, draws, sums
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

BINS = 10
_LEAST = 1e-12  # bound of a probability, so that a certain and wrong judge has a finite loss


def _checked(
    p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and a mask of label 1, after a check of shapes and ranges."""
    p, label = np.asarray(p_first, np.float64), np.asarray(better)
    if p.shape != label.shape or p.ndim != 1 or not p.size:
        raise UserError(f"labels and probabilities differ: {p.shape}, {label.shape}")
    if not np.all((p >= 0) & (p <= 1)):
        raise UserError("probabilities must be from 0 to 1")
    if not np.all((label == 1) | (label == 2)):
        raise UserError("labels must be 1 or 2")
    return p, label == 1


def right(p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray) -> np.ndarray:
    """Correctness `[rows]`: 1 if the likelier answer is the label, 0 if not, 1/2 for a tie.

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
    """
    p, first = _checked(p_first, better)
    return np.where(p == 0.5, 0.5, (p > 0.5) == first) * 1.0


def _confidence(p: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of the chosen answers, and the numbers of their bins."""
    confidence = np.maximum(p, 1 - p)
    # Bin k holds confidences above 1/2 + k / (2 bins), its upper edge included.
    numbers = np.ceil((confidence - 0.5) * 2 * bins - 1e-9).astype(int) - 1
    return confidence, np.clip(numbers, 0, bins - 1)


def expected_calibration_error(
    p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray, *, bins: int = BINS
) -> float:
    """Expected calibration error: mean of |accuracy - mean confidence| of each answer's bin.

    Guo et al., arXiv 1706.04599, equation 3, with bins of equal width from 1/2 to 1 for the
    confidence of the chosen answer, max(p, 1 - p).

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
      bins: number of bins.
    """
    p, first = _checked(p_first, better)
    confidence, numbers = _confidence(p, bins)
    gap = right(p, 2 - first) - confidence
    return float(np.abs(np.bincount(numbers, gap, bins)).sum() / len(p))


def calibration(
    p_first: Sequence[float] | np.ndarray,
    better: Sequence[int] | np.ndarray,
    prompts: Sequence[int] | Sequence[str] | np.ndarray,
    *,
    bins: int = BINS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Computes `accuracy`, `log_loss` (nats), `brier` and `ece`, with intervals over prompts.

    The calibration error is biased upwards if bins hold few answers, as noise does not cancel in
    absolute values, and resampling adds to this bias. Its interval is therefore the basic
    (reflected) bootstrap interval, clipped at 0. The value itself follows the definition: with a
    hundred answers, a perfectly calibrated judge has about 0.1.

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
      prompts: `[rows]` prompt of each answer.
      bins: number of bins of the calibration error.
      resamples: bootstrap samples over prompts; 0 for no intervals.
      seed: seed of the resamples.

    Raises:
      UserError: if shapes differ, or a value is not valid.
    """
    p, first = _checked(p_first, better)
    likelihood = np.where(first, p, 1 - p)
    columns = {
        "accuracy": right(p, 2 - first),
        "log_loss": -np.log(np.maximum(likelihood, _LEAST)),
        "brier": (1 - likelihood) ** 2,
    }
    result = {
        name: clustered_mean(values, prompts, resamples=resamples, seed=seed)
        for name, values in columns.items()
    }
    numbered, count = clusters(prompts)
    ece = expected_calibration_error(p, 2 - first, bins=bins)
    if not resamples:
        return result | {"ece": exact(ece, count)}
    # Sums of accuracy minus confidence by prompt and bin give the error of every resample.
    confidence, numbers = _confidence(p, bins)
    cells = np.zeros((len(p), bins + 1))
    cells[np.arange(len(p)), numbers] = columns["accuracy"] - confidence
    # The last column counts rows: the denominator of a resample.
    cells[:, bins] = 1.0
    resampled = draws(count, resamples=resamples, seed=seed) @ sums(cells, numbered, count)
    sampled = np.abs(resampled[:, :bins]).sum(axis=1) / resampled[:, bins]
    low, high = np.quantile(sampled, [0.025, 0.975])
    if count < 2:
        return result | {"ece": exact(ece, count)}
    reflected: Estimate = {
        "value": ece,
        "low": max(0.0, float(2 * ece - high)),
        "high": max(ece, float(2 * ece - low)),
        "count": count,
    }
    return result | {"ece": reflected}
