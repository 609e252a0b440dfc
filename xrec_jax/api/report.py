"""`xrec report`: writes the HTML report of a run."""

from __future__ import annotations

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import prepare
from xrec_jax.data.run_identity import compare, identify, recorded
from xrec_jax.inference import explainers
from xrec_jax.report.page import publish
from xrec_jax.run_config import read_config
from xrec_jax.stages.base import report_sections


def report(workdir: epath.PathLike, *, allow_imports: bool = False) -> None:
    """Writes `report.html` of a run, finished or not.

    Where the run's data cannot be read any more, the page leaves out how large it was.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names; the page does not need them.

    Raises:
      UserError: if this is no run directory, a file in it is damaged, or the data has changed.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    # The page is made from files, which can be read without the user's modules.
    config = read_config(rundir, need_extensions=False)
    data = None
    try:
        data = prepare(config.data)
    except UserError as error:
        # The results are in the run directory; only the size of the data set is left out.
        log(f"the data of the run is not at hand ({error}); the page is made without it")
    # Figures of one data set must not stand beside the sizes of another.
    if data is not None and recorded(rundir) is not None:
        compare(rundir, identify(config, data), texts=False)
    with explainers.stored(rundir):
        publish(rundir, data, config, more=report_sections())
