"""Bags of words: which words a text has, the encoding that needs no language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xrec_jax.text.records.profiles import content_words


def vocabulary(texts: Iterable[str], most: int) -> dict[str, int]:
    """The content words that stand in most texts, to columns; ties in alphabetical order.

    Args:
      texts: of any kind.
      most: number of words at most.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(content_words(text)))
    order = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    return {word: place for place, word in enumerate(order)}


def bag(text: str, words: Mapping[str, int]) -> np.ndarray:
    """Which words of a vocabulary a text has, at unit length: `[words]` float32."""
    vector = np.zeros(len(words), np.float32)
    vector[[words[word] for word in content_words(text) if word in words]] = 1.0
    return vector / max(1.0, float(np.linalg.norm(vector)))


class BagOfWords:
    """Encodes texts as bags of words.

    Args:
      texts: whose words are known; others are not read.
      most: number of words at most.
    """

    def __init__(self, texts: Iterable[str], most: int = 512):
        self.words = vocabulary(texts, most)

    @property
    def width(self) -> int:
        """Number of words."""
        return len(self.words)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Bags `[n, width]` float32, and which texts are not empty `[n]`."""
        bags = {text: bag(text, self.words) for text in dict.fromkeys(texts)}
        encoding = np.stack([bags[text] for text in texts]) if texts else np.zeros((0, self.width))
        return encoding.astype(np.float32), np.array([bool(text) for text in texts])
