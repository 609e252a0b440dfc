"""`xrec report`: one HTML page about a run."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import RUN_DIRECTORY, Verb, required


def _report(values: FlagValues) -> int:
    required(values, "workdir")
    from xrec_jax.api import report

    report.report(values.workdir, allow_imports=values.allow_imports)
    return 0


REPORT = Verb(name="report", summary="write a run's report.html", flags=RUN_DIRECTORY, run=_report)
