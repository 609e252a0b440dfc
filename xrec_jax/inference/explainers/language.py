"""Explainers with a language model: the base of a run, its tuned adapter, any other adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xrec_jax.inference.explainers.base import Explainer, Registration, Setup, Written, register
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Request
from xrec_jax.tasks.requests import ExplanationRequest

# The two that are shown side by side: the model before and after tuning.
BASE, TUNED = "base", "tuned"


@register(TUNED, needs="tuned", title="After tuning", colour="blue")
@register(BASE, needs="base", title="Before tuning", colour="orange")  # the lower one is the first
class Model(Explainer):
    """Explainer with a language model, with or without an adapter.

    All requests of a call go through one sampler, which sorts them, so that common prefixes
    (especially of one user's prompts) are read once, and refills finished rows with new prompts.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        samples = setup.config.instruct.samples
        self._limit = samples.max_new_tokens
        self._sampling = Sampling(samples.temperature, samples.top_k, samples.top_p)
        # Sampled texts of equal prompts differ, since each request has its own seed.
        self.repeats = self._sampling.greedy

    def write(self, requests: Sequence[ExplanationRequest]) -> Iterator[tuple[int, Written]]:
        """See `Explainer`."""
        lm, spec = self.setup.language_model, self.setup.spec
        assert lm is not None  # as the registrations below say
        sampler_requests = [Request(request.ids, self._limit, request.seed) for request in requests]
        answers = lm.sampler.stream(
            sampler_requests,
            sampling=self._sampling,
            adapter=lm.adapter(spec.name if spec.adapter else None),
        )
        for place, answer in answers:
            text = lm.tokenizer.decode(answer.ids)
            log_prob = float(np.sum(answer.log_probs))
            yield place, Written(text, len(answer.ids), log_prob, answer.stop)


# Declaration of NAME=DIR if no explainer is registered as NAME.
ADAPTER = Registration("", Model, needs="adapter")
