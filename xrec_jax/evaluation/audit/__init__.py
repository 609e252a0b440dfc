"""Audits: faults that would make a figure wrong or unfair, counted, shown by example, with advice.

Checks are pure functions that return a `Finding`; each module holds those of one subject and a
`check_*` function that runs them all. `collect` sorts the outcomes of any number of them.
"""

from xrec_jax.evaluation.audit.data import check_dataset
from xrec_jax.evaluation.audit.findings import SEVERITIES, Audit, Finding, Protocol, collect
from xrec_jax.evaluation.audit.split import check_split
from xrec_jax.evaluation.audit.times import check_times

__all__ = [
    "SEVERITIES",
    "Audit",
    "Finding",
    "Protocol",
    "check_dataset",
    "check_split",
    "check_times",
    "collect",
]
