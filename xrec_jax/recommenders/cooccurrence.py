"""Spectral item embeddings from co-occurrence counts, to initialise item tables with.

A drawn table learns over many epochs which items go together. Counting tells that in a second: the
rows here are the leading eigenvectors of the normalised co-occurrence matrix D^-1/2 C D^-1/2, times
the roots of their eigenvalues, scaled to one length (spectral embedding; Ng, Jordan and Weiss, NIPS
2001). Items k events apart count 1 / k, as in GloVe (Pennington et al., EMNLP 2014).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from xrec_jax.core.errors import UserError

_REACH = 3
_LEAST_SHARE = 0.1


def cooccurrence(user: np.ndarray, item: np.ndarray, num_items: int) -> sparse.csr_array:
    """Co-occurrence counts of items within three events, weighted by 1 / distance.

    Args:
      user: `[events]`, sorted.
      item: `[events]`, each user's in order of time.
      num_items: items in the catalogue.

    Returns:
      Symmetric `[items, items]`, float32, with an empty diagonal.
    """
    shape = (num_items, num_items)
    pairs = sparse.csr_array(shape, dtype=np.float32)
    for distance in range(1, _REACH + 1):
        first, second = item[:-distance], item[distance:]
        kept = (user[:-distance] == user[distance:]) & (first != second)
        weight = np.full(int(kept.sum()), 1.0 / distance, np.float32)
        pairs += sparse.coo_array((weight, (first[kept], second[kept])), shape=shape).tocsr()
    return sparse.csr_array(pairs + pairs.T)


def connected(pairs: sparse.csr_array) -> np.ndarray:
    """Items of the components that hold at least a tenth of all items with a pair, sorted.

    Every component has an eigenvalue of 1, whose vector only tells its items from the others:
    those of many small components would leave nothing for what is inside a large one.
    """
    count, label = connected_components(pairs, directed=False)
    sizes = np.bincount(label, minlength=count)
    sizes[sizes == 1] = 0
    return np.flatnonzero((sizes >= max(1, _LEAST_SHARE * sizes.sum()))[label])


def spectral_vectors(pairs: sparse.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the items of large components, see `connected`.

    All vectors are turned by one random rotation, so that no feature stands out. Neither it nor
    anything else here depends on a seed.

    Args:
      pairs: symmetric `[items, items]`, not negative.
      dim: features.

    Returns:
      Sorted items, `[rows]`, and their vectors, `[rows, dim]` float32 with a mean square of 1.

    Raises:
      UserError: if the eigenvectors do not converge.
    """
    rows = connected(pairs)
    if not len(rows):
        return rows, np.zeros((0, dim), np.float32)
    pairs = pairs[rows][:, rows]
    scale = sparse.diags_array(1.0 / np.sqrt(pairs.sum(axis=1)))
    matrix = sparse.csr_array(scale @ pairs @ scale).astype(np.float32)
    generator = np.random.default_rng(0)
    if len(rows) <= 4 * dim:  # Lanczos needs many more rows than vectors
        values, vectors = np.linalg.eigh(matrix.toarray())
        values, vectors = values[-dim:], vectors[:, -dim:]
    else:
        # Where Lanczos breaks down it is restarted with random values: `rng` makes them the same.
        begin = generator.normal(size=len(rows)).astype(np.float32)
        try:
            values, vectors = eigsh(matrix, k=dim, which="LA", v0=begin, tol=1e-3, rng=1)
        except ArpackNoConvergence as error:
            raise UserError(
                f"item_init='cooccurrence': {error.args[0]}; set item_init='normal'"
            ) from None
    vectors = vectors * np.sqrt(np.maximum(values, 0.0))
    rotation = np.linalg.qr(generator.normal(size=(dim, dim)))[0][: len(values)]
    vectors = vectors @ rotation.astype(np.float32)
    vectors *= np.sqrt(dim) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return rows, vectors.astype(np.float32)
