"""`xrec recommend`: recommendations of a run, written to a file."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import RUN_DIRECTORY, Verb, integer, required, text

# Which recommendations, and where they go; `xrec explain` asks for them too.
FLAGS = (
    *RUN_DIRECTORY,
    text("users", "all, a file with one id a line, or a,b", default="all"),
    integer("top_k", 10, "items a user"),
    text("output", "F.jsonl or F.parquet"),
    text("system", "default: the best on validation"),
)


def _recommend(values: FlagValues) -> int:
    required(values, "workdir")
    from xrec_jax.api import recommend

    recommend.recommend(
        values.workdir,
        users=values.users,
        top_k=values.top_k,
        output=values.output,
        system=values.system,
        allow_imports=values.allow_imports,
    )
    return 0


RECOMMEND = Verb(
    name="recommend",
    summary="write recommendations of a run to a file",
    flags=FLAGS,
    run=_recommend,
)
