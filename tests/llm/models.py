"""Tiny random checkpoints in Hugging Face's layout, written with the `safetensors` package."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from xrec_jax.llm.model.config import LlamaConfig, to_hf
from xrec_jax.llm.model.layout import parameters

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float16": np.float16}

# Sizes differ from one another, so that no swapped axis goes unnoticed.
CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)


def tensors(
    config: LlamaConfig = CONFIG, dtype: str = "float32", seed: int = 0
) -> dict[str, np.ndarray]:
    """Random weights by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=parameter.hf_shape).astype(DTYPES[dtype])
        for parameter in parameters(config)
        for _, name in parameter.hf_names()
    }


def write(
    path: pathlib.Path,
    config: LlamaConfig = CONFIG,
    *,
    dtype: str = "float32",
    shards: int = 1,
    weights: dict[str, np.ndarray] | None = None,
    **more: Any,
) -> dict[str, np.ndarray]:
    """Writes a checkpoint of one or several files; returns its weights.

    Args:
      path: the directory.
      config: the model.
      dtype: of random weights.
      shards: files; the tensors are dealt out in turn.
      weights: default: random ones.
      **more: keys for `config.json`.
    """
    path.mkdir(parents=True, exist_ok=True)
    weights = tensors(config, dtype) if weights is None else weights
    (path / "config.json").write_text(json.dumps(to_hf(config, dtype=dtype, **more)))
    if shards == 1:
        save_file(weights, path / "model.safetensors")
        return weights
    index: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(weights.items())[number::shards])
        save_file(part, path / name)
        index |= dict.fromkeys(part, name)
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    return weights


def rewrite(path: pathlib.Path, **changed: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
