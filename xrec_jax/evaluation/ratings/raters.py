"""How far a rater can be trusted: gold checks, time, agreement with the others, variation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xrec_jax.evaluation.ratings.ratings import Answers, table
from xrec_jax.evaluation.statistics.intervals import Estimate, exact

# Below these a rater is worth a second look; they decide nothing by themselves.
SECONDS = 5.0
SAME = 0.9


class GoldCheck(NamedTuple):
    """What a rater said about a text that was broken on purpose.

    Attributes:
      rater: name.
      kind: how it was broken.
      value: rating of its reasonability; None where that was not asked.
      shares: of the comparisons with sound texts: 1 where the broken one was preferred, 0.5 a tie.
    """

    rater: str
    kind: str
    value: float | None
    shares: tuple[float, ...] = ()


def passed(check: GoldCheck, usual: float) -> bool:
    """Whether the rater saw that the text is broken.

    Args:
      check: the answers.
      usual: the rater's mean rating of sound texts for the same question.

    Returns:
      True if it was rated below the rater's mean and did not win most of its comparisons.
    """
    below = check.value is None or check.value < usual
    return below and (not check.shares or sum(check.shares) <= len(check.shares) / 2)


def agreement_with_others(answers: Answers, rater: str) -> tuple[float, float, int]:
    """Compares a rater with the mean of the other raters of the same text and question.

    Returns:
      Pearson's correlation, the mean over questions of those where both vary; the mean absolute
      difference; and the number of values compared. NaN where there are none.
    """
    correlations, distances = [], []
    for question in answers.questions:
        asked = (r for r in answers.ratings if r.question == question)
        names, _, values = table(asked, rows=lambda rating: rating.rater)
        if rater not in names:
            continue
        own = names.index(rater)
        others = np.delete(values, own, axis=0)
        shared = ~np.isnan(values[own]) & ~np.isnan(others).all(axis=0)
        if not shared.any():
            continue
        mine, theirs = values[own, shared], np.nanmean(others[:, shared], axis=0)
        distances.extend(np.abs(mine - theirs))
        if np.ptp(mine) > 0 and np.ptp(theirs) > 0:
            correlations.append(float(np.corrcoef(mine, theirs)[0, 1]))
    mean = lambda found: float(np.mean(found)) if found else float("nan")  # noqa: E731
    return mean(correlations), mean(distances), len(distances)


def quality(
    answers: Answers,
    *,
    gold: Iterable[GoldCheck] = (),
    seconds: Mapping[str, Sequence[float]] | None = None,
    gold_question: str = "reasonability",
) -> dict[str, dict[str, Estimate]]:
    """Figures on every rater.

    Args:
      answers: without the gold checks.
      gold: the answers to those.
      seconds: rater to the time of every screen, where it was measured.
      gold_question: the question that `GoldCheck.value` answers.

    Returns:
      Rater to `answers/ratings`, `answers/preferences`, `gold/passed` (a share, count the number of
      checks), `time/median` in seconds, `others/correlation`, `others/distance`,
      `straight/same_answers` (share of texts with one value for every question, two or more asked)
      and `straight/most_used` (share of the commonest value). What is not known is not there.
    """
    checks: dict[str, list[GoldCheck]] = defaultdict(list)
    for check in gold:
        checks[check.rater].append(check)
    out = {}
    for rater in answers.raters:
        mine = [rating for rating in answers.ratings if rating.rater == rater]
        compared = sum(preference.rater == rater for preference in answers.preferences)
        found = {"answers/ratings": exact(len(mine), len(mine))}
        found["answers/preferences"] = exact(compared, compared)
        usual = [rating.value for rating in mine if rating.question == gold_question]
        if checks[rater]:
            right = [passed(c, float(np.mean(usual)) if usual else np.inf) for c in checks[rater]]
            found["gold/passed"] = exact(float(np.mean(right)), len(right))
        if times := (seconds or {}).get(rater):
            found["time/median"] = exact(float(np.median(times)), len(times))
        correlation, distance, number = agreement_with_others(answers, rater)
        if number:
            found["others/correlation"] = exact(correlation, number)
            found["others/distance"] = exact(distance, number)
        texts: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for rating in mine:
            texts[rating.group, rating.item, rating.system].append(rating.value)
        several = [values for values in texts.values() if len(values) > 1]
        if several:
            flat = float(np.mean([len(set(values)) == 1 for values in several]))
            found["straight/same_answers"] = exact(flat, len(several))
        if mine:
            [(_, most)] = Counter(rating.value for rating in mine).most_common(1)
            found["straight/most_used"] = exact(most / len(mine), len(mine))
        out[rater] = found
    return out


def remarks(figures: Mapping[str, Estimate]) -> list[str]:
    """What is suspicious about one rater's figures, in words."""
    said = []
    gold = figures.get("gold/passed")
    if gold and gold["value"] < 1:
        missed = round((1 - gold["value"]) * gold["count"])
        said.append(f"missed {missed} of {gold['count']} gold checks")
    time = figures.get("time/median")
    if time and time["value"] < SECONDS:
        said.append(f"half of the screens took under {SECONDS:g} s")
    others = figures.get("others/correlation")
    if others and others["value"] < 0:
        said.append("rates against the others")
    most = figures.get("straight/most_used")
    same = figures.get("straight/same_answers")
    if most and most["value"] >= SAME:
        said.append(f"gave one value in {most['value']:.0%} of the answers")
    elif same and same["value"] >= SAME:
        said.append(f"gave all questions one value on {same['value']:.0%} of the texts")
    return said
