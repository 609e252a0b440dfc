"""`xrec compare`: how runs differ, in figures and in their explanations."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import ALLOW_IMPORTS, Verb, required, text, texts


def _compare(values: FlagValues) -> int:
    required(values, "workdir")
    from xrec_jax.api import compare

    compare.compare(
        values.workdir,
        output=values.output,
        judge=values.judge or None,
        allow_imports=values.allow_imports,
    )
    return 0


COMPARE = Verb(
    name="compare",
    summary="compare runs: figures and explanations",
    flags=(
        texts("workdir", "a run directory; give two or more, the first is compared with"),
        text("output", "also write the result as JSON"),
        text(
            "judge",
            "module:function(prompts, first, second) that judges; default: the first run's judge",
        ),
        ALLOW_IMPORTS,
    ),
    run=_compare,
)
