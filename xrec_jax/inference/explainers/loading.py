"""Explainers made ready to write, and the records of what they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.inference.explainers.base import Explainer, Setup, Spec, Written
from xrec_jax.inference.explainers.selection import identities, needs_model, registration
from xrec_jax.llm import run_base
from xrec_jax.llm.io.peft_io import load_adapter
from xrec_jax.llm.language_model import LanguageModel
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import batch_divisor
from xrec_jax.tasks.requests import Case, CaseMaker
from xrec_jax.text.records.explanations import Explanation


def load(
    specs: Sequence[Spec], config: Any, rundir: RunDir, mesh: Mesh, maker: CaseMaker
) -> list[Explainer]:
    """Explainers ready to write; a base is loaded once for all of them.

    Args:
      specs: which.
      config: of the run.
      rundir: of the run.
      mesh: of the base, current while they write.
      maker: of the cases they will see.

    Raises:
      UserError: if base or adapter is missing, damaged, or one does not belong to the other.
    """
    # Identities first: they refuse what does not belong together before a base is loaded.
    known = {spec: identities(spec, config, rundir) for spec in specs}
    model = _language_model(specs, config, rundir, mesh) if needs_model(specs) else None
    made = []
    for spec in specs:
        base, adapter = known[spec]
        own_model = None if base is None else model  # one that needs nothing gets nothing
        setup = Setup(spec, config, rundir, maker, own_model, base, adapter)
        made.append(registration(spec).build(setup))
    return made


def _language_model(
    specs: Sequence[Spec], config: Any, rundir: RunDir, mesh: Mesh
) -> LanguageModel:
    """The base with the adapters of all explainers under their names."""
    base = run_base.load_base(config, rundir, mesh)
    adapters = {
        spec.name: _on_device(spec.adapter, base.model.config) for spec in specs if spec.adapter
    }
    # A run may be opened on more devices than it had: as many rows as they divide.
    divisor = batch_divisor(mesh)
    batch = -(-config.llm.generation_batch // divisor) * divisor
    return LanguageModel(base.model, base.params, base.tokenizer, adapters=adapters, batch=batch)


def _on_device(path: str, shape: LlamaConfig) -> Adapter:
    return jax.tree.map(jnp.asarray, load_adapter(path, shape))


def answers(
    explainer: Explainer, cases: Sequence[Case], advance: Callable[[int], object]
) -> list[Written]:
    """A text for every case, in order.

    Prompts that stand there more than once are answered once, where the explainer would write the
    same again.

    Args:
      explainer: who writes.
      cases: what about.
      advance: is called with how many cases more are done.

    Raises:
      UserError: if a case has no text at the end, or what an explainer gave is none.
    """
    places: dict[Any, list[int]] = {}
    for place, case in enumerate(cases):
        places.setdefault(case.prompt if explainer.repeats else place, []).append(place)
    # Only the first case of each group is written about; its text serves the others.
    groups = list(places.values())
    written: list[Written | None] = [None] * len(cases)
    for index, answer in explainer.write([cases[group[0]] for group in groups]):
        if not isinstance(answer, Written) or not isinstance(answer.text, str):
            raise UserError(f"explainer {explainer.name!r} gave {answer!r}, not a Written text")
        for place in groups[index]:
            written[place] = answer
        advance(len(groups[index]))
    # A user's own may have left some out, which would shift the records behind them.
    complete = [answer for answer in written if answer is not None]
    if len(complete) < len(cases):
        raise UserError(
            f"explainer {explainer.name!r} wrote nothing about {len(cases) - len(complete)} of "
            f"{len(cases)} pairs"
        )
    return complete


def record(explainer: Explainer, maker: CaseMaker, case: Case, written: Written) -> Explanation:
    """The record of an explanation."""
    asked, data = case.asked, maker.data.dataset
    return {
        "user": str(data.user_ids[asked.user]),
        "item": str(data.item_ids[asked.item]),
        "rank": asked.rank,
        "score": asked.score,
        "system": asked.system,
        "explainer": explainer.name,
        "prompt_hash": case.digest,
        "text": written.text,
        "tokens": written.tokens,
        "log_prob": written.log_prob,
        "stop": written.stop,
        "base": explainer.base,
        "adapter": explainer.adapter,
    }
