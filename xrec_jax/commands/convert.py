"""`xrec import`, `export-hf`, `export-gguf` and `export-peft`: models and adapters in and out."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import ALLOW_IMPORTS, Verb, required, text


def _import(values: FlagValues) -> int:
    required(values, "path", "output")
    from xrec_jax.api import convert

    convert.import_model(values.path, values.output, dtype=values.dtype)
    return 0


def _export_hf(values: FlagValues) -> int:
    from xrec_jax.api import convert

    _take_run(values)
    convert.export_hf(values.base, values.output, adapter=values.adapter, dtype=values.dtype)
    return 0


def _export_gguf(values: FlagValues) -> int:
    from xrec_jax.api import convert

    _take_run(values)
    convert.export_gguf(values.base, values.output, adapter=values.adapter, out_type=values.outtype)
    return 0


def _take_run(values: FlagValues) -> None:
    """Fills base and adapter from a run; what is named beside it takes their place."""
    from xrec_jax.api import convert

    if values.workdir:
        base, adapter = convert.of_run(values.workdir, allow_imports=values.allow_imports)
        values["base"].value = values.base or base
        values["adapter"].value = values.adapter or adapter
    required(values, "base", "output")


def _export_peft(values: FlagValues) -> int:
    from xrec_jax.api import convert

    if values.workdir:  # the adapter says itself what its base is
        _, adapter = convert.of_run(values.workdir, allow_imports=values.allow_imports)
        values["adapter"].value = values.adapter or adapter
    required(values, "adapter", "output")
    convert.export_peft_directory(values.adapter, values.output, base=values.base)
    return 0


IMPORT = Verb(
    name="import",
    summary="import a LLaMA, Hugging Face's or GGUF, as a sharded checkpoint",
    flags=(
        text("path", "Hugging Face directory, GGUF file or ORG/NAME of the hub"),
        text("output", "new directory for the checkpoint"),
        text("dtype", "bfloat16 or float32; default: as stored, float32 for quantised weights"),
    ),
    run=_import,
)
EXPORT_HF = Verb(
    name="export-hf",
    summary="write a model, adapter merged, as a Hugging Face directory",
    flags=(
        text("workdir", "run whose base and adapter are merged, instead of naming them"),
        text("base", "Hugging Face directory, GGUF file, import, or ORG/NAME of the hub"),
        text("adapter", "adapter to merge into it, a directory in PEFT's format"),
        text("output", "new directory for the merged model"),
        text("dtype", "bfloat16 or float32; default: the base's"),
        ALLOW_IMPORTS,
    ),
    run=_export_hf,
)
EXPORT_GGUF = Verb(
    name="export-gguf",
    summary="write a model, adapter merged, as a GGUF file for llama.cpp and Ollama",
    flags=(
        text("workdir", "run whose base and adapter are merged, instead of naming them"),
        text("base", "Hugging Face directory, GGUF file, import, or ORG/NAME of the hub"),
        text("adapter", "adapter to merge into it, a directory in PEFT's format"),
        text("output", "new file, such as model.gguf"),
        text("outtype", "type of the matrices: f32, f16 or q8_0", "f16"),
        ALLOW_IMPORTS,
    ),
    run=_export_gguf,
)
EXPORT_PEFT = Verb(
    name="export-peft",
    summary="write an adapter that PEFT and vLLM load",
    flags=(
        text("workdir", "run whose tuned adapter is written, instead of naming one"),
        text("adapter", "directory of an adapter"),
        text("base", "model that it was trained on; default: as the adapter says"),
        text("output", "new directory, which PEFT and vLLM load"),
        ALLOW_IMPORTS,
    ),
    run=_export_peft,
)
