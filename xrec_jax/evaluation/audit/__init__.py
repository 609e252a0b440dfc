"""Audits: counts of faults that would make a result wrong or unfair, with examples and advice.

Checks are pure functions that return a `Finding`; each module holds those of one subject and a
`check_*` function that runs all of them. `collect` sorts the results.
"""

from xrec_jax.evaluation.audit.answers import Answer, check_answers, check_ids
from xrec_jax.evaluation.audit.attributes import check_attributes, read_attributes
from xrec_jax.evaluation.audit.comparisons import Judgement, read_judgements
from xrec_jax.evaluation.audit.contents import PromptContent, read_content, read_contents
from xrec_jax.evaluation.audit.data import check_dataset
from xrec_jax.evaluation.audit.findings import SEVERITIES, Audit, Finding, Protocol, collect
from xrec_jax.evaluation.audit.judgements import check_judgements, shown_in_one_order
from xrec_jax.evaluation.audit.prompts import check_prompts, other_form, overlap, repeated
from xrec_jax.evaluation.audit.ratings import check_ratings
from xrec_jax.evaluation.audit.split import check_split
from xrec_jax.evaluation.audit.times import check_times

__all__ = [
    "SEVERITIES",
    "Answer",
    "Audit",
    "Finding",
    "Judgement",
    "PromptContent",
    "Protocol",
    "check_answers",
    "check_attributes",
    "check_dataset",
    "check_ids",
    "check_judgements",
    "check_prompts",
    "check_ratings",
    "check_split",
    "check_times",
    "collect",
    "other_form",
    "overlap",
    "read_attributes",
    "read_content",
    "read_contents",
    "read_judgements",
    "repeated",
    "shown_in_one_order",
]
