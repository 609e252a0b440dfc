"""`xrec explain`: recommendations of a run with explanations, written to a file."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands import recommend
from xrec_jax.commands.verb import Verb, integer, number, required, text


def _explain(values: FlagValues) -> int:
    required(values, "workdir")
    from xrec_jax.api import explain
    from xrec_jax.inference.options import GenerationOptions

    options = GenerationOptions(
        explainer=values.explainer,
        adapter=values.adapter,
        base=values.base,
        prompt=values.prompt,
        history=values.history,
        max_new_tokens=values.max_new_tokens,
        temperature=values.temperature,
        batch=values.batch,
        shard=values.shard,
    )
    explain.explain(
        values.workdir,
        users=values.users,
        top_k=values.top_k,
        output=values.output,
        system=values.system,
        pairs=values.pairs,
        options=options,
        allow_imports=values.allow_imports,
    )
    return 0


EXPLAIN = Verb(
    name="explain",
    summary="write recommendations with explanations to a file; a rerun resumes",
    flags=(
        *recommend.FLAGS,
        text("pairs", "file of user-item pairs to explain instead, as `xrec recommend` writes it"),
        # Who writes, from which prompts, and how: the fields of `GenerationOptions`
        text("explainer", "template, base, tuned or one of your own; default: the best there is"),
        text("adapter", "directory of another adapter for the base"),
        text("base", "base by path or name, for a run without one or instead of its own"),
        text("prompt", "a registered template of prompts, or generic; default: the run's"),
        integer("history", 0, "most entries of a prompt; 0: as the run"),
        integer("max_new_tokens", 0, "of an answer; 0: as the run"),
        number("temperature", -1.0, "negative: as the run"),
        integer("batch", 0, "rows that generate at once; 0: as the run"),
        integer("shard", 0, "pairs written at once; 0: as the run"),
    ),
    run=_explain,
)
