"""`xrec audit`: faults of data, split and texts, of a config or of a run."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import ALLOW_IMPORTS, CONFIG, Verb, required, text
from xrec_jax.core.errors import UserError


def _audit(values: FlagValues) -> int:
    from xrec_jax.api import audit

    if values.workdir:
        # A run has its own config; a second one would leave open which of the two is meant.
        if values["config"].value is not None:
            raise UserError("--config and --workdir: give one of them, what to look at")
        return audit.audit_workdir(
            values.workdir, output=values.output, allow_imports=values.allow_imports
        )
    required(values, "config")
    return audit.audit(values.config, output=values.output)


AUDIT = Verb(
    name="audit",
    summary="look for faults in data, split, prompts and judgements",
    flags=(
        CONFIG,
        text("workdir", "a run to look at instead: its data, sets and explanations"),
        text("output", "also write the findings as JSON"),
        ALLOW_IMPORTS,
    ),
    run=_audit,
)
