"""Writer of GGUF files for llama.cpp and Ollama, tensor by tensor and atomic."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.storage.files import is_local, remove_leftovers, write_atomic
from xrec_jax.llm.io.gguf.config import rope_factors, to_metadata
from xrec_jax.llm.io.gguf.names import (
    ARCHITECTURE,
    ROPE_FACTORS,
    TYPE,
    Key,
    is_rotated,
    tensor_name,
    to_interleaved,
)
from xrec_jax.llm.io.hf import silent
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layout import Parameter, Source, parameters

# Type of the matrices by `--outtype`, and its number as `general.file_type`.
OUT_TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "q8_0": ("Q8_0", 7)}
_BLOCK = 32  # numbers of a row that share a scale in Q8_0
_LARGEST = float(np.finfo(np.float16).max)


def check_new_file(path: str | pathlib.Path) -> pathlib.Path:
    """Checks that a path is local and free for a new file; returns it absolute.

    Raises:
      UserError: if it is remote or exists.
    """
    if not is_local(path):
        raise UserError(f"{path}: the output must be on a local disk")
    path = pathlib.Path(os.path.abspath(path))
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give the name of a new file, such as model.gguf")
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: is there already; give a new file, nothing is overwritten")
    return path


def check_out_type(name: str) -> None:
    """Checks the type of the matrices.

    Raises:
      UserError: if it is not a key of `OUT_TYPES`.
    """
    if name not in OUT_TYPES:
        raise UserError(f"outtype {name!r} is not supported{did_you_mean(name, OUT_TYPES)}")


def save_model(
    path: str | pathlib.Path,
    source: Source,
    config: LlamaConfig,
    tokenizer: Mapping[str, Any],
    *,
    out_type: str = "f16",
    name: str = "",
    advance: Callable[[int], None] = silent,
) -> None:
    """Writes a model as a GGUF file in one process, holding one tensor at a time.

    Vectors are stored in float32, whatever the type of the matrices. A matrix whose rows are no
    multiple of 32 cannot be Q8_0 and is F16.

    Args:
      path: the new file; it appears once everything is written.
      source: source of the arrays.
      config: shape of the model.
      tokenizer: metadata of the tokenizer; see `tokenizer_export.to_metadata`.
      out_type: type of the matrices, a key of `OUT_TYPES`.
      name: name of the model, as llama.cpp shows it.
      advance: progress callback, called with the number of bytes written.

    Raises:
      UserError: if the file exists or cannot be written, or a number does not fit its type.
    """
    import gguf

    if jax.process_count() > 1:
        raise UserError("export-gguf runs in one process; start it on one host only")
    check_out_type(out_type)
    final = check_new_file(path)
    matrix, number = OUT_TYPES[out_type]
    writer = gguf.GGUFWriter(None, ARCHITECTURE)  # writes the key of the architecture itself
    head: dict[str, Any] = {Key.TYPE: TYPE, Key.FILE_TYPE: number}
    if name:
        head[Key.NAME] = name
    if matrix == "Q8_0":
        head[Key.QUANTIZATION_VERSION] = gguf.GGML_QUANT_VERSION
    for key, value in (head | to_metadata(config) | dict(tokenizer)).items():
        _add(writer, key, value)

    # Names, shapes and types precede all numbers in the file.
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for parameter, layer in _tensors(config):
        writer.add_tensor_info(
            tensor_name(parameter, layer),
            parameter.hf_shape,
            np.dtype(np.float32),  # of the numbers, whatever blocks hold them
            _bytes(parameter, matrix),
            raw_dtype=gguf.GGMLQuantizationType[_kind(parameter, matrix)],
        )

    def write(temporary: str) -> None:
        try:
            writer.write_header_to_file(pathlib.Path(temporary))
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors)
            for parameter, layer in _tensors(config):
                tensor = _in_file_order(source.tensor(parameter, layer), parameter, config)
                where = f"{final}: tensor {tensor_name(parameter, layer)!r}"
                stored = _encoded(tensor, _kind(parameter, matrix), where)
                writer.write_tensor_data(stored)
                advance(stored.nbytes)
        finally:
            writer.close()

    remove_leftovers(final)
    write_atomic(final, write)


def total_bytes(config: LlamaConfig, out_type: str) -> int:
    """Bytes of all tensors in a file."""
    matrix, _ = OUT_TYPES[out_type]
    return sum(_bytes(parameter, matrix) for parameter, _ in _tensors(config))


def _tensors(config: LlamaConfig) -> Iterator[tuple[Parameter, int | None]]:
    """Every tensor of the file, layer after layer, as an imported checkpoint reads fastest."""
    stacked = [p for p in parameters(config) if p.layers is not None]
    for parameter in parameters(config):
        if parameter.layers is None:
            yield parameter, None
        elif parameter is stacked[0]:
            for layer in range(config.num_layers):
                yield from ((each, layer) for each in stacked)


def _kind(parameter: Parameter, matrix: str) -> str:
    """Type of a tensor in the file."""
    if len(parameter.hf_shape) == 1:
        return "F32"
    return "F16" if matrix == "Q8_0" and parameter.hf_shape[-1] % _BLOCK else matrix


def _bytes(parameter: Parameter, matrix: str) -> int:
    """Bytes of a tensor in the file."""
    import gguf

    kind = gguf.GGMLQuantizationType[_kind(parameter, matrix)]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(parameter.hf_shape) // numbers * size


def _in_file_order(tensor: np.ndarray, parameter: Parameter, config: LlamaConfig) -> np.ndarray:
    """A tensor of ours as Hugging Face stores it, queries and keys in the order of GGUF."""
    rows = np.asarray(tensor.T if parameter.transposed else tensor, np.float32)
    return to_interleaved(rows, config.head_dim) if is_rotated(parameter) else rows


def _encoded(tensor: np.ndarray, kind: str, where: str) -> np.ndarray:
    """Numbers of a tensor in the type of the file: bytes of blocks for Q8_0.

    Raises:
      UserError: if a number is not finite in that type.
    """
    import gguf

    # A scale of Q8_0 is a 127th of the largest number of its block, in float16.
    limit = {"F32": float("inf"), "F16": _LARGEST, "Q8_0": 127 * _LARGEST}[kind]
    largest = float(np.abs(tensor).max())
    if not largest <= limit or largest == float("inf"):
        advice = "; write it with --outtype=f32" if np.isfinite(largest) else ""
        raise UserError(f"{where} would hold {largest:.4g}, which is no number of {kind}{advice}")
    if kind == "Q8_0":
        return gguf.quantize(np.ascontiguousarray(tensor), gguf.GGMLQuantizationType.Q8_0)
    return np.ascontiguousarray(tensor, np.float16 if kind == "F16" else np.float32)


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a value of the metadata, whole numbers as uint32 and others as float32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
