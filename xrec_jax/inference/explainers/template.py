"""The explainer without a language model: a template over the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xrec_jax.inference.explainers.base import Explainer, Written, register
from xrec_jax.tasks.requests import ExplanationRequest
from xrec_jax.text.synthetic.template_explainer import template_explanation


@register("template", title="Template", colour="grey")
class Template(Explainer):
    """States what item and history have in common, from the information in the prompt."""

    def write(self, requests: Sequence[ExplanationRequest]) -> Iterator[tuple[int, Written]]:
        """See `Explainer`."""
        builder, seed = self.setup.builder, self.setup.config.seeds[0]
        for place, request in enumerate(requests):
            # Keyed by the prompt, so that the wording does not depend on the shard.
            text = template_explanation(
                builder.named(request.user_item.item),
                [builder.named(row) for row in request.history],
                builder.user(request.user_item.user),
                key=request.digest,
                seed=seed,
                title=builder.name_column,
            )
            yield place, Written(text)
