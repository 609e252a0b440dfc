"""Fair judging: both presentation orders, ties, intervals over prompts, text-blind baselines.

A judge is any callable, see `comparisons.Judge`; `readout` makes one of a language model.
"""

from xrec_jax.evaluation.judging.baselines import constant, majority, pair_prior
from xrec_jax.evaluation.judging.calibration import calibration, expected_calibration_error, right
from xrec_jax.evaluation.judging.comparisons import Compared, Comparisons, Judge, compare
from xrec_jax.evaluation.judging.length_control import length_controlled
from xrec_jax.evaluation.judging.ratios import (
    consistent,
    pair_figures,
    points,
    position_bias,
    tie_rates,
    win_matrix,
    win_ratios,
)
from xrec_jax.evaluation.judging.resampling import clustered_mean
from xrec_jax.evaluation.judging.strengths import bradley_terry, strengths

__all__ = [
    "Compared",
    "Comparisons",
    "Judge",
    "bradley_terry",
    "calibration",
    "clustered_mean",
    "compare",
    "consistent",
    "constant",
    "expected_calibration_error",
    "length_controlled",
    "majority",
    "pair_figures",
    "pair_prior",
    "points",
    "position_bias",
    "right",
    "strengths",
    "tie_rates",
    "win_matrix",
    "win_ratios",
]
