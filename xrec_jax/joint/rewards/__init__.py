"""Rewards of explanations: parts in a registry, and their weighted sum.

A new part is a file here, imported below, or a user's own module; see `rewards.base`.
"""

from xrec_jax.joint.rewards import judge, parts  # noqa: F401 (they register)
from xrec_jax.joint.rewards.base import (
    Evidence,
    EvidenceContext,
    Measure,
    Scored,
    evidence_of,
    get,
    metrics,
    names,
    options,
    paths,
    read_weights,
    register,
    section,
    sections,
    total,
)

__all__ = [
    "Evidence",
    "EvidenceContext",
    "Measure",
    "Scored",
    "evidence_of",
    "get",
    "metrics",
    "names",
    "options",
    "paths",
    "read_weights",
    "register",
    "section",
    "sections",
    "total",
]
