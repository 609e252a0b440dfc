"""Sections of the report, in the order of the page."""

from __future__ import annotations

from types import ModuleType

from xrec_jax.report.sections import (
    attributes,
    audit,
    bias,
    faithfulness,
    language,
    pairs,
    ran,
    ranking,
    ratings,
    texts,
    training,
    wins,
)
from xrec_jax.report.sections.joint import summary

# Each has ID, TITLE, HOW (how a run gets it) and build(material) -> Section or None.
SECTIONS: tuple[ModuleType, ...] = (
    ran,
    ranking,
    training,
    language,
    texts,
    faithfulness,
    wins,
    ratings,
    attributes,
    bias,
    audit,
    pairs,
)

# A stage that few runs have: a page without it does not name it as missing.
PAGE: tuple[ModuleType, ...] = (*SECTIONS[:2], summary, *SECTIONS[2:])
