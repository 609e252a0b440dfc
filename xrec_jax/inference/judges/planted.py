"""Oracle judge of a planted world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.evaluation.judging import Judge
from xrec_jax.inference.judges.base import Setup, register

PLANTED = "planted"


def _check(config: Any, data: RunData) -> None:
    del config
    need_world(data, "judge.source")


@register(
    PLANTED,
    label="The planted reasons",
    description="The planted reasons judge: of two explanations of one recommendation the one with "
    "the higher F1 wins, equal ones tie.",
    needs=("planted",),
    check=_check,
)
def planted(setup: Setup) -> Judge:
    """Builds the oracle judge of a run."""
    return planted_judge(setup.pairs)


def planted_judge(pairs: Sequence[Any]) -> Judge:
    """Builds a judge from planted reasons: the text with the higher F1 wins, equal ones tie.

    Args:
      pairs: pairs with `prompt` and `planted`.

    Raises:
      UserError: if there is no pair; when called, on a prompt of no pair.
    """
    if not pairs:
        raise UserError("judge.source='planted' needs the pairs of a finished stage 'explain'")
    truth = {pair["prompt"]: pair.get("planted") for pair in pairs}
    # Pairs of another kind of data, beside those of a world, cannot be judged by its truth.
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
        # 1 where the first has the higher F1, 0 where the second has, 1/2 for a tie.
        reasons = [truth[text] for text in prompt]
        scores = [score_texts(texts, reasons).f1 for texts in (first, second)]
        return (1.0 + np.sign(scores[0] - scores[1])) / 2.0

    return judge
