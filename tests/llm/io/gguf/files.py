"""Tiny GGUF files, written by the `gguf` package from weights in Hugging Face's names and order."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

from tests.llm import models
from tests.llm.io.gguf import blocks
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.rope import inverse_frequencies

# Rows of 64 and 96 numbers are whole blocks of 32.
CONFIG = dataclasses.replace(
    models.CONFIG, hidden_size=64, intermediate_size=96, num_layers=2, head_dim=16
)
# Rows of 256 are whole blocks of K-quants.
WIDE = dataclasses.replace(
    CONFIG, hidden_size=256, intermediate_size=256, num_heads=8, head_dim=32, num_layers=1
)


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's converter orders them: the two of a pair adjoin."""
    order = [
        head * head_dim + half * head_dim // 2 + pair
        for head in range(len(rows) // head_dim)
        for pair in range(head_dim // 2)
        for half in range(2)
    ]
    return rows[order]


def name_of(hf_name: str) -> str:
    """Name of a tensor, as the `gguf` package knows it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 9)
    return str(names.get_name(hf_name, try_suffixes=(".weight",)))


def write(
    path: pathlib.Path,
    config: LlamaConfig = CONFIG,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    dtype: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    change: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> dict[str, np.ndarray]:
    """Writes a model; returns the weights that the file holds, as float32, by Hugging Face's names.

    Args:
      path: the file.
      config: the model.
      weights: default: random ones. K-quants, which the package does not write, are random blocks
        in any case.
      dtype: type of the matrices; vectors are float32.
      metadata: keys to add or, as None, to leave out.
      change: called with the writer before the file is written.
    """
    writer = gguf.GGUFWriter(None, "llama")
    for key, value in (_metadata(config) | dict(metadata or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    stored: dict[str, np.ndarray] = {}
    for name, tensor in dict(models.tensors(config) if weights is None else weights).items():
        tensor = np.asarray(tensor, np.float32)
        kind = dtype if tensor.ndim > 1 else "F32"
        data, stored[name] = _encoded(tensor, kind, seed=len(stored))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            data = interleaved(data, config.head_dim)
        raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name_of(name), np.ascontiguousarray(data), raw_dtype=raw)
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    change(writer)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def rope_factors(config: LlamaConfig) -> np.ndarray:
    """Factors of Llama 3's scaling as llama.cpp's converter computes them."""
    scaling = config.rope_scaling
    assert scaling is not None
    result = []
    for frequency in inverse_frequencies(dataclasses.replace(config, rope_scaling=None)):
        length = 2 * np.pi / float(frequency)
        share = scaling.original_max_positions / length
        if share > scaling.high_freq_factor:
            result.append(1.0)
        elif share < scaling.low_freq_factor:
            result.append(scaling.factor)
        else:
            borders = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (share - scaling.low_freq_factor) / borders
            result.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(result, np.float32)


def _metadata(config: LlamaConfig) -> dict[str, Any]:
    return {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
    }


def _encoded(tensor: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored data, `[rows, bytes]` of blocks, and the numbers they mean."""
    if kind == "F32":
        return tensor, tensor
    if kind == "F16":
        return tensor.astype(np.float16), tensor.astype(np.float16).astype(np.float32)
    if kind.endswith("_K"):
        rows, columns = tensor.shape
        data = blocks.random(kind, rows, columns, seed)
        return data, blocks.values(kind, data).astype(np.float32)
    kind_of = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(tensor, kind_of)
    return data, gguf.dequantize(data, kind_of)
