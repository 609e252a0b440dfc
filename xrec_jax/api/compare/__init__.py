"""`xrec compare`: how runs differ, with intervals, and a fair win ratio of their explanations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from xrec_jax.api.compare.explanations import compare_explanations, import_judge
from xrec_jax.api.compare.figures import compare_figures, figures_text
from xrec_jax.api.compare.runs import open_runs
from xrec_jax.core import outputs
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.evaluation import judging


def compare(
    workdirs: Sequence[epath.PathLike],
    *,
    output: epath.PathLike = "",
    judge: judging.Judge | str | None = None,
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Compares runs; every difference is of a run minus the first.

    Ranking figures of a system that both have are compared user by user, where the runs tested the
    same users on the same items, by id. All other figures stand side by side. Explanations of the
    pairs of user and item that all runs explain are judged in both orders.

    Args:
      workdirs: two run directories or more.
      output: a JSON file for the result; "" for none.
      judge: any judge, or "module:function" naming one; default: that of the first run.
      allow_imports: import the modules that the runs' configs name.

    Returns:
      `runs` (name to path), `figures` ([stage][system][metric] = {"runs": {name: Estimate},
      "differences": {name: Estimate or None}}), and `explanations`: None, or `figures` (as in
      `evaluation.json`), `matrix` (points of each system over each), `note`.

    Raises:
      UserError: if there are fewer than two runs, one is none, or the data of one changed.
    """
    if output:
        outputs.check_output(output)
    runs = open_runs(workdirs, allow_imports=allow_imports)
    # Imported before anything is computed: a wrong name is reported at once.
    judge = import_judge(judge) if isinstance(judge, str) and judge else judge
    result: dict[str, Any] = {
        "runs": {run.name: os.fspath(run.rundir.path) for run in runs},
        "figures": compare_figures(runs),
    }
    if is_primary():
        log(figures_text(runs, result["figures"]))
    # Last, as it may load a language model: the figures are on the screen by then.
    result["explanations"] = compare_explanations(runs, judge or None)
    if output and is_primary():
        files.write_json(output, result)
    return result
