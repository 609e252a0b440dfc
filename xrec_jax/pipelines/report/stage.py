"""The `report` stage and `xrec report`: one HTML page about a run."""

from __future__ import annotations

from typing import Any

from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, say
from xrec_jax.parallel.distributed import is_first, meet
from xrec_jax.pipelines.audit import audit_run
from xrec_jax.pipelines.data_identity import compare, identify, recorded
from xrec_jax.pipelines.datasets import RunData, prepare
from xrec_jax.pipelines.report.page import write_report
from xrec_jax.pipelines.rundir import RunDir

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
    meet("audit written")
    _write(rundir, data)


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Audits again, and writes the page with the new figures."""
    del mesh
    audit_run(rundir, config, data)
    meet("audit written")
    _write(rundir, data)


def report(workdir: epath.PathLike, *, allow_imports: bool = False) -> None:
    """Writes `report.html` of a run, finished or not.

    Where the run's data cannot be read any more, the page leaves out how large it was.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names; the page does not need them.

    Raises:
      UserError: if this is not a run directory, a file in it is damaged, or its data changed.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = rundir.config(need_extensions=False)
    data = None
    try:
        data = prepare(config.data)
    except UserError as error:
        # The page shows what the run found, so it may do without.
        say(f"the data of the run is not at hand ({error}); the page is made without it")
    if data is not None and recorded(rundir) is not None:
        compare(rundir, identify(config, data), texts=False)
    _write(rundir, data)


def _write(rundir: RunDir, data: RunData | None) -> None:
    if is_first():
        say(f"report: {write_report(rundir, data=data)}")
    meet("report written")
