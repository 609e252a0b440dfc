"""Judges of explanations: the trained language model, the planted oracle, and a user's own.

One of a user's own is one class or function in a module that `config.imports` names; its name then
stands in `judge.source`, its figures in `evaluation.json` and in the report:

    @judges.register("shorter", label="The shorter text")
    def shorter(setup):
        def judge(prompts, first, second):
            return [1.0 if len(a) < len(b) else 0.0 for a, b in zip(first, second)]

        return judge
"""

from xrec_jax.inference.judges.base import (
    STAGE,
    Registration,
    Setup,
    check_untrained,
    explanations_of,
    find,
    judge_path,
    lead,
    names,
    of,
    register,
)
from xrec_jax.inference.judges.language import load_judge
from xrec_jax.inference.judges.planted import PLANTED, planted_judge

__all__ = [
    "PLANTED",
    "STAGE",
    "Registration",
    "Setup",
    "check_untrained",
    "explanations_of",
    "find",
    "judge_path",
    "lead",
    "load_judge",
    "names",
    "of",
    "planted_judge",
    "register",
]
