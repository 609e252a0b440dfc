"""`xrec run` and `xrec evaluate`: all stages of a config; what a finished run is worth."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import CONFIG, RUN_DIRECTORY, WORKDIR, Verb, required


def _run(values: FlagValues) -> int:
    required(values, "config", "workdir")
    from xrec_jax.api import run

    run.run(values.config, values.workdir)
    return 0


def _evaluate(values: FlagValues) -> int:
    required(values, "workdir")
    from xrec_jax.api import run

    run.evaluate(values.workdir, allow_imports=values.allow_imports)
    return 0


RUN = Verb(
    name="run",
    summary="run every stage of a config; a rerun resumes",
    flags=(CONFIG, WORKDIR),
    run=_run,
)
EVALUATE = Verb(
    name="evaluate",
    summary="evaluate a finished run again, from its checkpoints",
    flags=RUN_DIRECTORY,
    run=_evaluate,
)
