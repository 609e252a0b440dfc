"""Judge that stage `judge` trains: an adapter of the run's base, which reads both texts."""

from __future__ import annotations

from typing import Any

from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.logging import Progress
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.evaluation.judging.readout import AnswerReader
from xrec_jax.inference.judges.base import STAGE, Setup, judge_path, register
from xrec_jax.llm import run_base
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.tasks.judgements import LanguageJudge, judge_prompts

_DECLARED: dict[str, Any] = {
    "label": "A judge",
    "description": "A judge reads two explanations of one recommendation, in both orders. A "
    "verdict that turns with the order is a tie.",
    "trained": True,
}


# Two names for one judge, which tell the source of its training judgements.
@register("file", **_DECLARED)
@register("world", **_DECLARED)  # the lower one is the first
def language(setup: Setup) -> LanguageJudge:
    """Loads the trained judge of a run."""
    config, rundir, mesh = setup.config, setup.rundir, setup.mesh
    base = setup.base or run_base.load_base(config, rundir, mesh)
    return load_judge(config, rundir, base, mesh, label=setup.label)


def load_judge(
    config: Any,
    rundir: RunDir,
    base: LoadedBase,
    mesh: Mesh,
    *,
    label: str = "",
    path: epath.Path | None = None,
) -> LanguageJudge:
    """Loads the judge of a finished run; call it inside `use_mesh(mesh)`.

    Args:
      config: configuration of the run.
      rundir: directory of the run.
      base: base of the run.
      mesh: devices.
      label: label of a progress bar; "" for none.
      path: directory of another judge's adapter; by default the run's own.

    Raises:
      UserError: if there is no adapter, or it was trained on other weights.
    """
    adapter = run_base.adapter_of(path or judge_path(rundir), base, stage=STAGE)
    prompts = judge_prompts(config, base.tokenizer, max_positions=base.model.config.max_positions)
    # A finished run may be opened on more devices than it had.
    parts = batch_divisor(mesh)
    batch = -(-config.judge.batch // parts) * parts
    reader = AnswerReader(base.model, base.params, adapter, prompts.answers, mesh=mesh, batch=batch)

    def bar(total: int) -> Progress:
        return Progress(label, total, unit="pair", enabled=bool(label) and is_primary())

    return LanguageJudge(prompts, reader, progress=bar)
