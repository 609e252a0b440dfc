"""Judges of a finished run: the tuned language model and the planted oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import Progress
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.evaluation import judging
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.evaluation.judging.readout import AnswerReader
from xrec_jax.inference import run_records
from xrec_jax.llm import run_base
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.tasks.judgements import Asking, LanguageJudge, asking

STAGE = "judge"


PLANTED = "planted"


def judge_path(rundir: RunDir) -> epath.Path:
    """Where the judge's adapter, its split and its verdicts lie."""
    return rundir.path / STAGE


def _asking(config: Any, tokenizer: Tokenizer, shape: LlamaConfig) -> Asking:
    return asking(config, tokenizer, most=shape.max_positions)


def explanations_of(rundir: RunDir) -> list[Any]:
    """The pairs of a run's `explain` stage; empty before it is done."""
    return run_records.pairs(rundir)


def planted_judge(pairs: Sequence[Any]) -> judging.Judge:
    """A judge that knows the planted reasons of some pairs: the higher F1 wins, equal ones tie.

    Args:
      pairs: with `prompt` and `planted`.

    Raises:
      UserError: if there is none; when asked about a prompt that is none of theirs.
    """
    if not pairs:
        raise UserError("judge.source='planted' needs the pairs of a finished stage 'explain'")
    truth = {pair["prompt"]: pair.get("planted") for pair in pairs}
    if None in truth.values():
        raise UserError(
            "judge.source='planted' needs pairs with true reasons, and some of the run's have none"
        )

    def judge(prompt: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        unknown = [text for text in prompt if text not in truth]
        if unknown:
            raise UserError(
                "judge.source='planted' knows only the run's own pairs, not the prompt that begins "
                f"{unknown[0][:60]!r}"
            )
        planted = [truth[text] for text in prompt]
        scores = [score_texts(texts, planted).f1 for texts in (first, second)]
        return (1.0 + np.sign(scores[0] - scores[1])) / 2.0

    return judge


def load_judge(
    config: Any,
    rundir: RunDir,
    base: LoadedBase,
    mesh: Mesh,
    *,
    label: str = "",
    path: epath.Path | None = None,
) -> LanguageJudge:
    """The judge of a finished run, a plain callable; use it inside `use_mesh(mesh)`.

    Args:
      config: of the run.
      rundir: its directory.
      base: its base.
      mesh: devices.
      label: of a progress bar; "" for none.
      path: of another judge's adapter; default the run's own.

    Raises:
      UserError: if there is none, or it was trained on other weights.
    """
    adapter = run_base.adapter_of(path or judge_path(rundir), base, stage=STAGE)
    ask = _asking(config, base.tokenizer, base.model.config)
    # A finished run may be opened on more devices than it had.
    parts = batch_divisor(mesh)
    batch = -(-config.judge.batch // parts) * parts
    reader = AnswerReader(base.model, base.params, adapter, ask.answers, mesh=mesh, batch=batch)

    def bar(total: int) -> Progress:
        return Progress(label, total, unit="pair", enabled=bool(label) and is_primary())

    return LanguageJudge(ask, reader, progress=bar)
