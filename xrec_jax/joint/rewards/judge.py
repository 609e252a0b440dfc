"""The judge in a joint run: how likely an explanation is better than a text made without learning.

The judge is an adapter of the very base that writes the explanations, made by a `judge` stage of
this run or of another one. It is asked as that stage asks: both orders, read from the probabilities
of the two answers (`evaluation.judging.readout`). The base is not loaded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.evaluation.judging import Judge
from xrec_jax.inference import judges
from xrec_jax.inference.judges import judge_path, load_judge
from xrec_jax.joint.rewards.base import Evidence, EvidenceContext, Scored, register
from xrec_jax.joint.states.base import TRAIN, JointStates
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import is_adapter
from xrec_jax.tasks.judgements import JudgePrompts

OWN = "run"  # in place of a directory: what the run's own `judge` stage makes
REFERENCES = ("template", "teacher")


def adapter_folder(config: Any, rundir: RunDir) -> epath.Path:
    """Where the adapter lies that `joint.judge.adapter` names."""
    adapter = config.joint.judge.adapter
    return judge_path(rundir) if adapter == OWN else epath.Path(adapter)


def check(config: ConfigDict, rundir: RunDir) -> None:
    """Refuses a judge that a run could not ask, before anything is written.

    Args:
      config: of a run whose rewards have the part `judge`.
      rundir: its directory.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    cfg = config.joint.judge
    if cfg.reference not in REFERENCES:
        raise UserError(
            f"joint.judge.reference={cfg.reference!r} is not valid"
            f"{did_you_mean(cfg.reference, REFERENCES)}"
        )
    if not cfg.adapter:
        raise UserError(
            "joint.rewards.judge needs joint.judge.adapter: the directory of an adapter that a "
            f"stage 'judge' made, or {OWN!r} for this run's own"
        )
    path = adapter_folder(config, rundir)
    if not is_adapter(str(path)):
        if cfg.adapter != OWN:
            raise UserError(f"joint.judge.adapter={cfg.adapter}: no adapter in that directory")
        if "judge" not in config.stages or not judges.of(config).trained:
            source = config.judge.source if "judge" in config.stages else judges.PLANTED
            raise UserError(
                f"joint.judge.adapter={OWN!r} needs stage 'judge' in config.stages, with another "
                f"judge.source than {source!r}, which makes no adapter"
            )
    elif run_base.has_base(config, rundir):
        run_base.adapter_identity(str(path), run_base.base_identity(config, rundir))


class RewardJudge:
    """Rates explanations of states against reference texts of the same states.

    Args:
      judge: gives p(first is better) of pairs of texts, NaN where it cannot read one.
      prompts: of all states.
      template: reference texts of all states.
      teacher: better ones of some; they take the template's place.
    """

    def __init__(
        self,
        judge: Judge,
        prompts: Sequence[str],
        template: Sequence[str],
        teacher: Mapping[int, str] | None = None,
    ):
        self._judge, self._prompts = judge, prompts
        self._template, self._teacher = template, teacher or {}

    def reference(self, state: int) -> str:
        """What explanations of a state are compared with."""
        return self._teacher.get(state, self._template[state])

    def __call__(self, states: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Probability that a text is better than its state's reference, averaged over both orders.

        Args:
          states: `[n]`.
          texts: n explanations.

        Returns:
          `[n]` float32 in [0, 1]: 1/2 for the reference itself, 0 for a text that is too long to be
          read.
        """
        # Samples of one prompt are often equal: each text is asked about once.
        places: dict[tuple[int, str], int] = {}
        of = [
            places.setdefault((int(state), text.strip()), len(places))
            for state, text in zip(states, texts, strict=True)
        ]
        better = np.full(len(places), 0.5)
        pairs = [
            (place, self._prompts[state], text, self.reference(state))
            for (state, text), place in places.items()
            if text != self.reference(state).strip()
        ]
        if pairs:
            numbers, prompts, answers, references = map(list, zip(*pairs, strict=True))
            p_first = np.asarray(
                self._judge(prompts * 2, answers + references, references + answers), np.float64
            )
            shown, swapped = p_first[: len(pairs)], p_first[len(pairs) :]
            better[numbers] = np.nan_to_num((shown + 1.0 - swapped) / 2.0, nan=0.0)
        return better[of].astype(np.float32)


def reward_judge(ctx: EvidenceContext) -> RewardJudge:
    """The judge of a run's rewards, on the base that is loaded already.

    Raises:
      UserError: if there is no adapter, it was trained on other weights, or a training state's
        prompt leaves no room for an answer.
    """
    config, states = ctx.config, ctx.states
    path = adapter_folder(config, ctx.rundir)
    judge = load_judge(config, ctx.rundir, ctx.base, ctx.mesh, path=path)
    teacher = states.teacher if config.joint.judge.reference == "teacher" else None
    made = RewardJudge(judge, states.prompts, states.template, teacher)
    _check_room(made, judge.judge_prompts, states, config.joint.explain.max_new_tokens)
    return made


def _check_room(made: RewardJudge, prompts: JudgePrompts, states: JointStates, answer: int) -> None:
    """Refuses prompts whose questions would not fit a row of the judge."""
    for state in states.rows(TRAIN).tolist():
        ids = prompts.ids(states.prompts[state], made.reference(state), "")
        if ids is None or len(ids) + answer >= prompts.length:
            raise UserError(
                f"joint.rewards.judge: a prompt of {len(states.prompts[state])} letters, its "
                f"reference and an answer of {answer} tokens do not fit judge.length="
                f"{prompts.length} tokens; raise it, or set judge.max_prompt_tokens"
            )


@register(
    "judge",
    evidence=Evidence(
        load=reward_judge,
        check=check,
        section={"adapter": "", "reference": "template"},
        paths=("adapter",),
    ),
)
def judge(scored: Scored) -> jax.Array:
    """The judge's probability minus a half, in [-0.5, 0.5]."""
    return scored.need("judge") - jnp.float32(0.5)
