"""Sections of the report in the order of the page."""

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
    recommenders,
    texts,
    training,
    wins,
)
from xrec_jax.report.sections.joint import summary

# Each has ID, TITLE, HOW (how to get it) and build(run_files) -> Section or None.
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

# The joint section is of a stage that few runs have, that of several recommenders of a key that few
# set, so they are not listed as missing.
PAGE: tuple[ModuleType, ...] = (*SECTIONS[:2], summary, *SECTIONS[2:6], recommenders, *SECTIONS[6:])
