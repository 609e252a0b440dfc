"""Text metrics of explanations: variety, features, length, readability, overlap.

Definitions of the PEPLER family (Li et al. 2020, 2023): USR is the share of distinct texts; FMR the
share of texts that name the feature of their reference; FCR the share of all features that are
named in any text; DIV the mean number of features that two texts share (lower is better).

USR, FCR and distinct-n are properties of a whole set that change with its size, and resamples
repeat texts; so they have no interval. All others have one.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Collection, Hashable, Sequence

import numpy as np
import regex

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import (
    Estimate,
    estimate,
    exact,
    owners,
    user_sums,
    without_meaning,
)
from xrec_jax.evaluation.texts.overlap import overlap
from xrec_jax.llm.language_model import Record
from xrec_jax.text.words import WORD_OR_LINE, composed, has_blanks, is_latin, word_count

Features = Sequence[Collection[Hashable]]
NO_EASE = "Flesch's formula counts syllables of Latin script; no text is in it"
CHARACTERS = "in scripts without blanks between words each character counts as a word"
SELF_REPETITION = 4  # n of the n-grams that a text shares with others
REPETITION = 3  # n of the n-grams that a text repeats
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['\u2019\-]\w+)*")
_ANY_WORD = regex.compile(
    rf"\d+(?:[.,]\d+)+|{WORD_OR_LINE}(?:['\u2019\-]{WORD_OR_LINE})*", regex.V1
)  # words in any script
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"'\u201d\u2019)]|$)")
_VOWELS = re.compile(r"[aeiouy\u00e0-\u00ff]+")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Metrics of a set of texts.

    Attributes:
      per_text: values `[texts]` float64 by metric name; NaN if undefined for a text.
      corpus: estimate of each metric over all texts.
    """

    per_text: dict[str, np.ndarray]
    corpus: dict[str, Estimate]


def text_metrics(
    texts: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    features: Features | None = None,
    reference_features: Features | None = None,
    vocabulary: Collection[Hashable] | None = None,
    controls: bool = True,
    users: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Computes all metrics that the arguments allow.

    Args:
      texts: texts of one system.
      references: references of the same cases, for BLEU and ROUGE.
      features: features that each text names, for FMR, FCR and DIV.
      reference_features: features that each reference names, for FMR, which is undefined for a text
        whose reference names none.
      vocabulary: all features, for FCR; by default those of the references.
      controls: whether to compute BLEU and ROUGE against references of other cases.
      users: user of each text; texts of one user are resampled together (not for BLEU and ROUGE).
      resamples: bootstrap samples; 0 for no intervals.
      seed: seed of shuffling and bootstrap.

    Raises:
      UserError: if there is no text, or the lists differ in length.
    """
    if not texts:
        raise UserError("text metrics need at least one text")
    for name, values in (
        ("references", references),
        ("features", features),
        ("reference_features", reference_features),
    ):
        if values is not None and len(values) != len(texts):
            raise UserError(f"{len(texts)} texts, but {len(values)} {name}")
    words = [_words(text.lower()) for text in texts]
    per_text = {
        "text/words": np.array([word_count(text) for text in texts], np.float64),
        "text/readability": np.array([flesch(text) for text in texts]),
        "text/repetition": np.array([_repetition(row) for row in words]),
        "text/self_repetition": _self_repetition(words),
    }
    # Metrics of the whole set, which have no interval.
    distinct = {tuple(composed(text).split()) for text in texts}
    corpus = {"text/usr": exact(len(distinct) / len(texts), len(texts))}
    for order in (1, 2):
        grams = [gram for row in words for gram in _grams(row, order)]
        share = len(set(grams)) / len(grams) if grams else 0.0
        corpus[f"text/distinct_{order}"] = exact(share, len(texts))
    if features is not None:
        if reference_features is not None:
            per_text["text/fmr"] = _matched(features, reference_features)
        if vocabulary is None and reference_features is not None:
            vocabulary = set(itertools.chain.from_iterable(reference_features))
        if vocabulary:
            named = set(itertools.chain.from_iterable(features)) & set(vocabulary)
            corpus["text/fcr"] = exact(len(named) / len(set(vocabulary)), len(texts))
        if len(texts) > 1:
            corpus["text/div"] = diversity(features, users=users)
    # Means of the metrics of single texts, over the texts that have them.
    for name, figures in per_text.items():
        corpus[name] = mean_of(figures, users=users, resamples=resamples, seed=seed)
    if any(words) and np.isnan(per_text["text/readability"]).all():
        corpus["text/readability"] = without_meaning(NO_EASE)
    if not all(map(has_blanks, texts)):
        corpus["text/words"]["note"] = CHARACTERS
    if references is not None:
        each, whole = overlap(texts, references, controls=controls, resamples=resamples, seed=seed)
        per_text |= each
        corpus |= whole
    return Figures(per_text, corpus)


def mean_of(
    values: np.ndarray,
    *,
    users: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean with interval of the values that are not NaN; 0 with count 0 if there are none."""
    present = ~np.isnan(values)
    if not present.any():
        return exact(0.0, 0)
    numbers = owners(users)
    return estimate(
        values[present],
        users=None if numbers is None else numbers[present].tolist(),
        resamples=resamples,
        seed=seed,
    )


def diversity(features: Features, *, users: Sequence[Hashable] | None = None) -> Estimate:
    """DIV: mean number of features that two texts share, over all pairs of texts.

    The interval is the normal one of a U-statistic (Hoeffding 1948), from the variance over texts
    of the mean overlap with all others.

    Args:
      features: features of two texts or more.
      users: user of each text; those of one user count as one deviation.
    """
    rows = [set(row) for row in features]
    n, counts = len(rows), collections.Counter(itertools.chain.from_iterable(rows))
    # Overlap of each text with all others, from counts of features instead of pairs of texts.
    shared = np.array([sum(counts[name] - 1 for name in row) for row in rows], np.float64)
    mean = shared / (n - 1)
    value = float(mean.mean())
    if n < 3:
        return exact(value, n)
    numbers = owners(users)
    deviations = mean - value if numbers is None else user_sums(mean - value, numbers)
    count = len(deviations)
    if count < 2:
        return exact(value, count)
    # A U-statistic of pairs has the variance 4 Var / n of its projections: hence the factor 2.
    error = 1.959964 * 2 * float(np.sqrt(np.sum(deviations**2) * count / (count - 1))) / n
    return {"value": value, "low": max(0.0, value - error), "high": value + error, "count": count}


def syllables(word: str) -> int:
    """Number of syllables of an English word, by rules.

    Runs of vowels (including y) count, but not a silent ending: "e" unless after a consonant and l
    or r ("table"), "es" and "ed" unless they are pronounced ("places", "noted"). At least one; a
    number counts as one.
    """
    word = word.lower().replace("\u2019", "'").removesuffix("'s")
    count = len(_VOWELS.findall(word))
    stem, sounded = word, True
    if word.endswith("e"):
        sounded = bool(re.search(r"[^aeiouy][lr]e$", word))
        stem = word[:-1]
    elif word.endswith("es"):
        sounded = bool(re.search(r"([sxz]|ch|sh|c|g|[^aeiouy]l)es$", word))
        stem = word[:-2]
    elif word.endswith("ed"):
        sounded = bool(re.search(r"[td]ed$", word))
        stem = word[:-2]
    # A vowel before the ending forms one run with it, so nothing is subtracted ("see", "tried").
    if not sounded and stem and not _VOWELS.match(stem[-1]):
        count -= 1
    return max(1, count)


def flesch(text: str) -> float:
    """Flesch reading ease (Flesch 1948): 206.835 - 1.015 words/sentence - 84.6 syllables/word.

    About 60 to 70 is plain English; higher is easier. Words are runs of letters and digits, also
    with hyphens or apostrophes; a sentence ends in ".", "!" or "?" before white space or the end.
    NaN for a text without words, or mostly in another script than Latin.
    """
    words = _words(text)
    if not words or not is_latin(text):
        return float("nan")
    parts = [part for part in _SENTENCE_END.split(text) if _WORD.search(part)]
    spoken = sum(sum(map(syllables, word.split("-"))) for word in words)
    return 206.835 - 1.015 * len(words) / len(parts) - 84.6 * spoken / len(words)


def _words(text: str) -> list[str]:
    if text.isascii():
        return _WORD.findall(text)
    return _ANY_WORD.findall(composed(text))


def _grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def _repetition(words: Sequence[str]) -> float:
    """Share of a text's 3-grams that repeat an earlier one; 0 for shorter texts."""
    grams = _grams(words, REPETITION)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _self_repetition(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Share of each text's 4-grams that another text contains, too; 0 for shorter texts."""
    rows = [set(_grams(words, SELF_REPETITION)) for words in texts]
    counts = collections.Counter(itertools.chain.from_iterable(rows))
    return np.array(
        [sum(counts[gram] > 1 for gram in row) / len(row) if row else 0.0 for row in rows]
    )


def _matched(features: Features, reference_features: Features) -> np.ndarray:
    """Share of the reference's features that a text names: with one feature, PEPLER's 0 or 1."""
    shares = [
        len(set(named) & set(expected)) / len(set(expected)) if expected else np.nan
        for named, expected in zip(features, reference_features, strict=True)
    ]
    return np.array(shares, np.float64)


MOST_WORDS = 75  # limit of an explanation in LLMXRec's prompts


def text_figures(records: list[Record], *, resamples: int) -> dict[str, Estimate]:
    """Mean length of answers, and shares of short and of complete ones."""
    words = np.array([word_count(record["text"]) for record in records], np.float64)
    ended = np.array([record["stop"] == "eos" for record in records], np.float64)
    return {
        "text/words": estimate(words, resamples=resamples),
        "text/within_75_words": estimate((words <= MOST_WORDS) * 1.0, resamples=resamples),
        "text/ended": estimate(ended, resamples=resamples),
    }
