"""Guards against collapse: what ends a joint run, and what ends it with an error.

Errors (`UserError`), because every later number would be worthless:

* a reward that is NaN or infinite, or beyond `max_reward` (`check_scores`);
* log-probabilities of sampler and trainer that differ by more than `gap_max` (`check_gap`);
* updates whose loss or gradient is NaN or infinite (`check_updates`).

Stops (a `Verdict`), because the run was sound up to then and its best round is worth keeping:

* no answer that ends, or too few, or only empty ones (`check_rollouts`);
* a limit of `LIMITS`: KL, entropy, a reward without spread, every monitor (`check_round`);
* no better held-out gain for `patience` rounds (`check_round`).

Functions are pure; the caller prints `Verdict.line()` and keeps the best round's checkpoint. What
guards look at are host numbers: shares in [0, 1], KL, entropy and log-probabilities in nats.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.trees import host_value


class Limit(NamedTuple):
    """A guard on one metric of a round.

    Attributes:
      option: field of `GuardOptions`.
      metric: what is looked at.
      side: "above" trips beyond the limit, "below" under it; "upto" also at it.
      words: what the metric is, to stand in front of its value.
    """

    option: str
    metric: str
    side: Literal["above", "below", "upto"]
    words: str


LIMITS = (
    Limit("kl_ceiling", "ppo/kl", "above", "KL to the reference, nats per answer token,"),
    Limit("min_entropy", "ppo/entropy", "below", "the policy's entropy, nats per answer token,"),
    Limit("min_reward_std", "reward/score_std", "upto", "the spread of the rewards"),
    Limit("min_ended", "rollout/ended", "below", "the share of answers that end"),
    Limit(
        "max_title_mention",
        "monitor/title_mention",
        "above",
        "the share of texts that name a title",
    ),
    Limit(
        "max_unshown_title",
        "monitor/unshown_title",
        "above",
        "the share of texts that name a title their prompt does not show",
    ),
    Limit(
        "max_target_title",
        "monitor/target_title",
        "above",
        "the share of texts that name the target",
    ),
    Limit("max_copied", "monitor/copied_prompt", "above", "the share copied from the prompt"),
    Limit("max_repetition", "monitor/repetition", "above", "the share of repeated word triples"),
    Limit(
        "max_duplicates", "monitor/duplicates", "above", "the share of texts that equal another one"
    ),
    Limit(
        "max_missing_why_not",
        "monitor/missing_why_not",
        "above",
        "the share of texts without a why-not part",
    ),
    Limit(
        "min_length_ratio",
        "monitor/length_ratio",
        "below",
        "the mean length over that of the reference texts",
    ),
    Limit(
        "max_length_ratio",
        "monitor/length_ratio",
        "above",
        "the mean length over that of the reference texts",
    ),
    Limit(
        "max_odd_tokens",
        "monitor/odd_tokens",
        "above",
        "the share of tokens that no reference text has",
    ),
    Limit(
        "max_leak",
        "monitor/odd_token_leak",
        "above",
        "how well odd tokens betray the target (0 chance, 1 always)",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Limits; None switches one off. A value at its limit does not trip, but for the spread.

    Attributes:
      max_reward: largest absolute score. Gains are log-probabilities of one item in nats, and
        a catalogue of 20,000 items is 10 nats wide; more is a wrong scale.
      gap_max: mean absolute difference of sampler's and trainer's log-probabilities of the sampled
        tokens, in nats. bfloat16 differs by about 0.01, other weights by more than 0.1.
      kl_ceiling: mean KL to the reference, nats per answer token.
      min_entropy: mean entropy of the policy, nats per answer token.
      min_reward_std: standard deviation of a round's scores at or below which there is nothing to
        learn; what is left of equal scores is rounding.
      min_ended: least share of answers that end by themselves; none at all always trips.
      min_length: least mean length of the answers in tokens, the ending one counted: 1 is empty.
      max_title_mention: largest share of texts that name any title. Explanations may well name
        what the prompt shows, so it is off.
      max_unshown_title: the same for titles that the text's prompt does not show.
      max_target_title: the same for the title of the item to be predicted.
      max_copied: largest share of word 5-grams taken from the prompt.
      max_repetition: largest share of word 3-grams that are repeats.
      max_duplicates: largest share of texts that repeat another one of the round.
      max_missing_why_not: largest share of texts without a why-not part.
      min_length_ratio: least mean length over that of the reference texts.
      max_length_ratio: largest.
      max_odd_tokens: largest share of tokens that neither a reference text nor the prompt has.
      max_leak: largest part of the way from chance to certainty by which odd tokens give the
        target away.
      patience: rounds without a better held-out gain until the run stops.
      min_delta: by how much a gain must exceed the best one to be better.
      gain_metric: the held-out gain, of valid users, never of those that are tested.
    """

    max_reward: float | None = 25.0
    gap_max: float | None = 0.1
    kl_ceiling: float | None = 0.5
    min_entropy: float | None = 0.02
    min_reward_std: float | None = 1e-6
    min_ended: float | None = 0.1
    min_length: float | None = 1.5
    max_title_mention: float | None = None
    max_unshown_title: float | None = 0.5
    max_target_title: float | None = 0.1
    max_copied: float | None = 0.6
    max_repetition: float | None = 0.5
    max_duplicates: float | None = 0.9
    max_missing_why_not: float | None = 0.5
    min_length_ratio: float | None = 0.4
    max_length_ratio: float | None = 2.5
    max_odd_tokens: float | None = 0.2
    max_leak: float | None = 0.2
    patience: int | None = 5
    min_delta: float = 0.0
    gain_metric: str = "valid/gain"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "gain_metric":
                if not isinstance(value, str) or not value:
                    raise UserError(f"guards: gain_metric={value!r} must be a metric's name")
                continue
            if value is None and field.name != "min_delta":
                continue
            if not _finite(value) or value < 0:
                raise UserError(
                    f"guards: {field.name}={value!r} must be a number from 0, or None for no guard"
                )
        if self.patience is not None and (self.patience < 1 or self.patience != int(self.patience)):
            raise UserError(f"guards: patience={self.patience!r} must be a whole number from 1")
        low, high = self.min_length_ratio, self.max_length_ratio
        if low is not None and high is not None and low >= high:
            raise UserError(f"guards: min_length_ratio={low} must be below max_length_ratio={high}")

    @classmethod
    def of(cls, given: Any) -> GuardOptions:
        """Options from a config's mapping.

        Raises:
          UserError: on an unknown key or a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        chosen = dict(given.items())
        for key in chosen:
            if key not in known:
                raise UserError(f"guards: no option {key!r}{did_you_mean(key, known)}")
        return cls(**chosen)


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
    """

    reasons: tuple[str, ...] = ()
    improved: bool = False
    best_round: int | None = None
    number: int | None = None
    best_gain: float | None = None

    @property
    def stop(self) -> bool:
        """Whether the run ends here."""
        return bool(self.reasons)

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


def check_scores(
    parts: Mapping[str, Any], score: Any, options: GuardOptions, *, config: str = "joint"
) -> None:
    """Refuses rewards that cannot be learned from.

    Args:
      parts: each `[n]`, without weights.
      score: `[n]`, their weighted sum.
      options: `max_reward`.
      config: where the config has `rewards` and `guards`, for the message.

    Raises:
      UserError: where a part or the score is NaN or infinite, saying in how many rows, or a score
        is beyond `max_reward`, saying what to change.
    """
    values = {name: np.asarray(host_value(part), np.float64) for name, part in parts.items()}
    scores = np.asarray(host_value(score), np.float64)
    for name, value in [*((f"reward part {n!r}", v) for n, v in values.items()), ("score", scores)]:
        bad = ~np.isfinite(value)
        if bad.any():
            nans = int(np.isnan(value).sum())
            raise UserError(
                f"{name} is not finite in {int(bad.sum())} of {value.size} rows ({nans} NaN, "
                f"{int(bad.sum()) - nans} infinite; first row {int(np.argmax(bad))}); mend the "
                f"part, or take it out of {config}.rewards"
            )
    if options.max_reward is None or not scores.size:
        return
    over = np.abs(scores) > options.max_reward
    if over.any():
        row = int(np.argmax(np.abs(scores)))
        widest = max(values, key=lambda name: abs(values[name][row])) if values else None
        source = (
            ""
            if widest is None
            else f", where part {widest!r} is {values[widest][row]:.6g} before its weight: lower "
            f"{config}.rewards.{widest}"
        )
        raise UserError(
            f"wrong reward scale: |score| reaches {abs(scores[row]):.6g}, beyond "
            f"{config}.guards.max_reward={options.max_reward:g} in {int(over.sum())} of "
            f"{scores.size} rows{source}{' or' if source else ';'} raise the limit if that is meant"
        )


def check_gap(
    sampled: Any, trained: Any, mask: Any, options: GuardOptions, *, config: str = "joint"
) -> dict[str, float]:
    """Compares the log-probabilities of the sampled tokens by sampler and trainer.

    Args:
      sampled: `[n, A]`, nats, of the sampler.
      trained: `[n, A]`, nats, of the trainer under the same parameters.
      mask: `[n, A]`, answer tokens; the rest is not looked at.
      options: `gap_max`.
      config: where the config has `guards`, for the message.

    Returns:
      `rollout/log_prob_gap` (mean) and `rollout/log_prob_gap_max`, absolute nats a token; 0 without
      a token.

    Raises:
      UserError: if one is not finite, or the mean is above `gap_max`.
    """
    real = np.asarray(host_value(mask)).astype(bool)
    first = np.asarray(host_value(sampled), np.float64)[real]
    second = np.asarray(host_value(trained), np.float64)[real]
    for name, value in (("sampler", first), ("trainer", second)):
        if not np.isfinite(value).all():
            raise UserError(
                f"log-probabilities of the {name} are not finite for "
                f"{int((~np.isfinite(value)).sum())} of {value.size} answer tokens: the policy's "
                "weights or its sampling options are broken"
            )
    gap = np.abs(first - second)
    mean, most = (float(gap.mean()), float(gap.max())) if gap.size else (0.0, 0.0)
    if options.gap_max is not None and mean > options.gap_max:
        raise UserError(
            f"sampler and trainer differ by {mean:.4g} nats per answer token (at most {most:.4g}), "
            f"above {config}.guards.gap_max={options.gap_max:g}: they must share weights, adapter, "
            "temperature and soft prompts; or raise the limit"
        )
    return {"rollout/log_prob_gap": mean, "rollout/log_prob_gap_max": most}


def check_updates(metrics: Mapping[str, float], lower: str) -> None:
    """Refuses updates that cannot have left weights to go on with.

    Args:
      metrics: of the updates.
      lower: keys of the config that make updates smaller, for the message.

    Raises:
      UserError: names a metric that is NaN or infinite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}: the updates broke the weights; lower {lower}")


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
    return Verdict(tuple(reasons), False, state.best_round, number, state.best_gain)


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
    gain = metrics.get(options.gain_metric)
    best_gain, best_round, bad = state.best_gain, state.best_round, state.bad_rounds
    improved = False
    if gain is not None:
        gain = float(gain)
        if not math.isfinite(gain):
            reasons.append(f"the held-out gain {options.gain_metric} is {gain}")
        elif not reasons and (best_gain is None or gain > best_gain + options.min_delta):
            best_gain, best_round, bad, improved = gain, number, 0, True
        else:
            bad += 1
            if options.patience is not None and bad >= options.patience:
                told = "" if best_gain is None else f", best was {best_gain:.4g}"
                reasons.append(
                    f"no better held-out gain in {bad} rounds ({options.gain_metric} {gain:.4g}"
                    f"{told}; guards.patience={options.patience})"
                )
    tripped = (*state.tripped, *(f"round {number}: {reason}" for reason in reasons))
    after = GuardState(best_gain, best_round, bad, tripped)
    return after, Verdict(tuple(reasons), improved, best_round, number, best_gain)


def _broken(limit: Limit, given: Any, options: GuardOptions) -> str | None:
    """Why a metric trips a guard, in words; None where it does not."""
    edge, value = getattr(options, limit.option), float(given)
    if edge is None:
        return None
    value, edge = float(np.float32(value)), float(np.float32(edge))  # metrics are float32
    if not math.isfinite(value):
        return f"{limit.words} is {value} ({limit.metric}, guards.{limit.option})"
    trips = {"above": value > edge, "below": value < edge, "upto": value <= edge}[limit.side]
    sign = {"above": ">", "below": "<", "upto": "<="}[limit.side]
    return f"{limit.words} is {value:.4g} {sign} guards.{limit.option}={edge:g}" if trips else None


def _finite(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)
