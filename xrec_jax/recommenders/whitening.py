"""Statistics that standardise encodings: deviations of features, principal directions.

Dimension letters: n row, p part, e encoding, k component.
"""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-6  # of a standard deviation: a constant feature stays finite


def measure(encoding: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature over the present parts.

    Args:
      encoding: `[n, parts, e]` float.
      present: `[n, parts]` bool.

    Returns:
      Two float32 arrays `[parts, e]`; 0 and 1 for a part that is never present, and a deviation of
      1 for a constant feature.
    """
    present = np.asarray(present, bool)
    parts, width = encoding.shape[1:]
    mean, std = np.zeros((parts, width), np.float32), np.ones((parts, width), np.float32)
    for part in range(parts):
        rows = np.asarray(encoding[present[:, part], part], np.float64)
        if len(rows):
            mean[part], spread = rows.mean(axis=0), rows.std(axis=0)
            std[part] = np.where(spread > _FLOOR, spread, 1.0)
    return mean, std


def whitening(
    encoding: np.ndarray, present: np.ndarray, components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every feature, and the principal directions of the standardised encodings.

    Args:
      encoding: `[n, parts, e]` float.
      present: `[n, parts]` bool.
      components: k, at most e.

    Returns:
      `[parts, e]` and `[parts, e, k]` float32: `(encoding - mean) @ basis` has uncorrelated
      features of variance 1, largest original variance first. Directions without variance are 0.
    """
    present = np.asarray(present, bool)
    parts, width = encoding.shape[1:]
    mean = np.zeros((parts, width), np.float32)
    basis = np.zeros((parts, width, components), np.float32)
    for part in range(parts):
        rows = np.asarray(encoding[present[:, part], part], np.float64)
        if len(rows) < 2:
            continue
        mean[part] = rows.mean(axis=0)
        # Standardised first: the scale of a feature says nothing about its information.
        scale = rows.std(axis=0)
        scale = np.where(scale > _FLOOR, scale, np.inf)
        values, vectors = principal_directions(rows / scale, components)
        spread = np.sqrt(np.maximum(values, 0.0))
        # Whitening would blow up directions that are numerically constant.
        kept = spread > max(_FLOOR, 1e-4 * spread[0])
        vectors = np.where(kept, vectors / np.where(kept, spread, 1.0), 0.0)
        basis[part] = vectors / scale[:, None]
    return mean, basis


def principal_directions(rows: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances and directions of the leading principal components.

    Args:
      rows: `[n, e]` float64, n at least 2.
      components: k, at most e.

    Returns:
      `[k]` and `[e, k]`, largest variance first; of each direction the largest entry is positive.
    """
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False, bias=True)))
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    # Eigenvectors have an arbitrary sign.
    largest = np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])
    return values, vectors * np.sign(vectors[largest])
