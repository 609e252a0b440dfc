"""Limits on the metrics of a round: which there are, and their values."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal, NamedTuple

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean


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
    # The policy: how far it went, whether it still explores, whether it has something to learn.
    Limit("kl_ceiling", "ppo/kl", "above", "KL to the reference, nats per answer token,"),
    Limit("min_entropy", "ppo/entropy", "below", "the policy's entropy, nats per answer token,"),
    Limit("min_reward_std", "reward/score_std", "upto", "the spread of the rewards"),
    Limit("min_ended", "rollout/ended", "below", "the share of answers that end"),
    # Its texts: signs that it says the answer, or says nothing (`joint.monitors`).
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
            # None switches a limit off; a least step that is not there makes no sense.
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
    def of(cls, values: Any) -> GuardOptions:
        """Options from a config's mapping.

        Raises:
          UserError: on an unknown key or a value that makes no sense.
        """
        # Refused here, because a misspelled limit would silently be no limit.
        known = [field.name for field in dataclasses.fields(cls)]
        chosen = dict(values.items())
        for key in chosen:
            if key not in known:
                raise UserError(f"guards: no option {key!r}{did_you_mean(key, known)}")
        return cls(**chosen)


def _finite(value: Any) -> bool:
    # `True` is a number to Python, and no limit to anybody.
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)
