"""Builds fused recommenders around a trained base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.recommenders.base import Recommender
from xrec_jax.recommenders.explained.features import FeatureFused
from xrec_jax.recommenders.explained.fused import Fused

_F = TypeVar("_F", bound=Fused)


def make_fused(cls: type[_F], base: Recommender, hparams: Mapping[str, Any]) -> _F:
    """A fusion of a class around a base; refuses hyper-parameters that the class does not have."""
    sizes = {field.name for field in dataclasses.fields(Recommender)} | {"base"}
    known = [field.name for field in dataclasses.fields(cls) if field.name not in sizes]
    for key in hparams:
        if key not in known:
            raise UserError(f"fused has no hyper-parameter {key!r}{did_you_mean(key, known)}")
    if "encoding" not in hparams:
        raise UserError("fused: `encoding` is missing, the number of features of an encoding")
    return cls(base=base, num_users=base.num_users, num_items=base.num_items, **hparams)


def fuse(base: Recommender, **hparams: Any) -> Fused:
    """Wraps a recommender with a fusion of explanations.

    Args:
      base: a trained, registered recommender.
      **hparams: fields of `Fused`; `encoding` is required.

    Raises:
      UserError: for an unknown hyper-parameter, an invalid value, or a base that learns nothing.
    """
    fused: Fused = make_fused(Fused, base, hparams)
    return fused


def fuse_features(base: Recommender, **hparams: Any) -> FeatureFused:
    """As `fuse`, with plain user features in place of explanations (see `FeatureFused`)."""
    fused: FeatureFused = make_fused(FeatureFused, base, hparams)
    return fused
