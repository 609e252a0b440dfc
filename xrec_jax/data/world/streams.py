"""Independent random streams, one for each purpose and row.

A stream is Philox keyed by (seed, purpose) with (row, sub) in the upper words of its counter. So no
number depends on how many another purpose, user or place has used. Only raw 64-bit words are taken
from the generator and converted here: the distribution methods of `numpy.random.Generator` may
change between NumPy releases, the words may not.
"""

from __future__ import annotations

import enum
import math

import numpy as np


class Purpose(enum.IntEnum):
    """Purpose of a stream. The numbers are part of the world's definition: never reuse one."""

    PLACES = 1
    PEOPLE = 2
    PROFILE_TASTES = 3
    TASTES = 4
    TIMES = 5
    CHOICE_OF_KIND = 6
    CHOICE_OF_PLACE = 7
    IDIOSYNCRATIC = 8
    ITEM_TEXT = 9
    USER_TEXT = 10
    NAMES = 11
    REVIEWS = 12
    ABOUT = 13


def uniform(
    seed: int, purpose: Purpose, shape: int | tuple[int, ...], *, row: int = 0, sub: int = 0
) -> np.ndarray:
    """Draws from the open interval (0, 1); a longer draw begins with the shorter one.

    Args:
      seed: seed of the world.
      purpose: purpose of the stream.
      shape: shape of the result, filled in row-major order.
      row: first index of the stream, such as the user.
      sub: second index, such as the state of that user.

    Returns:
      `shape` float64.
    """
    size = math.prod((shape,) if isinstance(shape, int) else shape)
    bits = np.random.Philox(
        key=np.array([seed, int(purpose)], np.uint64), counter=np.array([0, row, sub, 0], np.uint64)
    )
    # 52 bits and a half: every value is exact and neither 0 nor 1 can occur.
    return (((bits.random_raw(size) >> np.uint64(12)) + 0.5) * 2.0**-52).reshape(shape)


def to_normal(uniforms: np.ndarray) -> np.ndarray:
    """Standard normal values from uniform ones by the Box-Muller transform.

    Args:
      uniforms: `[..., 2 n]` in (0, 1); columns 2j and 2j+1 make values 2j and 2j+1.

    Returns:
      `[..., 2 n]` float64.
    """
    radius = np.sqrt(-2.0 * np.log(uniforms[..., 0::2]))
    angle = (2.0 * np.pi) * uniforms[..., 1::2]
    values = np.empty_like(uniforms)
    np.multiply(radius, np.cos(angle), out=values[..., 0::2])
    np.multiply(radius, np.sin(angle), out=values[..., 1::2])
    return values


def to_category(uniforms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Categories from uniform values by inversion.

    Args:
      uniforms: `[n]` in (0, 1).
      weights: `[c]`, or `[n, c]` with separate weights for each value; not negative.

    Returns:
      `[n]` int64 in `[0, c)`.
    """
    bounds = np.cumsum(np.broadcast_to(weights, (len(uniforms), np.shape(weights)[-1])), axis=1)
    return (uniforms[:, None] * bounds[:, -1:] >= bounds[:, :-1]).sum(axis=1)


def to_gumbel(uniforms: np.ndarray) -> np.ndarray:
    """Standard Gumbel values, -log(-log(U)), of the same shape."""
    return -np.log(-np.log(uniforms))
