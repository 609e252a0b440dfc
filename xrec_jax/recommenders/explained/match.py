"""Match head: what a text says meets what an item is, by a product that all items share.

A residual of a user state (`fusion`) has to learn for every word in which direction of the id table
the items lie that it speaks of. A match needs no such direction: the encodings q_p of a text's
parts (why, why not) and the encoding v_i of an item's own text, by the same encoder, add

    sum_p q_p' (5 diag(w_p) + M_p / 5) v_i

to the score of item i, where w_p and M_p are learned from all items together and begin as zero, so
that nothing is added at first. With M_p = 0 it is a weighted inner product: what is spoken of is
looked for among the items; M_p learns what else goes with it, such as other words for it. The
factors set how fast each is learned, as Adam moves all parameters alike: w_p is few numbers that
every text teaches, M_p many that a few texts overfit.

Both encodings are projected on the principal directions in which the texts of *items* differ, since
others could not tell items apart; all k of them together are scaled to a root mean square of 1.
Items without a text have v_i = 0 and keep their score.

Dimension letters: n row, i item, p part, e encoding, k feature of the match.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xrec_jax.parallel.mesh import logical
from xrec_jax.recommenders.whitening import principal_directions

_FLOOR = 1e-6  # of a root mean square
WEIGHT_UNIT, KERNEL_UNIT = 5.0, 0.2


def item_projection(encoding: np.ndarray, present: np.ndarray, features: int) -> np.ndarray:
    """The directions in which items differ: `[e, k]` float32, orthonormal.

    Args:
      encoding: `[i, e]` encodings of the items' texts.
      present: `[i]` bool, items with a text.
      features: k, at most e.
    """
    rows = np.asarray(encoding[present], np.float64)
    if len(rows) < 2:
        return np.eye(encoding.shape[1], features, dtype=np.float32)
    # Not whitened: a rare word is no better a reason than a common one.
    return principal_directions(rows, features)[1].astype(np.float32)


def item_vectors(encoding: np.ndarray, present: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """The items as the match sees them: `[i, k]` float32.

    Args:
      encoding: `[i, e]` encodings of the items' texts.
      present: `[i]` bool, items with a text.
      projection: `[e, k]`, of `item_projection`.

    Returns:
      Vectors with a mean of 0 and a root mean square of 1 over items with a text, else zeros.
    """
    vectors = np.zeros((len(encoding), projection.shape[1]), np.float32)
    rows = np.asarray(encoding[present], np.float64)
    if len(rows) > 1:
        own = (rows - rows.mean(axis=0)) @ projection
        spread = np.sqrt(np.mean(np.square(own)))
        vectors[present] = own / (spread if spread > _FLOOR else np.inf)
    return vectors


def query_scale(
    encoding: np.ndarray, present: np.ndarray, mean: np.ndarray, projection: np.ndarray
) -> np.ndarray:
    """Factors that give the projected parts a root mean square of 1: `[p, 1]` float32.

    Args:
      encoding: `[n, p, e]`.
      present: `[n, p]` bool; a part that is never present has the factor 0.
      mean: `[p, e]` of the present parts.
      projection: `[e, k]`, of `item_projection`.
    """
    scale = np.zeros((encoding.shape[1], 1), np.float32)
    for part in range(len(scale)):
        rows = encoding[present[:, part], part] - mean[part]
        spread = np.sqrt(np.mean(np.square(rows @ projection))) if len(rows) else 0.0
        scale[part] = 1.0 / spread if spread > _FLOOR else 0.0
    return scale


class Match(nn.Module):
    """The learned product of a match, from the side of the text.

    Attributes:
      parts: number of parts of an explanation.
      features: k.
    """

    parts: int
    features: int

    @nn.compact
    def __call__(self, query: jax.Array) -> jax.Array:
        """What the items' vectors are multiplied by.

        Args:
          query: `[..., p, k]`, zeros for an absent part.

        Returns:
          `[..., k]`, exactly zero where all parts are absent.
        """
        zeros = nn.initializers.zeros
        shape = self.parts, self.features
        weight = self.param("weight", logical(zeros, None, "features"), shape)
        kernel = self.param(
            "kernel", logical(zeros, None, "hidden", "features"), (*shape, self.features)
        )
        mixed = jnp.einsum("...pk,pkl->...l", query, KERNEL_UNIT * kernel)
        return jnp.sum(query * (WEIGHT_UNIT * weight), axis=-2) + mixed
