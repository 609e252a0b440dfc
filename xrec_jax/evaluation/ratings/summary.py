"""Summary of ratings: means, differences, preferences, agreement, with intervals over items.

All functions take `clusters` of items that the bootstrap resamples together (see `copies`): a row
that was copied to fifty items is one answer, not fifty. By default each item is its own cluster.
Counts are numbers of clusters.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.evaluation.judging.comparisons import Comparisons
from xrec_jax.evaluation.judging.ratios import pair_figures, tie_rates, win_ratios
from xrec_jax.evaluation.judging.resampling import clustered_mean, clustered_ratios, sums
from xrec_jax.evaluation.judging.strengths import strengths
from xrec_jax.evaluation.ratings.ratings import PREFERENCE, Answers, Preference, Rating, table
from xrec_jax.evaluation.statistics.agreement import alpha
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.statistics.significance import holm, sign_flip

Named = dict[str, dict[str, Estimate]]
Clusters = Mapping[tuple[str, str], int]  # (group, item) to a number from 0


def _cluster_of(items: Iterable[tuple[str, str]], clusters: Clusters | None) -> np.ndarray:
    """Cluster of each item, `[items]`."""
    items = list(items)
    return np.array([n if clusters is None else clusters[item] for n, item in enumerate(items)])


def means(
    ratings: Sequence[Rating],
    *,
    clusters: Clusters | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Named:
    """Mean rating of every system and question: `{system: {"QUESTION/mean": ...}}`.

    Intervals resample whole items, because the values of one item are dependent; the raters are
    fixed.
    """
    items: dict[tuple[str, str], int] = {}
    values_of: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for rating in ratings:
        item = items.setdefault((rating.group, rating.item), len(items))
        values_of[rating.system, rating.question][item].append(rating.value)
    # Sums beside counts: in their ratio every rating weighs alike, however many an item has.
    totals, counts = np.zeros((2, len(items), len(values_of)))
    for column, values in enumerate(values_of.values()):
        for item, own_values in values.items():
            totals[item, column], counts[item, column] = sum(own_values), len(own_values)
    if not items:
        return {}
    result: Named = defaultdict(dict)
    estimated = clustered_ratios(
        totals, counts, _cluster_of(items, clusters), resamples=resamples, seed=seed
    )
    for (system, question), mean in zip(values_of, estimated, strict=True):
        result[system][f"{question}/mean"] = mean
    return dict(result)


def differences(
    ratings: Sequence[Rating],
    *,
    clusters: Clusters | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Named:
    """Paired differences: `{"A vs B": {"QUESTION/difference": ..., "QUESTION/p": ...}}`.

    An item's ratings by several raters are averaged first. p is two-sided, of a paired
    randomisation test that flips clusters of items, and adjusted over the pairs of systems of a
    question (Holm).
    """
    cells: dict[str, dict[str, dict[tuple[str, str], list[float]]]] = {}
    for rating in ratings:
        own_values = cells.setdefault(rating.question, {}).setdefault(
            rating.system, defaultdict(list)
        )
        own_values[rating.group, rating.item].append(rating.value)
    result: Named = defaultdict(dict)
    for question, systems in cells.items():
        p_values, shared = {}, {}
        for first, second in itertools.combinations(systems, 2):
            both = [item for item in systems[first] if item in systems[second]]
            if not both:
                continue
            a, b = (np.array([np.mean(systems[s][item]) for item in both]) for s in (first, second))
            name = f"{first} vs {second}"
            cluster = np.unique(_cluster_of(both, clusters), return_inverse=True)[1]
            difference = clustered_mean(a - b, cluster, resamples=resamples, seed=seed)
            together = sums(a - b, cluster, cluster.max() + 1)
            result[name][f"{question}/difference"] = difference
            p_values[name] = sign_flip(together, np.zeros(len(together)), seed=seed)
            shared[name] = difference["count"]
        for name, p in holm(p_values).items():
            result[name][f"{question}/p"] = exact(p, shared[name])
    return dict(result)


def comparisons(answers: Sequence[Preference], *, clusters: Clusters | None = None) -> Comparisons:
    """Converts preferences to a table of comparisons, in which items take the place of prompts."""
    systems = list(dict.fromkeys(name for a in answers for name in (a.first, a.second)))
    items: dict[tuple[str, str], int] = {}
    prompts = [
        items.setdefault((a.group, a.item), len(items))
        if clusters is None
        else clusters[a.group, a.item]
        for a in answers
    ]
    share = np.array([a.share for a in answers], np.float64)
    return Comparisons(
        tuple(systems),
        np.array(prompts, np.int64),
        np.array([systems.index(a.first) for a in answers], np.int64),
        np.array([systems.index(a.second) for a in answers], np.int64),
        # A person is asked in one order only, which stands for both.
        share,
        1 - share,
        np.zeros((len(answers), 2)),
    )


def preferences(
    answers: Sequence[Preference],
    *,
    clusters: Clusters | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Named:
    """Win ratios with ties counted half, tie rates, and Bradley-Terry strengths.

    Returns:
      `{"A vs B": {"win/ratio": share of A, "win/ties": ...}}` for every compared pair, with A the
      system that occurs first; and `{system: {"win/ratio", "win/ties", "bradley_terry/strength"}}`
      over all comparisons of a system.
    """
    if not answers:
        return {}
    table = comparisons(answers, clusters=clusters)
    options: Any = {"resamples": resamples, "seed": seed}
    won, ties = win_ratios(table, **options), tie_rates(table, **options)
    strength = strengths(table, **options)
    result: Named = {
        name: {
            "win/ratio": won[name],
            "win/ties": ties[name],
            "bradley_terry/strength": strength[name],
        }
        for name in table.systems
    }
    # Consistency is left out: it compares two orders, and a person is asked in one.
    for name, figures in pair_figures(table, **options).items():
        result[name] = {metric: figures[metric] for metric in ("win/ratio", "win/ties")}
    return result


def agreement(
    answers: Answers, *, clusters: Clusters | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Krippendorff's alpha of every question; empty with fewer than two raters.

    Returns:
      `QUESTION/alpha_ordinal` and `QUESTION/alpha_interval`; for comparisons
      `preference/alpha_nominal` and `preference/alpha_ordinal`, with ties in the middle.
    """
    if len(answers.raters) < 2:
        return {}
    compared = [
        # In a canonical direction, so that equal opinions are equal values.
        Rating(
            p.rater,
            p.item,
            "\t".join(sorted((p.first, p.second))),
            PREFERENCE,
            p.share if p.first < p.second else 1 - p.share,
            p.group,
        )
        for p in answers.preferences
    ]
    result = {}
    for question in (*answers.questions, *([PREFERENCE] if compared else [])):
        question_ratings: Iterable[Rating] = (
            compared
            if question == PREFERENCE
            else (r for r in answers.ratings if r.question == question)
        )
        _, units, values = table(question_ratings, rows=lambda rating: rating.rater)
        for level in ("nominal" if question == PREFERENCE else "interval", "ordinal"):
            result[f"{question}/alpha_{level}"] = alpha(
                values,
                level=level,  # type: ignore[arg-type]
                # Texts about one item are rated alike, so items are drawn, not texts.
                clusters=[unit[:2] if clusters is None else clusters[unit[:2]] for unit in units],
                resamples=resamples,
                seed=seed,
            )
    return result


def summary(
    answers: Answers, *, clusters: Clusters | None = None, resamples: int = 1000, seed: int = 0
) -> Named:
    """All metrics of systems, of pairs of systems ("A vs B"), and of the raters' "agreement".

    Args:
      answers: answers of one group.
      clusters: cluster of each item.
      resamples: bootstrap samples; 0 for no intervals.
      seed: seed of the resamples.

    Returns:
      The merged results of `means`, `differences`, `preferences` and `agreement`.
    """
    options: Any = {"clusters": clusters, "resamples": resamples, "seed": seed}
    result: Named = {}
    for part_result in (
        means(answers.ratings, **options),
        differences(answers.ratings, **options),
        preferences(answers.preferences, **options),
    ):
        for name, figures in part_result.items():
            result.setdefault(name, {}).update(figures)
    agreed = agreement(answers, **options)
    return result | ({"agreement": agreed} if agreed else {})
