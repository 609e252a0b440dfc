"""Guards that stop a run which was sound up to then, and the choice of its best round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.trees import host_value
from xrec_jax.joint.guards.options import LIMITS, GuardOptions, Limit


@dataclasses.dataclass(frozen=True)
class GuardState:
    """What guards remember between rounds; part of the run's checkpoint.

    Attributes:
      best_gain: largest held-out gain of a round that tripped nothing; None before the first.
      best_round: its round.
      bad_rounds: evaluated rounds since then.
      tripped: reasons so far, each with its round.
    """

    best_gain: float | None = None
    best_round: int | None = None
    bad_rounds: int = 0
    tripped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self) | {"tripped": list(self.tripped)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GuardState:
        """The inverse of `to_json`.

        Raises:
          UserError: if it is not what `to_json` gives.
        """
        try:
            return cls(**{**value, "tripped": tuple(value["tripped"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"guards: not a saved guard state ({error})") from error


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a run goes on after a round.

    Attributes:
      reasons: why it stops, in words; none where it goes on.
      improved: this round is the best so far: keep its checkpoint.
      best_round: the round to keep, None before the first good one.
      number: the round.
      best_gain: of `best_round`.
      cause: "patience" where nothing but a lack of further gain ends the run, "guard" where a limit
        was broken, None where none was.
    """

    reasons: tuple[str, ...] = ()
    improved: bool = False
    best_round: int | None = None
    number: int | None = None
    best_gain: float | None = None
    cause: Literal["guard", "patience"] | None = None

    @property
    def stop(self) -> bool:
        """Whether the run ends here."""
        return bool(self.reasons)

    def record(self) -> dict[str, Any]:
        """What a round's record in `rounds.jsonl` says of the verdict."""
        return {
            "verdict": self.line(),
            "stopped": int(self.stop),
            "best_round": self.best_round,
            **({"stop_cause": self.cause} if self.cause else {}),
        }

    def line(self) -> str:
        """The verdict in one line."""
        where = "" if self.number is None else f" {self.number}"
        best = (
            "there is no good round to keep"
            if self.best_round is None
            else f"best round {self.best_round} is kept"
            + ("" if self.best_gain is None else f" (gain {self.best_gain:.4g})")
        )
        if not self.stop:
            return f"round{where}: goes on; {best}"
        return f"stopped after round{where}: {'; '.join(self.reasons)}; {best}"


def check_rollouts(
    ended: Any,
    lengths: Any,
    options: GuardOptions | None = None,
    *,
    state: GuardState | None = None,
    number: int | None = None,
) -> Verdict:
    """Whether the answers of a round can be learned from.

    Args:
      ended: `[n]` bool, answers that ended by themselves.
      lengths: `[n]` answer tokens, the ending one counted.
      options: `min_ended`, `min_length`; defaults where None.
      state: names the best round in the verdict.
      number: of the round.

    Returns:
      A stop where no answer ended, less than `min_ended` of them did, or the mean length is below
      `min_length`.
    """
    options, state = options or GuardOptions(), state or GuardState()
    done = np.asarray(host_value(ended)).astype(bool)
    tokens = np.asarray(host_value(lengths), np.float64)
    reasons = []
    if not done.size:
        reasons.append("there are no rollouts")
    # None at all always stops, whatever the limit: there is no reward for an end to learn from.
    elif not done.any():
        reasons.append(
            f"none of {done.size} answers ended by itself (mean length {tokens.mean():.1f} tokens):"
            " raise max_new_tokens, or tune the explainer until its answers end"
        )
    else:
        if options.min_ended is not None and done.mean() < options.min_ended:
            reasons.append(
                f"only {int(done.sum())} of {done.size} answers ended by themselves, a share of "
                f"{done.mean():.4g} < guards.min_ended={options.min_ended:g}"
            )
        if options.min_length is not None and tokens.mean() < options.min_length:
            reasons.append(
                f"answers are nearly empty: mean length {tokens.mean():.4g} tokens < "
                f"guards.min_length={options.min_length:g}"
            )
    return Verdict(
        tuple(reasons),
        False,
        state.best_round,
        number,
        state.best_gain,
        "guard" if reasons else None,
    )


def check_round(
    metrics: Mapping[str, Any], state: GuardState, options: GuardOptions, *, number: int
) -> tuple[GuardState, Verdict]:
    """Judges a finished round.

    A metric that a round did not measure is not judged; one that is not finite trips its guard. A
    round that trips a limit never becomes the best one, however large its gain. Call it with round
    0 for the start, so that a run that only gets worse keeps where it began.

    Args:
      metrics: of the round; those of `LIMITS` and `options.gain_metric` are read.
      state: after the round before.
      options: the limits.
      number: of the round.

    Returns:
      The state after this round, and whether the run goes on.
    """
    reasons = [
        reason
        for limit in LIMITS
        if limit.metric in metrics and (reason := _broken(limit, metrics[limit.metric], options))
    ]
    cause: Literal["guard", "patience"] | None = "guard" if reasons else None
    gain = metrics.get(options.gain_metric)
    best_gain, best_round, bad = state.best_gain, state.best_round, state.bad_rounds
    improved = False
    if gain is not None:
        gain = float(gain)
        if not math.isfinite(gain):
            reasons.append(f"the held-out gain {options.gain_metric} is {gain}")
            cause = "guard"
        elif not reasons and (best_gain is None or gain > best_gain + options.min_delta):
            best_gain, best_round, bad, improved = gain, number, 0, True
        else:
            bad += 1
            # Patience counts also where a limit was broken, but the limit is then the cause.
            if options.patience is not None and bad >= options.patience:
                best = "" if best_gain is None else f", best was {best_gain:.4g}"
                reasons.append(
                    f"no better held-out gain in {bad} rounds ({options.gain_metric} {gain:.4g}"
                    f"{best}; guards.patience={options.patience})"
                )
                cause = cause or "patience"
    # A round that was not evaluated changes neither the best one nor the patience.
    tripped = (*state.tripped, *(f"round {number}: {reason}" for reason in reasons))
    after = GuardState(best_gain, best_round, bad, tripped)
    return after, Verdict(tuple(reasons), improved, best_round, number, best_gain, cause)


def kept_round(rounds: Sequence[Mapping[str, Any]], options: GuardOptions) -> int | None:
    """The round whose parameters a seed kept.

    Args:
      rounds: records of `rounds.jsonl`, in order.
      options: the limits that they were judged by.

    Returns:
      The `best_round` of the last record. Records of older runs do not have it: their rounds are
      judged again. None where no round was good: then the warm start was kept.
    """
    if not rounds:
        return None
    if "best_round" in rounds[-1]:
        recorded: int | None = rounds[-1]["best_round"]
        return recorded
    state = GuardState()
    for record in rounds:
        # A round that was stopped before its evaluation has no gain, and changes nothing.
        state, _ = check_round(record, state, options, number=record["round"])
    return state.best_round


def _broken(limit: Limit, measured: Any, options: GuardOptions) -> str | None:
    """Why a metric trips a guard, in words; None where it does not."""
    edge, value = getattr(options, limit.option), float(measured)
    if edge is None:
        return None
    value, edge = float(np.float32(value)), float(np.float32(edge))  # metrics are float32
    if not math.isfinite(value):
        return f"{limit.words} is {value} ({limit.metric}, guards.{limit.option})"
    trips = {"above": value > edge, "below": value < edge, "upto": value <= edge}[limit.side]
    sign = {"above": ">", "below": "<", "upto": "<="}[limit.side]
    return f"{limit.words} is {value:.4g} {sign} guards.{limit.option}={edge:g}" if trips else None
