"""Level 6: the command line, `xrec VERB`."""

from __future__ import annotations

import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.memory import keep_freed_memory


class Verb(NamedTuple):
    """A verb: what it does, which flags it takes, and the function that does it."""

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[[flags.FlagValues], int]


def _config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py or configs/NAME.py:tiny; override as --config.a.b=value",
        flag_values=values, sys_argv=["xrec", *arguments],
    )  # fmt: skip


def _workdir_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    flags.DEFINE_string("workdir", "", "the run directory, local or gs://", flag_values=values)


def _required(values: flags.FlagValues, *names: str) -> None:
    for name in names:
        if not values[name].value:
            raise UserError(f"--{name} is missing; see xrec VERB --help")


def _define_run(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _config_flag(values, arguments)
    _workdir_flag(values, arguments)


def _run(values: flags.FlagValues) -> int:
    _required(values, "config", "workdir")
    from xrec_jax.pipelines import run

    run.run(values.config, values.workdir)
    return 0


def _evaluate(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.pipelines import run

    run.evaluate(values.workdir)
    return 0


def _define_recommend(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _workdir_flag(values, arguments)
    flags.DEFINE_string(
        "users", "all", "all, a file with one id a line, or a,b", flag_values=values
    )
    flags.DEFINE_integer("top_k", 10, "items a user", flag_values=values)
    flags.DEFINE_string("output", "", "F.jsonl or F.parquet", flag_values=values)
    flags.DEFINE_string("system", "", "default: the best on validation", flag_values=values)


def _recommend(values: flags.FlagValues) -> int:
    _required(values, "workdir")
    from xrec_jax.pipelines import export

    export.recommend(
        values.workdir, users=values.users, top_k=values.top_k, output=values.output,
        system=values.system,
    )  # fmt: skip
    return 0


def _define_audit(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    _config_flag(values, arguments)
    flags.DEFINE_string("output", "", "also write the findings as JSON", flag_values=values)


def _audit(values: flags.FlagValues) -> int:
    _required(values, "config")
    from xrec_jax.pipelines import audit

    return audit.audit(values.config, output=values.output)


def _strings(values: flags.FlagValues, **described: str) -> None:
    for name, text in described.items():
        flags.DEFINE_string(name, "", text, flag_values=values)


def _define_import_hf(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values, path="Hugging Face directory: config.json, safetensors, tokenizer",
        output="new directory for the checkpoint",
        dtype="bfloat16 or float32; default: as stored",
    )  # fmt: skip


def _import_hf(values: flags.FlagValues) -> int:
    _required(values, "path", "output")
    from xrec_jax.pipelines import convert

    convert.import_hf(values.path, values.output, dtype=values.dtype)
    return 0


def _define_export_hf(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values, workdir="run whose base and adapter are merged, instead of naming them",
        base="Hugging Face directory or imported checkpoint",
        adapter="adapter to merge into it, a directory in PEFT's format",
        output="new directory for the merged model",
        dtype="bfloat16 or float32; default: the base's",
    )  # fmt: skip


def _export_hf(values: flags.FlagValues) -> int:
    from xrec_jax.pipelines import convert

    if values.workdir:
        base, adapter = convert.of_run(values.workdir)
        values["base"].value = values.base or base
        values["adapter"].value = values.adapter or adapter
    _required(values, "base", "output")
    convert.export_hf(values.base, values.output, adapter=values.adapter, dtype=values.dtype)
    return 0


def _define_export_peft(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    del arguments
    _strings(
        values, workdir="run whose tuned adapter is written, instead of naming one",
        adapter="directory of an adapter",
        base="model that it was trained on; default: as the adapter says",
        output="new directory, which PEFT and vLLM load",
    )  # fmt: skip


def _export_peft(values: flags.FlagValues) -> int:
    from xrec_jax.pipelines import convert

    if values.workdir:  # the adapter says itself what its base is
        values["adapter"].value = values.adapter or convert.of_run(values.workdir)[1]
    _required(values, "adapter", "output")
    convert.export_peft_directory(values.adapter, values.output, base=values.base)
    return 0


VERBS = {
    "run": Verb("run every stage of a config; a rerun resumes", _define_run, _run),
    "evaluate": Verb(
        "evaluate a finished run again, from its checkpoints", _workdir_flag, _evaluate
    ),
    "recommend": Verb("write recommendations of a run to a file", _define_recommend, _recommend),
    "audit": Verb("look for faults in the data and its split", _define_audit, _audit),
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


def usage() -> str:
    """The text of `xrec --help`."""
    verbs = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: xrec VERB [flags]\n\n{verbs}\n\nxrec VERB --help lists a verb's flags."


def _help(name: str, values: flags.FlagValues) -> str:
    lines = [f"usage: xrec {name} [flags]", "", f"{VERBS[name].summary}", ""]
    for flag_name in sorted(values):
        flag = values[flag_name]
        default = "" if flag.default in (None, "") else f" (default {flag.default})"
        lines.append(f"  --{flag_name}: {flag.help}{default}")
    return "\n".join(lines)


def _check_config_file(arguments: Sequence[str]) -> None:
    """Runs the config file once by itself, so that a fault in it is told as one.

    Raises:
      UserError: names the file, the line and the fault.
    """
    given = next((a for a in arguments if a.startswith(("--config=", "-config="))), None)
    if given is None:
        return
    name, _, argument = given.partition("=")[2].partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"--config={name}: no such file")
    module = types.ModuleType("xrec_config_check")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path}: it defines no get_config(arg)")
        config = module.get_config(*([argument] if ":" in given else []))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        what = error.msg if isinstance(error, SyntaxError) else _one_line(error)
        raise UserError(f"{where}: {type(error).__name__}: {what}") from error
    finally:
        del sys.modules[module.__name__]
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returns a {type(config).__name__}, not a ConfigDict")


def _one_line(error: Exception) -> str:
    """An exception's message on one line, without the quotes and escapes of a KeyError's."""
    text = str(error).replace("\\n", " ").replace("\\'", "'")
    return " ".join(text.split()).strip("'\"")


def _parse(name: str, values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Parses flags; every mistake becomes a `UserError`."""
    if "config" in values:
        _check_config_file(arguments)
    try:
        rest = values([f"xrec {name}", *arguments])
        if "config" in values and values["config"].value is not None:
            _ = values.config  # overrides are applied when the value is first read
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, list(values))
        raise UserError(f"{name} has no flag --{error.flagname}{hint}") from error
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"--config: {_one_line(error)}") from error
    if len(rest) > 1:
        raise UserError(f"{name} does not take {rest[1]!r}; flags look like --name=value")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: arguments after the program's name; default those of the process.

    Returns:
      0 when all went well, 2 on a user's mistake, 143 after SIGTERM with everything saved; `audit`
      returns 1 when it found errors.
    """
    keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in VERBS:
            raise UserError(f"no verb {name!r}{did_you_mean(name, VERBS)}")
        values: Any = flags.FlagValues()
        VERBS[name].define(values, rest)
        if any(word in ("-h", "--help", "-help") for word in rest):
            print(_help(name, values))
            return 0
        _parse(name, values, rest)
        from xrec_jax.parallel.distributed import initialize
        from xrec_jax.training.loop import Interrupted

        initialize()
        try:
            return VERBS[name].run(values)
        except Interrupted as stop:
            print(f"xrec: {stop}", file=sys.stderr)
            return 143
    except UserError as error:
        print(f"xrec: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
