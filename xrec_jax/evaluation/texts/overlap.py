"""BLEU and ROUGE of explanations against references, and against references of other cases.

The libraries count (sacrebleu's 13a words with case; rouge-score without stemming), and the counts
of every text are kept, so that corpus BLEU has a bootstrap interval like any mean. All metrics are
in per cent, as in sacrebleu. Words are those of `text.words`, in every script: rouge-score itself
knows only a to z, and 13a takes a Chinese sentence for one word.

References of other cases are the control: texts that are all alike score high against them, too.
Only the difference to this control shows that an explanation is about its own case. A second
control scores references against each other, that is the similarity of human texts on different
cases. A system whose texts are plainer than human ones exceeds it even with wrong references, so
the second control alone does not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate, bootstrap_means, exact
from xrec_jax.text.words import spaced, words

ORDERS = 4
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def bleu_statistics(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Sufficient statistics of corpus BLEU for each text.

    Returns:
      `[texts, 10]` float64: matching n-grams (orders 1 to 4), n-grams (1 to 4), words of the text,
      words of the reference.
    """
    from sacrebleu.metrics.bleu import BLEU

    counter = BLEU(effective_order=True)  # silences a warning; counts do not depend on it
    rows = []
    for text, reference in zip(texts, references, strict=True):
        score = counter.sentence_score(spaced(text), [spaced(reference)])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.float64).reshape(len(rows), 2 * ORDERS + 2)


def bleu(statistics: np.ndarray) -> np.ndarray:
    """Corpus BLEU (Papineni et al. 2002) in per cent, with sacrebleu's default smoothing.

    The first order without a match counts half a match, the next one a quarter, and so on.

    Args:
      statistics: `[..., 10]` sums of `bleu_statistics` over a corpus.

    Returns:
      `[...]`.
    """
    statistics = np.asarray(statistics, np.float64)
    matched, total = statistics[..., :ORDERS], statistics[..., ORDERS : 2 * ORDERS]
    length, reference_length = statistics[..., -2], statistics[..., -1]
    none = matched == 0
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(total > 0, smoothed / np.where(total > 0, total, 1), 0.0)
        short = np.exp(1 - reference_length / np.where(length > 0, length, 1))
        geometric = np.exp(np.log(precision).mean(axis=-1))
    # Brevity penalty exp(1 - r / c), for texts shorter in all than their references.
    penalty = np.where(length >= reference_length, 1.0, short)
    # Without a single match the score is 0, as in sacrebleu, whatever smoothing would give.
    return np.where(matched.any(axis=-1) & (length > 0), 100 * penalty * geometric, 0.0)


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, -2 and -L F1 of each text (Lin 2004), in per cent, without stemming.

    Returns:
      `rouge_1`, `rouge_2` and `rouge_l`, each `[texts]`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE.values()), tokenizer=_Words())
    scores = [scorer.score(ref, text) for text, ref in zip(texts, references, strict=True)]
    return {
        name: 100 * np.array([score[key].fmeasure for score in scores], np.float64)
        for name, key in ROUGE.items()
    }


class _Words:
    """Tokenizer for rouge-score in every script; its own pattern is `[a-z0-9]+`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def next_reference(count: int) -> np.ndarray:
    """Control order with the reference of the next row, and the first one's for the last."""
    return np.roll(np.arange(count), -1)


def derangement(count: int, *, seed: int) -> np.ndarray:
    """Random order without fixed points: one cycle through all rows.

    Raises:
      UserError: if there are fewer than two rows.
    """
    if count < 2:
        raise UserError(f"references can be shuffled among two texts or more, not {count}")
    cycle = np.random.default_rng(seed).permutation(count)
    order = np.empty(count, np.int64)
    order[cycle] = np.roll(cycle, -1)
    return order


def overlap(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    controls: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, Estimate]]:
    """Overlap with the references, beside controls.

    Metrics are `text/bleu`, `text/bleu_1` (1-gram precision), `text/rouge_1`, `_2`, `_l`; the same
    with `control_next/` against the next row's reference, `control_shuffled/` against a shuffled
    one, and `control_references/` of each reference against the next row's; `over_control/` is the
    difference to the shuffled control, from the same resamples of texts.

    Args:
      texts: texts of one system.
      references: references of the same cases.
      controls: whether to compute the controls, if there are two texts or more.
      resamples: bootstrap samples; 0 for no intervals.
      seed: seed of shuffling and bootstrap.

    Returns:
      Metrics of each text (`text/` and `control_shuffled/rouge...`), and of the corpus.
    """
    count = len(texts)
    places = {"text": (texts, np.arange(count))}
    if controls and count > 1:
        places["control_shuffled"] = (texts, derangement(count, seed=seed))
        places["control_next"] = (texts, next_reference(count))
        places["control_references"] = (references, next_reference(count))
    # Counts of every text against each kind of reference; corpus BLEU is a function of their means.
    stacks: dict[str, np.ndarray] = {}
    per_text: dict[str, np.ndarray] = {}
    for name, (scored, order) in places.items():
        chosen = [references[place] for place in order.tolist()]
        scores = rouge(scored, chosen)
        stacks[name] = np.vstack([bleu_statistics(scored, chosen).T, *scores.values()])
        if name in ("text", "control_shuffled"):
            per_text |= {f"{name}/{key}": value for key, value in scores.items()}
    stacked = np.stack(list(stacks.values()))  # [kind of reference, statistic, text]
    values = _figures(stacked.mean(axis=-1)[..., None], count)
    sampled: dict[str, Any] = {}
    if resamples and count > 1:
        means = bootstrap_means(stacked[:, :, None, :], resamples=resamples, seed=seed)
        sampled = _figures(means, count)
    corpus: dict[str, Estimate] = {}
    for figure, value in values.items():
        for place, name in enumerate(places):
            resampled = sampled[figure][place] if sampled else None
            corpus[f"{name}/{figure}"] = _estimate(value[place, 0], resampled, count)
        if "control_shuffled" in places:
            resampled = sampled[figure][0] - sampled[figure][1] if sampled else None
            corpus[f"over_control/{figure}"] = _estimate(
                value[0, 0] - value[1, 0], resampled, count
            )
    return per_text, corpus


def _figures(means: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Metrics `[kinds, resamples]` from means `[kinds, statistics, resamples]` over the texts."""
    # BLEU is a function of sums over the corpus, ROUGE a mean over texts.
    sums = np.moveaxis(means * count, 1, -1)
    size = 2 * ORDERS + 2
    with np.errstate(invalid="ignore"):
        single = np.nan_to_num(100 * sums[..., 0] / sums[..., ORDERS])
    scores = {name: means[:, size + place] for place, name in enumerate(ROUGE)}
    return {"bleu": bleu(sums[..., :size]), "bleu_1": single, **scores}


def _estimate(value: float, resampled: np.ndarray | None, count: int) -> Estimate:
    if resampled is None:
        return exact(value, count)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high), "count": count}
