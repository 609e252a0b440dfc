"""What ratings say: means, differences, preferences, agreement, with intervals over items.

Every function takes `clusters`, which items a bootstrap draws as one (see `rating_copies`): a row
that was copied to fifty items is one answer, not fifty. Without it each item is drawn by itself.
Counts are of what is drawn.
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


def _drawn(items: Iterable[tuple[str, str]], clusters: Clusters | None) -> np.ndarray:
    """What each item is drawn with: `[items]`."""
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

    Intervals draw whole items, because the values of one item hang together. Raters are taken as
    they are.
    """
    items: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        case = items.setdefault((rating.group, rating.item), len(items))
        found[rating.system, rating.question][case].append(rating.value)
    totals, counts = np.zeros((2, len(items), len(found)))
    for column, values in enumerate(found.values()):
        for case, given in values.items():
            totals[case, column], counts[case, column] = sum(given), len(given)
    if not items:
        return {}
    out: Named = defaultdict(dict)
    estimated = clustered_ratios(
        totals, counts, _drawn(items, clusters), resamples=resamples, seed=seed
    )
    for (system, question), mean in zip(found, estimated, strict=True):
        out[system][f"{question}/mean"] = mean
    return dict(out)


def differences(
    ratings: Sequence[Rating],
    *,
    clusters: Clusters | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Named:
    """Paired differences: `{"A vs B": {"QUESTION/difference": ..., "QUESTION/p": ...}}`.

    An item's ratings by several raters are averaged first. p is two-sided, of a paired
    randomisation test that turns items drawn as one together, and adjusted over the pairs of
    systems of a question (Holm).
    """
    cells: dict[str, dict[str, dict[tuple[str, str], list[float]]]] = {}
    for rating in ratings:
        of = cells.setdefault(rating.question, {}).setdefault(rating.system, defaultdict(list))
        of[rating.group, rating.item].append(rating.value)
    out: Named = defaultdict(dict)
    for question, systems in cells.items():
        p_values, shared = {}, {}
        for first, second in itertools.combinations(systems, 2):
            both = [item for item in systems[first] if item in systems[second]]
            if not both:
                continue
            a, b = (np.array([np.mean(systems[s][item]) for item in both]) for s in (first, second))
            name = f"{first} vs {second}"
            drawn = np.unique(_drawn(both, clusters), return_inverse=True)[1]
            apart = clustered_mean(a - b, drawn, resamples=resamples, seed=seed)
            together = sums(a - b, drawn, drawn.max() + 1)
            out[name][f"{question}/difference"] = apart
            p_values[name] = sign_flip(together, np.zeros(len(together)), seed=seed)
            shared[name] = apart["count"]
        for name, p in holm(p_values).items():
            out[name][f"{question}/p"] = exact(p, shared[name])
    return dict(out)


def comparisons(answers: Sequence[Preference], *, clusters: Clusters | None = None) -> Comparisons:
    """Preferences as the table that judges' verdicts are kept in; items are its prompts."""
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
        # A person is asked once, so the other order has nothing new to say.
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
    """Shares of comparisons won, ties counted half, and of ties; Bradley-Terry strengths.

    Returns:
      `{"A vs B": {"win/ratio": share of A, "win/ties": ...}}` for every pair that was compared, A
      the system that was met first; and `{system: {"win/ratio", "win/ties",
      "bradley_terry/strength"}}` over all of a system's comparisons.
    """
    if not answers:
        return {}
    table = comparisons(answers, clusters=clusters)
    draws: Any = {"resamples": resamples, "seed": seed}
    won, ties = win_ratios(table, **draws), tie_rates(table, **draws)
    strength = strengths(table, **draws)
    out: Named = {
        name: {
            "win/ratio": won[name],
            "win/ties": ties[name],
            "bradley_terry/strength": strength[name],
        }
        for name in table.systems
    }
    for name, figures in pair_figures(table, **draws).items():
        out[name] = {metric: figures[metric] for metric in ("win/ratio", "win/ties")}
    return out


def agreement(
    answers: Answers, *, clusters: Clusters | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Krippendorff's alpha of every question, where more than one person rated.

    Returns:
      `QUESTION/alpha_ordinal` and `QUESTION/alpha_interval`; for comparisons
      `preference/alpha_nominal` and `preference/alpha_ordinal`, in which a tie lies between.
    """
    if len(answers.raters) < 2:
        return {}
    compared = [
        # One direction for both orders, so that the same opinion is the same value.
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
    out = {}
    for question in (*answers.questions, *([PREFERENCE] if compared else [])):
        asked: Iterable[Rating] = (
            compared
            if question == PREFERENCE
            else (r for r in answers.ratings if r.question == question)
        )
        _, units, values = table(asked, rows=lambda rating: rating.rater)
        for level in ("nominal" if question == PREFERENCE else "interval", "ordinal"):
            out[f"{question}/alpha_{level}"] = alpha(
                values,
                level=level,  # type: ignore[arg-type]
                clusters=[unit[:2] if clusters is None else clusters[unit[:2]] for unit in units],
                resamples=resamples,
                seed=seed,
            )
    return out


def summary(
    answers: Answers, *, clusters: Clusters | None = None, resamples: int = 1000, seed: int = 0
) -> Named:
    """Everything that the answers say about systems, pairs of them ("A vs B"), and "agreement".

    Args:
      answers: of one group.
      clusters: items that are drawn as one.
      resamples: bootstrap samples; 0 for no intervals.
      seed: of the draws.

    Returns:
      What `means`, `differences`, `preferences` and `agreement` return, in one mapping.
    """
    draws: Any = {"clusters": clusters, "resamples": resamples, "seed": seed}
    out: Named = {}
    for found in (
        means(answers.ratings, **draws),
        differences(answers.ratings, **draws),
        preferences(answers.preferences, **draws),
    ):
        for name, figures in found.items():
            out.setdefault(name, {}).update(figures)
    agreed = agreement(answers, **draws)
    return out | ({"agreement": agreed} if agreed else {})
