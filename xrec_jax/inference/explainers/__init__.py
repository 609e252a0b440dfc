"""Explainers: template, base LM, tuned adapter, other adapters, and user-defined explainers.

A user-defined explainer is one class in a module of `config.imports`. It is selected by name in
`explain.explainers`, and the report shows its texts and metrics beside those of the others:

    @explainers.register("last_visit", label="last visit", colour="purple")
    class LastVisit(explainers.Explainer):
        def write(self, requests):
            for place, request in enumerate(requests):
                history = self.setup.builder.pair(request)["history"]
                seen = history[-1]["title"] if history else "nothing yet"
                yield place, explainers.Written(f"You visited {seen} before.")
"""

# The order of registration is that of messages and of the report.
from xrec_jax.inference.explainers import template  # noqa: F401 (it registers)

# isort: split
from xrec_jax.inference.explainers.appearance import appearance, keep, label, stored
from xrec_jax.inference.explainers.base import (
    COLOURS,
    Explainer,
    Registration,
    Setup,
    Spec,
    Written,
    find,
    names,
    register,
)
from xrec_jax.inference.explainers.language import ADAPTER, BASE, TUNED, Model
from xrec_jax.inference.explainers.loading import answers, load, record
from xrec_jax.inference.explainers.selection import (
    choose,
    folder,
    identities,
    needs_model,
    own_identity,
    parse,
    registration,
    specs,
)

__all__ = [
    "ADAPTER",
    "BASE",
    "COLOURS",
    "TUNED",
    "Explainer",
    "Model",
    "Registration",
    "Setup",
    "Spec",
    "Written",
    "answers",
    "appearance",
    "choose",
    "find",
    "folder",
    "identities",
    "keep",
    "label",
    "load",
    "names",
    "needs_model",
    "own_identity",
    "parse",
    "record",
    "register",
    "registration",
    "specs",
    "stored",
]
