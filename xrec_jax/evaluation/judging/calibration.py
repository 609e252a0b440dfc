"""Agreement of a judge with labels, and whether its probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.judging.resampling import clustered_mean, clusters, draws, sums
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

BINS = 10
_LEAST = 1e-12  # probability: a judge that is certain and wrong has a finite loss


def _checked(p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray):
    p, label = np.asarray(p_first, np.float64), np.asarray(better)
    if p.shape != label.shape or p.ndim != 1 or not p.size:
        raise UserError(f"labels and probabilities differ: {p.shape}, {label.shape}")
    if not np.all((p >= 0) & (p <= 1)):
        raise UserError("probabilities must be from 0 to 1")
    if not np.all((label == 1) | (label == 2)):
        raise UserError("labels must be 1 or 2")
    return p, label == 1


def right(p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[rows]` 1 where the likelier answer is the label, 0 where not, 1/2 for none likelier.

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
    """
    p, first = _checked(p_first, better)
    return np.where(p == 0.5, 0.5, (p > 0.5) == first) * 1.0


def _confidence(p: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    sure = np.maximum(p, 1 - p)
    # Bin k holds confidences above 1/2 + k / (2 bins), its upper edge included.
    numbers = np.ceil((sure - 0.5) * 2 * bins - 1e-9).astype(int) - 1
    return sure, np.clip(numbers, 0, bins - 1)


def expected_calibration_error(
    p_first: Sequence[float] | np.ndarray, better: Sequence[int] | np.ndarray, *, bins: int = BINS
) -> float:
    """Mean over answers of |accuracy - mean confidence| of their bin.

    Guo et al., arXiv 1706.04599, equation 3.

    The confidence of the chosen answer, max(p, 1 - p), is put into `bins` bins of equal width from
    1/2 to 1.

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
      bins: how many.
    """
    p, first = _checked(p_first, better)
    sure, numbers = _confidence(p, bins)
    gap = right(p, 2 - first) - sure
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
    """`accuracy`, `log_loss` (nats), `brier` (squared error of p) and `ece`, clustered by prompt.

    Few answers in a bin make the calibration error larger than it is, as chance never cancels in
    absolute values; drawing them anew does so once more. Its interval is therefore the reflected
    one (the basic bootstrap), cut at 0. The value itself stays that of the definition: of a hundred
    answers a judge that is perfectly calibrated has about 0.1.

    Args:
      p_first: `[rows]` probability of label 1.
      better: `[rows]` labels, 1 or 2.
      prompts: `[rows]` what each belongs to.
      bins: of the calibration error, see `expected_calibration_error`.
      resamples: bootstrap samples over prompts; 0 for no intervals.
      seed: of the draws.

    Raises:
      UserError: if shapes differ, or a value is not valid.
    """
    p, first = _checked(p_first, better)
    given = np.where(first, p, 1 - p)
    columns = {
        "accuracy": right(p, 2 - first),
        "log_loss": -np.log(np.maximum(given, _LEAST)),
        "brier": (1 - given) ** 2,
    }
    found = {
        name: clustered_mean(values, prompts, resamples=resamples, seed=seed)
        for name, values in columns.items()
    }
    numbered, count = clusters(prompts)
    ece = expected_calibration_error(p, 2 - first, bins=bins)
    if not resamples:
        return found | {"ece": exact(ece, count)}
    sure, numbers = _confidence(p, bins)
    cells = np.zeros((len(p), bins + 1))
    cells[np.arange(len(p)), numbers] = columns["accuracy"] - sure
    cells[:, bins] = 1.0
    drawn = draws(count, resamples=resamples, seed=seed) @ sums(cells, numbered, count)
    sampled = np.abs(drawn[:, :bins]).sum(axis=1) / drawn[:, bins]
    low, high = np.quantile(sampled, [0.025, 0.975])
    if count < 2:
        return found | {"ece": exact(ece, count)}
    reflected: Estimate = {
        "value": ece,
        "low": max(0.0, float(2 * ece - high)),
        "high": max(ece, float(2 * ece - low)),
        "count": count,
    }
    return found | {"ece": reflected}
