"""`xrec import`, `export-hf`, `export-gguf`, `export-peft`: conversion of models and adapters."""

from __future__ import annotations

import math
import os

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import Progress, log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.files import check_no_pattern
from xrec_jax.core.trees import num_parameters
from xrec_jax.llm import run_base
from xrec_jax.llm.io import checkpoint, hf, hf_export, hub, peft_io
from xrec_jax.llm.io.gguf import export, tokenizer_export
from xrec_jax.llm.io.peft_io import Base
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.model.layout import Source
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.run_config import read_config

_MIB = 1 << 20


class _Bytes:
    """Progress bar that counts bytes and shows MiB."""

    def __init__(self, label: str, total: int):
        self._bar = Progress(label, total // _MIB, unit="MiB", enabled=is_primary())
        self._done = 0

    def __call__(self, count: int) -> None:
        # Whole MiB of the totals, so that no remainder of a small piece is lost.
        before, self._done = self._done, self._done + count
        self._bar.advance(self._done // _MIB - before // _MIB)

    def close(self) -> None:
        self._bar.close()


def import_model(path: str, output: str, *, dtype: str = "") -> None:
    """Imports a model as a checkpoint that can be restored on any mesh.

    Args:
      path: a Hugging Face directory or a GGUF file.
      output: the new checkpoint's directory.
      dtype: "bfloat16" or "float32"; empty: as stored, float32 for quantised weights.

    Raises:
      UserError: for an incomplete model, another architecture, or an `output` that exists.
    """
    # Every check comes before the weights are read, which takes minutes.
    hf_export.dtype_of(dtype or "float32")
    hf_export.check_new(output)
    check_no_pattern(output, "--output")
    source = checkpoint.open_model(path)
    if isinstance(source, checkpoint.ImportedModel):
        raise UserError(f"{path}: is an imported checkpoint already")
    # All arrays as they are read, dequantised, and the files once more for the digest.
    arrays = sum(math.prod(t.shape) * t.array_dtype.itemsize for t in source.tensors.values())
    progress = _Bytes("import", arrays + source.file_bytes)
    try:
        checkpoint.import_model(source, output, dtype=dtype or None, advance=progress)
    finally:
        progress.close()
    log(
        f"{source.config.num_parameters:,} parameters ({dtype or source.dtype}) imported to "
        f"{output}"
    )


def export_hf(base: str, output: str, *, adapter: str = "", dtype: str = "") -> None:
    """Writes a model, with an adapter merged into it, as a Hugging Face directory.

    Args:
      base: path or name of the model; see `hub.resolve`.
      output: the new directory.
      adapter: a directory in PEFT's format; empty for none.
      dtype: "bfloat16" or "float32"; empty: the base's.

    Raises:
      UserError: if model or adapter cannot be read, they do not fit each other, or `output`
        exists.
    """
    # Names are checked before any weights are read.
    hf_export.dtype_of(dtype or "float32")
    hf_export.check_new(output)
    model = checkpoint.open_model(base)
    source: Source = model
    if adapter:
        source = hf_export.Merged(model, peft_io.load_adapter(adapter, model.config))
    name = dtype or model.dtype
    progress = _Bytes("export", model.config.num_parameters * hf.DTYPES[name].itemsize)
    try:
        hf_export.save_model(
            output,
            source,
            model.config,
            dtype=name,
            generation=model.generation,
            tokenizer_dir=model.path,
            advance=progress,
        )
    finally:
        progress.close()
    merged = f" with {adapter} merged" if adapter else ""
    log(f"{model.config.num_parameters:,} parameters ({name}){merged} written to {output}")


def export_gguf(base: str, output: str, *, adapter: str = "", out_type: str = "f16") -> None:
    """Writes a model, with an adapter merged into it, as a GGUF file for llama.cpp and Ollama.

    Args:
      base: path or name of the model; see `hub.resolve`.
      output: the new file.
      adapter: a directory in PEFT's format; empty for none.
      out_type: type of the matrices, a key of `export.OUT_TYPES`.

    Raises:
      UserError: if model, adapter or tokenizer cannot be read or written so, they do not fit each
        other, or `output` exists.
    """
    # Names are checked before any weights are read.
    export.check_out_type(out_type)
    export.check_new_file(output)
    model = checkpoint.open_model(base)
    # Of the opened model's path, not its name: a branch of the hub may move in between.
    tokenizer = tokenizer_export.to_metadata(load_tokenizer(model.path), model.config.vocab_size)
    source: Source = model
    if adapter:
        source = hf_export.Merged(model, peft_io.load_adapter(adapter, model.config))
    progress = _Bytes("export", export.total_bytes(model.config, out_type))
    try:
        export.save_model(
            output,
            source,
            model.config,
            tokenizer,
            out_type=out_type,
            name=os.path.basename(os.path.normpath(base)).removesuffix(".gguf"),
            advance=progress,
        )
    finally:
        progress.close()
    merged = f" with {adapter} merged" if adapter else ""
    log(f"{model.config.num_parameters:,} parameters ({out_type}){merged} written to {output}")


def export_peft(adapter: Adapter, output: str, base: Base) -> None:
    """Writes an adapter in PEFT's format.

    Args:
      adapter: configuration and parameters.
      output: the new directory.
      base: the model that it was trained on.

    Raises:
      UserError: if `output` exists.
    """
    peft_io.save_adapter(output, adapter, base=base)
    log(
        f"adapter of rank {adapter.config.rank} ({num_parameters(adapter.params):,} parameters) "
        f"written to {output}"
    )


def export_peft_directory(adapter: str, output: str, *, base: str = "") -> None:
    """Rewrites an adapter for PEFT and vLLM: plain LoRA in float32, its base by full path or name.

    Args:
      adapter: a directory in PEFT's format.
      output: the new directory.
      base: path or name of the model that it was trained on; empty: as recorded with the adapter.

    Raises:
      UserError: if the adapter or its base cannot be read, or `output` exists.
    """
    hf_export.check_new(output)
    if not peft_io.is_adapter(adapter):
        raise UserError(f"--adapter={adapter}: {peft_io.CONFIG} is not there")
    recorded = peft_io.base_of(adapter)
    path = base or recorded.path
    if not path:
        raise UserError(f"{adapter}: it does not say what its base is; name it with --base")
    try:
        hub.resolve(path)  # what was recorded may have been on the disk of another machine
    except UserError as error:
        raise UserError(f"{adapter}: its base: {error}; name another with --base") from error
    model = checkpoint.open_model(path)
    loaded = peft_io.load_adapter(adapter, model.config)
    # The recorded fingerprint is of the recorded base, not of one that the caller names.
    fingerprint = "" if base else recorded.fingerprint
    export_peft(loaded, output, Base(hub.recorded(path), fingerprint))


def of_run(workdir: str, *, allow_imports: bool = False) -> tuple[str, str]:
    """Base, by path or name, and adapter's directory of a run with a finished stage `instruct`.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names; an export does not need them.

    Raises:
      UserError: if this is no run directory, or has no adapter yet.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = read_config(rundir, need_extensions=False)
    adapter = run_base.adapter_path(rundir)
    if not adapter.exists():
        raise UserError(f"{workdir}: no adapter yet; its stage 'instruct' is not finished")
    return config.llm.path or str(run_base.base_path(config, rundir)), str(adapter)
