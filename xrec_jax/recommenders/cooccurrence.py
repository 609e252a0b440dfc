"""Item vectors to begin training with, from which items stand near each other in histories.

A table drawn at random learns first, over many epochs, what counting tells in a second: which
items go together. The vectors here are the leading eigenvectors of the normalised co-occurrence
matrix D^-1/2 C D^-1/2, scaled by the roots of their eigenvalues (spectral embedding; Ng, Jordan and
Weiss, NIPS 2001). Pairs k events apart count 1 / k, as in GloVe (Pennington et al., EMNLP 2014).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

_REACH = 3


def cooccurrence(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_array:
    """How often items stand within three events of each other, the nearer the more.

    Args:
      user: `[events]`, sorted.
      item: `[events]`, each user's in order of time.
      num_items: items in the catalogue.

    Returns:
      Symmetric `[items, items]`, float32, with an empty diagonal.
    """
    pairs = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for distance in range(1, _REACH + 1):
        first, second = item[:-distance], item[distance:]
        kept = (user[:-distance] == user[distance:]) & (first != second)
        weight = np.full(int(kept.sum()), 1.0 / distance, np.float32)
        shape = (num_items, num_items)
        pairs += sparse.coo_array((weight, (first[kept], second[kept])), shape=shape).tocsr()
    return sparse.csr_array(pairs + pairs.T)


def spectral_vectors(pairs: sparse.csr_array, dim: int) -> np.ndarray:
    """Leading eigenvectors of the normalised matrix times the roots of their eigenvalues.

    All vectors are then turned by one random rotation, so that no feature stands out.

    Args:
      pairs: symmetric `[items, items]`, not negative.
      dim: features.

    Returns:
      `[items, dim]` float32 rows of length 1; rows of items without a pair are 0.
    """
    items = pairs.shape[0]
    degree = np.asarray(pairs.sum(axis=1)).ravel()
    scale = sparse.diags_array((degree > 0) / np.sqrt(np.maximum(degree, 1e-30)))
    matrix = sparse.csr_array(scale @ pairs @ scale).astype(np.float32)
    generator = np.random.default_rng(0)
    if items <= 4 * dim:  # Lanczos needs many more items than vectors
        values, vectors = np.linalg.eigh(matrix.toarray())
        values, vectors = values[-dim:], vectors[:, -dim:]
    else:
        begin = generator.normal(size=items).astype(np.float32)
        values, vectors = eigsh(matrix, k=dim, which="LA", v0=begin, tol=1e-3)
    vectors = vectors * np.sqrt(np.maximum(values, 0.0))
    vectors = vectors @ np.linalg.qr(generator.normal(size=(dim, dim)))[0][: len(values)]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(degree[:, None] > 0, vectors / np.maximum(length, 1e-12), 0.0)
    return vectors.astype(np.float32)


def initial_table(
    user: np.ndarray, item: np.ndarray, *, num_items: int, rows: int, dim: int, stddev: float
) -> np.ndarray:
    """An item table to begin training with.

    Args:
      user: `[events]` users of the training events, sorted.
      item: `[events]` their items, each user's in order of time.
      num_items: items in the catalogue.
      rows: rows of the table, padding included.
      dim: features.
      stddev: root mean square of the values of each row.

    Returns:
      `[rows, dim]` float32. Items that stand beside no other are drawn from a normal distribution.
    """
    table = np.random.default_rng(1).normal(size=(rows, dim)) * stddev
    vectors = spectral_vectors(cooccurrence(user, item, num_items), dim)
    placed = np.flatnonzero(vectors.any(axis=1))
    table[placed] = vectors[placed] * (stddev * np.sqrt(dim))
    return table.astype(np.float32)
