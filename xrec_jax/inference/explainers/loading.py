"""Loading of explainers, and the records of their texts."""

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
from xrec_jax.tasks.requests import ExplanationRequest, RequestBuilder
from xrec_jax.text.records.explanations import Explanation


def load(
    specs: Sequence[Spec], config: Any, rundir: RunDir, mesh: Mesh, builder: RequestBuilder
) -> list[Explainer]:
    """Builds explainers, with one language model for all of them.

    Args:
      specs: explainers to load.
      config: configuration of the run.
      rundir: directory of the run.
      mesh: mesh of the base, current while they write.
      builder: builder of their requests.

    Raises:
      UserError: if base or adapter is missing, damaged, or the adapter is of another base.
    """
    # Identities first: they detect an adapter of another base before any base is loaded.
    identity_of = {spec: identities(spec, config, rundir) for spec in specs}
    model = _language_model(specs, config, rundir, mesh) if needs_model(specs) else None
    explainers = []
    for spec in specs:
        base, adapter = identity_of[spec]
        own_model = None if base is None else model  # none for an explainer that needs nothing
        setup = Setup(spec, config, rundir, builder, own_model, base, adapter)
        explainers.append(registration(spec).build(setup))
    return explainers


def _language_model(
    specs: Sequence[Spec], config: Any, rundir: RunDir, mesh: Mesh
) -> LanguageModel:
    """Loads the base with the adapters of all explainers by name."""
    base = run_base.load_base(config, rundir, mesh)
    adapters = {
        spec.name: _on_device(spec.adapter, base.model.config) for spec in specs if spec.adapter
    }
    # A run may be opened on more devices than it had, so the batch is rounded up to their number.
    divisor = batch_divisor(mesh)
    batch = -(-config.llm.generation_batch // divisor) * divisor
    return LanguageModel(base.model, base.params, base.tokenizer, adapters=adapters, batch=batch)


def _on_device(path: str, shape: LlamaConfig) -> Adapter:
    return jax.tree.map(jnp.asarray, load_adapter(path, shape))


def answers(
    explainer: Explainer, requests: Sequence[ExplanationRequest], advance: Callable[[int], object]
) -> list[Written]:
    """Texts of all requests, in order.

    Equal prompts are answered once if the explainer would repeat its text.

    Args:
      explainer: the explainer.
      requests: requests to answer.
      advance: called with the number of newly answered requests.

    Raises:
      UserError: if a request has no text in the end, or the explainer returns something else.
    """
    places: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(request.prompt if explainer.repeats else place, []).append(place)
    # One request stands for its group of equal prompts.
    groups = list(places.values())
    written: list[Written | None] = [None] * len(requests)
    for index, answer in explainer.write([requests[group[0]] for group in groups]):
        if not isinstance(answer, Written) or not isinstance(answer.text, str):
            raise UserError(f"explainer {explainer.name!r} gave {answer!r}, not a Written text")
        for place in groups[index]:
            written[place] = answer
        advance(len(groups[index]))
    # A user-defined explainer may have skipped some, which would shift the records after them.
    complete = [answer for answer in written if answer is not None]
    if len(complete) < len(requests):
        raise UserError(
            f"explainer {explainer.name!r} wrote nothing about {len(requests) - len(complete)} of "
            f"{len(requests)} pairs"
        )
    return complete


def record(
    explainer: Explainer, builder: RequestBuilder, request: ExplanationRequest, written: Written
) -> Explanation:
    """Record of an explanation."""
    user_item, data = request.user_item, builder.data.dataset
    return {
        "user": str(data.user_ids[user_item.user]),
        "item": str(data.item_ids[user_item.item]),
        "rank": user_item.rank,
        "score": user_item.score,
        "system": user_item.system,
        "explainer": explainer.name,
        "prompt_hash": request.digest,
        "text": written.text,
        "tokens": written.tokens,
        "log_prob": written.log_prob,
        "stop": written.stop,
        "base": explainer.base,
        "adapter": explainer.adapter,
    }
