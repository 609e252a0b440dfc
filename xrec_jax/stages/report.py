"""The `report` stage and `xrec report`: one HTML page about a run."""

from __future__ import annotations

from xrec_jax.auditing.run import audit_run
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.runtime.distributed import barrier
from xrec_jax.report.page import publish
from xrec_jax.stages.base import Context, Stage, report_sections

NAME = "report"


def check(ctx: Context) -> None:
    """Raises a `UserError` if there is no other stage to report on."""
    if tuple(ctx.config.stages) == (NAME,):
        raise UserError("stage 'report' has nothing to report: name other stages in config.stages")


def run(ctx: Context, writer: MetricWriter) -> None:
    """Audits the run and writes the page; again on every rerun, as it takes seconds."""
    del writer
    audit_run(ctx.rundir, ctx.config, ctx.data)
    barrier("audit written")
    publish(ctx.rundir, ctx.data, more=report_sections())


def evaluate(ctx: Context) -> None:
    """Audits again, and writes the page with the new figures."""
    audit_run(ctx.rundir, ctx.config, ctx.data)
    barrier("audit written")
    publish(ctx.rundir, ctx.data, ctx.config, more=report_sections())


STAGE = Stage(name=NAME, check=check, run=run, evaluate=evaluate, always_runs=True)
