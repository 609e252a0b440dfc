"""Grounding: how much of what explanations name is in their item or history (see `mentions`)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.evaluation.statistics.intervals import (
    Estimate,
    bootstrap_means,
    exact,
    owners,
    user_sums,
)
from xrec_jax.evaluation.texts.mentions import Grounder, Grounding, Kind, Span, cell_values
from xrec_jax.evaluation.texts.text_metrics import Figures, mean_of

__all__ = [
    "Grounder",
    "Grounding",
    "Kind",
    "Span",
    "cell_values",
    "ground_pairs",
    "grounding_metrics",
    "ratio_of_sums",
    "vocabulary_of",
]


def vocabulary_of(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The values of each column in a table's rows.

    Raises:
      UserError: if a row lacks a column.
    """
    # Dicts as ordered sets, so that values keep the order of the table.
    named: dict[str, dict[str, None]] = {column: {} for column in columns}
    for row in rows:
        for column in columns:
            if column not in row:
                raise UserError(f"grounding: no column {column!r}{did_you_mean(column, row)}")
            named[column].update(dict.fromkeys(cell_values(row[column])))
    return {column: tuple(values) for column, values in named.items()}


def ground_pairs(
    grounder: Grounder, pairs: Iterable[Mapping[str, Any]], texts: Sequence[str]
) -> list[Grounding]:
    """Grounds the explanations of a run's pairs.

    Args:
      grounder: of the catalogue.
      pairs: with `title`, `attributes` (row of the item) and `history`, whose entries have `title`
        and `attributes`.
      texts: one a pair.

    Raises:
      UserError: if there are not as many of both.
    """
    pairs = list(pairs)
    if len(pairs) != len(texts):
        raise UserError(f"grounding: {len(pairs)} pairs, but {len(texts)} texts")
    return [
        grounder.ground(
            text,
            item=pair["title"],
            history=[entry["title"] for entry in pair["history"]],
            item_attributes=pair["attributes"],
            history_attributes=[entry["attributes"] for entry in pair["history"]],
        )
        for pair, text in zip(pairs, texts, strict=True)
    ]


def grounding_metrics(
    groundings: Sequence[Grounding],
    *,
    users: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Figures of the groundings of a system's texts.

    Distinct names count once a text. `item_named`: share of texts that name the item.
    `history_cited`: titles of the history in a text. `hallucinated_titles`: of the titles named
    beside the item, the share that the history does not have, unknown ones included; over all texts
    together, as `attributes_precision`, the share of the named values that item or history has.

    Args:
      groundings: one a text.
      users: whose case each text is; texts of one user are drawn together.
      resamples: bootstrap samples of texts.
      seed: of the bootstrap.

    Raises:
      UserError: if there is none.
    """
    if not groundings:
        raise UserError("grounding needs at least one text")

    def count(*kinds: Kind) -> np.ndarray:
        return np.array([len(one.names(*kinds)) for one in groundings], np.float64)

    cited, absent, unknown = count("history"), count("catalogue"), count("unknown")
    true, of_item = count("item_attribute", "history_attribute"), count("item_attribute")
    named = count("item_attribute", "history_attribute", "absent_attribute")
    per_text = {
        "grounding/item_named": count("item"),
        "grounding/history_cited": cited,
        "grounding/absent_titles": absent,
        "grounding/unknown_titles": unknown,
        "grounding/attributes": named,
        "grounding/attributes_of_item": of_item,
    }
    corpus = {
        name: mean_of(values, users=users, resamples=resamples, seed=seed)
        for name, values in per_text.items()
    }
    # Shares are taken over all texts together: one text names too few for a stable share.
    ratios = {
        "grounding/hallucinated_titles": (absent + unknown, cited + absent + unknown),
        "grounding/attributes_precision": (true, named),
    }
    for name, (above, below) in ratios.items():
        with np.errstate(invalid="ignore"):
            # A text that names nothing has no share: NaN, not 0.
            per_text[name] = above / np.where(below > 0, below, np.nan)
        corpus[name] = ratio_of_sums(above, below, users=users, resamples=resamples, seed=seed)
    return Figures(per_text, corpus)


def ratio_of_sums(
    above: np.ndarray,
    below: np.ndarray,
    *,
    users: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`sum(above) / sum(below)` with a bootstrap interval over cases; 0 of nothing, with count 0.

    Args:
      above: `[cases]`.
      below: `[cases]`, not negative; `count` is the number of those above 0, of users where
        `users` are given.
      users: whose case each is; cases of one user are drawn together.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws.
    """
    numbers = owners(users)
    count = int(np.sum((below if numbers is None else user_sums(below, numbers)) > 0))
    if not count:
        return exact(0.0, 0)
    value = float(above.sum() / below.sum())
    if not resamples or count < 2:
        return exact(value, count)
    top, bottom = bootstrap_means(
        np.stack([above, below])[:, None, :], users=numbers, resamples=resamples, seed=seed
    )
    # A resample may hold only cases that name nothing.
    drawn = top[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "count": count}
