"""Judges of explanations: trained language model, planted oracle, and user-defined judges.

A user-defined judge is one class or function in a module of `config.imports`. It is selected by
name in `judge.source`, with its metrics in `evaluation.json` and in the report:

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
