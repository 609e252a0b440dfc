"""The `report` stage and `xrec report`: one HTML page about a run."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from xrec_jax.auditing.run import audit_run
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import barrier
from xrec_jax.data.run_data import RunData
from xrec_jax.report.page import publish

STAGE = "report"


def check(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Raises a `UserError` if there is no other stage to report on."""
    del data, mesh, rundir
    if tuple(config.stages) == (STAGE,):
        raise UserError("stage 'report' has nothing to report: name other stages in config.stages")


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Audits the run and writes the page; again on every rerun, as it takes seconds."""
    del mesh, writer
    audit_run(rundir, config, data)
    barrier("audit written")
    publish(rundir, data)


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Audits again, and writes the page with the new figures."""
    del mesh
    audit_run(rundir, config, data)
    barrier("audit written")
    publish(rundir, data, config)
