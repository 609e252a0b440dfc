"""The explainer without a language model: a template over the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xrec_jax.inference.explainers.base import Explainer, Written, register
from xrec_jax.tasks.requests import Case
from xrec_jax.text.synthetic.template_explainer import template_explanation


@register("template", title="Template", colour="grey")
class Template(Explainer):
    """Says what item and history have in common; knows no more than the prompt does."""

    def write(self, cases: Sequence[Case]) -> Iterator[tuple[int, Written]]:
        """See `Explainer`."""
        maker, seed = self.setup.maker, self.setup.config.seeds[0]
        for place, case in enumerate(cases):
            # Keyed by the prompt, so that its words do not depend on which shard it is in.
            text = template_explanation(
                maker.named(case.asked.item),
                [maker.named(row) for row in case.history],
                maker.user(case.asked.user),
                key=case.digest,
                seed=seed,
                title=maker.name_column,
            )
            yield place, Written(text)
