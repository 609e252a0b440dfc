"""Reliability of raters: gold checks, response time, agreement with others, variation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xrec_jax.evaluation.ratings.ratings import Answers, table
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

# Thresholds of remarks about a rater; they exclude nobody by themselves.
SECONDS = 5.0
SAME = 0.9


class GoldCheck(NamedTuple):
    """Answers of a rater to a text that was broken on purpose.

    Attributes:
      rater: name of the rater.
      kind: kind of corruption.
      value: rating of its reasonability; None if not asked.
      shares: outcome of the comparisons with sound texts: 1 if the broken one was preferred, 0.5
        for a tie.
    """

    rater: str
    kind: str
    value: float | None
    shares: tuple[float, ...] = ()


def passed(check: GoldCheck, usual: float) -> bool:
    """True if the rater noticed that the text is broken.

    That is, it was rated below the rater's mean and did not win most of its comparisons.

    Args:
      check: answers to the gold check.
      usual: the rater's mean rating of sound texts on the same question.
    """
    below = check.value is None or check.value < usual
    return below and (not check.shares or sum(check.shares) <= len(check.shares) / 2)


def agreement_with_others(answers: Answers, rater: str) -> tuple[float, float, int]:
    """Compares a rater with the mean of the other raters of the same text and question.

    Returns:
      Pearson's correlation, averaged over the questions on which both vary; the mean absolute
      difference; and the number of compared values. NaN if there are none.
    """
    correlations, distances = [], []
    for question in answers.questions:
        ratings = (r for r in answers.ratings if r.question == question)
        names, _, values = table(ratings, rows=lambda rating: rating.rater)
        if rater not in names:
            continue
        # Texts that the rater and at least one other have rated.
        own = names.index(rater)
        others = np.delete(values, own, axis=0)
        shared = ~np.isnan(values[own]) & ~np.isnan(others).all(axis=0)
        if not shared.any():
            continue
        own_values, mean_values = values[own, shared], np.nanmean(others[:, shared], axis=0)
        distances.extend(np.abs(own_values - mean_values))
        # The correlation with a constant is undefined.
        if np.ptp(own_values) > 0 and np.ptp(mean_values) > 0:
            correlations.append(float(np.corrcoef(own_values, mean_values)[0, 1]))
    mean = lambda numbers: float(np.mean(numbers)) if numbers else float("nan")  # noqa: E731
    return mean(correlations), mean(distances), len(distances)


def quality(
    answers: Answers,
    *,
    gold: Iterable[GoldCheck] = (),
    seconds: Mapping[str, Sequence[float]] | None = None,
    gold_question: str = "reasonability",
) -> dict[str, dict[str, Estimate]]:
    """Reliability metrics of every rater.

    Args:
      answers: answers without gold checks.
      gold: answers to gold checks.
      seconds: times of all screens by rater, if measured.
      gold_question: question of `GoldCheck.value`.

    Returns:
      For each rater `answers/ratings`, `answers/preferences`, `gold/passed` (a share, with the
      number of checks as its count), `time/median` in seconds, `others/correlation`,
      `others/distance`, `straight/same_answers` (share of texts with the same value on all of
      several questions) and `straight/most_used` (share of the most frequent value). Unknown
      metrics are missing.
    """
    checks: dict[str, list[GoldCheck]] = defaultdict(list)
    for check in gold:
        checks[check.rater].append(check)
    result = {}
    for rater in answers.raters:
        own_ratings = [rating for rating in answers.ratings if rating.rater == rater]
        compared = sum(preference.rater == rater for preference in answers.preferences)
        figures = {"answers/ratings": exact(len(own_ratings), len(own_ratings))}
        figures["answers/preferences"] = exact(compared, compared)
        # Gold checks are relative to the rater's own scale; so is straight-lining below.
        usual = [rating.value for rating in own_ratings if rating.question == gold_question]
        if checks[rater]:
            right = [passed(c, float(np.mean(usual)) if usual else np.inf) for c in checks[rater]]
            figures["gold/passed"] = exact(float(np.mean(right)), len(right))
        if times := (seconds or {}).get(rater):
            figures["time/median"] = exact(float(np.median(times)), len(times))
        correlation, distance, number = agreement_with_others(answers, rater)
        if number:
            figures["others/correlation"] = exact(correlation, number)
            figures["others/distance"] = exact(distance, number)
        texts: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for rating in own_ratings:
            texts[rating.group, rating.item, rating.system].append(rating.value)
        several = [values for values in texts.values() if len(values) > 1]
        if several:
            flat = float(np.mean([len(set(values)) == 1 for values in several]))
            figures["straight/same_answers"] = exact(flat, len(several))
        if own_ratings:
            [(_, most)] = Counter(rating.value for rating in own_ratings).most_common(1)
            figures["straight/most_used"] = exact(most / len(own_ratings), len(own_ratings))
        result[rater] = figures
    return result


def remarks(figures: Mapping[str, Estimate]) -> list[str]:
    """Remarks on suspicious metrics of a rater."""
    result = []
    gold = figures.get("gold/passed")
    if gold and gold["value"] < 1:
        missed = round((1 - gold["value"]) * gold["count"])
        result.append(f"missed {missed} of {gold['count']} gold checks")
    time = figures.get("time/median")
    if time and time["value"] < SECONDS:
        result.append(f"half of the screens took under {SECONDS:g} s")
    others = figures.get("others/correlation")
    if others and others["value"] < 0:
        result.append("rates against the others")
    most = figures.get("straight/most_used")
    same = figures.get("straight/same_answers")
    # One value in nearly all answers mostly implies the second remark, so only one is made.
    if most and most["value"] >= SAME:
        result.append(f"gave one value in {most['value']:.0%} of the answers")
    elif same and same["value"] >= SAME:
        result.append(f"gave all questions one value on {same['value']:.0%} of the texts")
    return result
