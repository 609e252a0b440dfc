"""Guards against collapse: what ends a joint run, and what ends it with an error.

Errors (`UserError`), because every later number would be worthless (`guards.values`):

* a reward that is NaN or infinite, or beyond `max_reward` (`check_scores`);
* log-probabilities of sampler and trainer that differ by more than `gap_max` (`check_gap`);
* updates whose loss or gradient is NaN or infinite (`check_updates`).

Stops (a `Verdict`), because the run was sound up to then and its best round is worth keeping
(`guards.verdicts`):

* no answer that ends, or too few, or only empty ones (`check_rollouts`);
* a limit of `LIMITS`: KL, entropy, a reward without spread, every monitor (`check_round`);
* no better held-out gain for `patience` rounds (`check_round`).

Functions are pure; the caller prints `Verdict.line()` and keeps the best round's checkpoint. What
guards look at are host numbers: shares in [0, 1], KL, entropy and log-probabilities in nats.
"""

from xrec_jax.joint.guards.options import LIMITS, GuardOptions, Limit
from xrec_jax.joint.guards.values import check_gap, check_scores, check_updates
from xrec_jax.joint.guards.verdicts import (
    GuardState,
    Verdict,
    check_rollouts,
    check_round,
    kept_round,
)

__all__ = [
    "LIMITS",
    "GuardOptions",
    "GuardState",
    "Limit",
    "Verdict",
    "check_gap",
    "check_rollouts",
    "check_round",
    "check_scores",
    "check_updates",
    "kept_round",
]
