"""`xrec rate make` and `xrec rate collect`: blind sheets for people, and what they answered."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import RUN_DIRECTORY, Verb, integer, required, switch, text, texts


def _make(values: FlagValues) -> int:
    required(values, "output")
    from xrec_jax.api import rate

    rate.make(
        values.workdir,
        output=values.output,
        explanations=values.explanations,
        systems=values.system,
        pairs=values.pairs,
        raters=values.raters,
        gold=values.gold,
        preferences=values.preferences,
        seed=values.seed,
        allow_imports=values.allow_imports,
    )
    return 0


def _collect(values: FlagValues) -> int:
    from xrec_jax.api import rate

    rate.collect(
        values.answers,
        key=values.key,
        ratings=values.ratings,
        workdir=values.workdir,
        output=values.output,
        partial=values.partial,
        exclude=values.exclude,
        allow_imports=values.allow_imports,
    )
    return 0


MAKE = Verb(
    name="rate make",
    summary="write blind rating sheets that work offline",
    flags=(
        *RUN_DIRECTORY,
        texts("explanations", "file of explanations, instead of a run; may be given again"),
        texts("system", "explainer to rate; may be given again; default: all"),
        text("output", "new directory for the sheets and their key"),
        integer("pairs", 20, "recommendations to rate"),
        integer("raters", 1, "sheets"),
        integer("gold", 2, "further ones, broken on purpose, that tell who rates with care"),
        integer("preferences", -1, "comparisons for each recommendation; -1: every two, 0: none"),
        integer("seed", 0, "of all draws"),
    ),
    run=_make,
)
COLLECT = Verb(
    name="rate collect",
    summary="merge what raters answered",
    flags=(
        *RUN_DIRECTORY,
        texts("answers", "file that a sheet saved; files may also stand without a flag"),
        texts("exclude", "rater to leave out; may be given again"),
        text("key", "KEY.json of the sheets"),
        text("ratings", "table of published ratings (CSV) instead"),
        text("output", "JSON file for the result; with --workdir the run gets it as ratings.json"),
        switch("partial", "take unfinished answers too"),
    ),
    run=_collect,
    positional="answers",  # files as a shell's pattern gives them
)
