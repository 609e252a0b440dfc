"""Level 6: the verbs of `xrec`, their flags, and the functions that do them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from xrec_jax.core.errors import UserError


class Verb(NamedTuple):
    """A verb: what it does, which flags it takes, and the function that does it."""

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[[flags.FlagValues], int]


def _config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "configs/NAME.py or configs/NAME.py:tiny; override as --config.a.b=value",
        flag_values=values,
        sys_argv=["xrec", *arguments],
    )


def _workdir_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    flags.DEFINE_string("workdir", "", "the run directory, local or gs://", flag_values=values)


def _opened_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Flags of verbs that open a run directory."""
    _workdir_flag(values, arguments)
    _allow_imports_flag(values)


def _allow_imports_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "allow_imports",
        False,
        "import the modules that the run's config.json names: code of whoever made the run",
        flag_values=values,
    )


def _required(values: flags.FlagValues, *names: str) -> None:
    for name in names:
        if not values[name].value:
            raise UserError(f"--{name} is missing; see xrec VERB --help")


def _define_run(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _config_flag(values, arguments)
    _workdir_flag(values, arguments)


def _run(values: flags.FlagValues) -> int:
    _required(values, "config", "workdir")
    from xrec_jax.commands import run

    run.run(values.config, values.workdir)
    return 0


def _evaluate(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.commands import run

    run.evaluate(values.workdir, allow_imports=values.allow_imports)
    return 0


def _define_recommend(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _opened_flags(values, arguments)
    flags.DEFINE_string(
        "users", "all", "all, a file with one id a line, or a,b", flag_values=values
    )
    flags.DEFINE_integer("top_k", 10, "items a user", flag_values=values)
    flags.DEFINE_string("output", "", "F.jsonl or F.parquet", flag_values=values)
    flags.DEFINE_string("system", "", "default: the best on validation", flag_values=values)


def _recommend(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.commands import recommend

    recommend.recommend(
        values.workdir,
        users=values.users,
        top_k=values.top_k,
        output=values.output,
        system=values.system,
        allow_imports=values.allow_imports,
    )
    return 0


def _define_audit(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _config_flag(values, arguments)
    flags.DEFINE_string(
        "workdir",
        "",
        "a run to look at instead: its data, sets and explanations",
        flag_values=values,
    )
    flags.DEFINE_string("output", "", "also write the findings as JSON", flag_values=values)
    _allow_imports_flag(values)


def _audit(values: flags.FlagValues) -> int:
    from xrec_jax.commands import audit

    if values.workdir:
        if values["config"].value is not None:
            raise UserError("--config and --workdir: give one of them, what to look at")
        return audit.audit_workdir(
            values.workdir, output=values.output, allow_imports=values.allow_imports
        )
    _required(values, "config")
    return audit.audit(values.config, output=values.output)


def _strings(values: flags.FlagValues, **described: str) -> None:
    for name, text in described.items():
        flags.DEFINE_string(name, "", text, flag_values=values)


def _integers(values: flags.FlagValues, **described: tuple[int, str]) -> None:
    for name, (default, text) in described.items():
        flags.DEFINE_integer(name, default, text, flag_values=values)


def _lists(values: flags.FlagValues, **described: str) -> None:
    for name, text in described.items():
        flags.DEFINE_multi_string(name, [], text, flag_values=values)


def _define_import_hf(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values,
        path="Hugging Face directory: config.json, safetensors, tokenizer",
        output="new directory for the checkpoint",
        dtype="bfloat16 or float32; default: as stored",
    )


def _import_hf(values: flags.FlagValues) -> int:
    _required(values, "path", "output")
    from xrec_jax.commands import convert

    convert.import_hf(values.path, values.output, dtype=values.dtype)
    return 0


def _define_export_hf(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values,
        workdir="run whose base and adapter are merged, instead of naming them",
        base="Hugging Face directory or imported checkpoint",
        adapter="adapter to merge into it, a directory in PEFT's format",
        output="new directory for the merged model",
        dtype="bfloat16 or float32; default: the base's",
    )
    _allow_imports_flag(values)


def _export_hf(values: flags.FlagValues) -> int:
    from xrec_jax.commands import convert

    if values.workdir:
        base, adapter = convert.of_run(values.workdir, allow_imports=values.allow_imports)
        values["base"].value = values.base or base
        values["adapter"].value = values.adapter or adapter
    _required(values, "base", "output")
    convert.export_hf(values.base, values.output, adapter=values.adapter, dtype=values.dtype)
    return 0


def _define_export_peft(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values,
        workdir="run whose tuned adapter is written, instead of naming one",
        adapter="directory of an adapter",
        base="model that it was trained on; default: as the adapter says",
        output="new directory, which PEFT and vLLM load",
    )
    _allow_imports_flag(values)


def _export_peft(values: flags.FlagValues) -> int:
    from xrec_jax.commands import convert

    if values.workdir:  # the adapter says itself what its base is
        _, adapter = convert.of_run(values.workdir, allow_imports=values.allow_imports)
        values["adapter"].value = values.adapter or adapter
    _required(values, "adapter", "output")
    convert.export_peft_directory(values.adapter, values.output, base=values.base)
    return 0


def _define_explain(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _define_recommend(values, arguments)
    _strings(
        values,
        pairs="file of user-item pairs to explain instead, as `xrec recommend` writes it",
        explainer="template, base or tuned; default: the best there is",
        adapter="directory of another adapter for the base",
        base="directory of a base, for a run without one or instead of its own",
        prompt="a registered template of prompts, or generic; default: the run's",
    )
    _integers(
        values,
        history=(0, "most entries of a prompt; 0: as the run"),
        max_new_tokens=(0, "of an answer; 0: as the run"),
        batch=(0, "rows that generate at once; 0: as the run"),
        shard=(0, "pairs written at once; 0: as the run"),
    )
    flags.DEFINE_float("temperature", -1.0, "negative: as the run", flag_values=values)


def _explain(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.commands import explain

    names = (
        "users",
        "top_k",
        "output",
        "system",
        "pairs",
        "explainer",
        "adapter",
        "base",
        "prompt",
        "history",
        "max_new_tokens",
        "temperature",
        "batch",
        "shard",
        "allow_imports",
    )
    asked: dict[str, Any] = {name: values[name].value for name in names}
    explain.explain(values.workdir, **asked)
    return 0


def _define_compare(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _lists(values, workdir="a run directory; give two or more, the first is compared with")
    _strings(
        values,
        output="also write the result as JSON",
        judge="module:function(prompts, first, second) that judges; default: the first run's judge",
    )
    _allow_imports_flag(values)


def _compare(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.commands import compare

    compare.compare(
        values.workdir,
        output=values.output,
        judge=values.judge or None,
        allow_imports=values.allow_imports,
    )
    return 0


def _define_rate_make(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _opened_flags(values, arguments)
    _lists(
        values,
        explanations="file of explanations, instead of a run; may be given again",
        system="explainer to rate; may be given again; default: all",
    )
    _strings(values, output="new directory for the sheets and their key")
    _integers(
        values,
        pairs=(20, "recommendations to rate"),
        raters=(1, "sheets"),
        gold=(2, "further ones, broken on purpose, that tell who rates with care"),
        preferences=(-1, "comparisons for each recommendation; -1: every two, 0: none"),
        seed=(0, "of all draws"),
    )


def _rate_make(values: flags.FlagValues) -> int:
    _required(values, "output")
    from xrec_jax.commands import rate

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


def _define_rate_collect(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _opened_flags(values, arguments)
    _lists(
        values,
        answers="file that a sheet saved; files may also stand without a flag",
        exclude="rater to leave out; may be given again",
    )
    _strings(
        values,
        key="KEY.json of the sheets",
        ratings="table of published ratings (CSV) instead",
        output="JSON file for the result; with --workdir the run gets it as ratings.json",
    )
    flags.DEFINE_boolean("partial", False, "take unfinished answers too", flag_values=values)


def _rate_collect(values: flags.FlagValues) -> int:
    from xrec_jax.commands import rate

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


def _report(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.commands import report

    report.report(values.workdir, allow_imports=values.allow_imports)
    return 0


VERBS = {
    "run": Verb("run every stage of a config; a rerun resumes", _define_run, _run),
    "evaluate": Verb(
        "evaluate a finished run again, from its checkpoints", _opened_flags, _evaluate
    ),
    "recommend": Verb("write recommendations of a run to a file", _define_recommend, _recommend),
    "explain": Verb(
        "write recommendations with explanations to a file; a rerun resumes",
        _define_explain,
        _explain,
    ),
    "compare": Verb("compare runs: figures and explanations", _define_compare, _compare),
    "rate make": Verb("write blind rating sheets that work offline", _define_rate_make, _rate_make),
    "rate collect": Verb("merge what raters answered", _define_rate_collect, _rate_collect),
    "audit": Verb("look for faults in data, split, prompts and judgements", _define_audit, _audit),
    "report": Verb("write a run's report.html", _opened_flags, _report),
    "import-hf": Verb(
        "import a Hugging Face LLaMA as a sharded checkpoint", _define_import_hf, _import_hf
    ),
    "export-hf": Verb(
        "write a model, adapter merged, as a Hugging Face directory", _define_export_hf, _export_hf
    ),
    "export-peft": Verb(
        "write an adapter that PEFT and vLLM load", _define_export_peft, _export_peft
    ),
}
