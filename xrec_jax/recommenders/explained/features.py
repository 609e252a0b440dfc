"""Fusion of plain user features in place of explanations: the control of `fused`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from xrec_jax.recommenders.base import check_choice
from xrec_jax.recommenders.explained.fused import Fused


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureFused(Fused):
    """The same fusion with plain user features in place of an explanation.

    The control for explanations that merely carry attributes. `encoding` is the number of features;
    batches have `features` `[b, encoding]` (or `[b, n, encoding]` with candidates), frozen arrays
    for ranking `features` `[users, encoding]`; `mean` and `std` are `[1, encoding]`. All features
    are one part, so `sides` must be "both".
    """

    parts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("feature fusion", "sides", self.sides, ("both",))

    def _encodings(self, source):
        if "features" not in source:
            return None
        features = source["features"][..., None, :]
        return features, jnp.ones(features.shape[:-1], bool)
