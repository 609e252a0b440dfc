"""LLaMA in a GGUF file: checks every tensor first, then reads slices, as of a directory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.gguf import reader
from xrec_jax.llm.io.gguf.config import from_metadata, with_rope_factors
from xrec_jax.llm.io.gguf.names import (
    ROPE_FACTORS,
    TENSORS,
    from_interleaved,
    is_rotated,
    tensor_name,
)
from xrec_jax.llm.io.gguf.reader import GgufFile, Tensor
from xrec_jax.llm.io.gguf.tokenizer import read_generation
from xrec_jax.llm.io.hf import HfModel
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layout import parameters

_CHUNK = 1 << 25  # bytes of dequantised rows of queries or keys at once
_EMBEDDING, _HEAD = TENSORS["embed/table"], TENSORS["head/table"]


@dataclasses.dataclass(frozen=True)
class GgufModel(HfModel):
    """A GGUF file with a whole LLaMA; its tensors are dequantised as they are read.

    Attributes:
      path: the file.
      config: shape of the model.
      generation: special token ids.
      dtype: "bfloat16" if all weights fit into it as stored, else "float32".
      tensors: all tensors of the model, by Hugging Face's name.
    """


@dataclasses.dataclass(frozen=True)
class Rotated:
    """A tensor of queries or keys, its rows in Hugging Face's order.

    Attributes:
      stored: the tensor in the file.
      head_dim: features of a head.
    """

    stored: Tensor
    head_dim: int

    @property
    def file(self) -> pathlib.Path:
        """Path of the file."""
        return self.stored.file

    @property
    def dtype(self) -> str:
        """Type of the stored numbers."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.stored.shape

    @property
    def array_dtype(self) -> np.dtype:
        """Dtype of the rows that are read."""
        return self.stored.array_dtype

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads rows in chunks, whole heads from the file; see `reader.Tensor.chunks`."""
        dim = self.head_dim
        step = max(1, _CHUNK // (4 * dim * self.shape[1])) * dim
        for first in range(start // dim * dim, stop, step):
            last = min(first + step, -(-stop // dim) * dim)
            stored = np.concatenate([rows for _, rows in self.stored.chunks(first, last)])
            begin, end = max(first, start), min(last, stop)
            yield begin, from_interleaved(stored, dim)[begin - first : end - first]


def open_model(path: Any) -> GgufModel:
    """Opens a GGUF file and checks presence and shape of every tensor.

    Args:
      path: the file, on a local disk.

    Raises:
      UserError: names the file and the faulty tensor or key.
    """
    file = reader.read_file(path)
    config = _config(file)
    tensors: dict[str, Tensor | Rotated] = {}
    known = {ROPE_FACTORS}
    for parameter in parameters(config):
        for layer, name in parameter.hf_names():
            stored = _checked(file, tensor_name(parameter, layer), parameter.hf_shape)
            rotated = is_rotated(parameter)
            tensors[name] = Rotated(stored, config.head_dim) if rotated else stored
            known.add(stored.name)
    for name in file.tensors:
        if name not in known:
            raise UserError(
                f"{file.path}: tensor {name[:80]!r} is none of a LLaMA's with {config.num_layers} "
                "layers; the model would not be the one that was stored"
            )
    generation = read_generation(file.metadata, str(file.path))
    return GgufModel(file.path, config, generation, _dtype(tensors), tensors)


def _config(file: GgufFile) -> LlamaConfig:
    embedding = file.tensors.get(_EMBEDDING)
    config = from_metadata(
        file.metadata,
        vocab_size=embedding.shape[0] if embedding else 1,
        tied=_HEAD not in file.tensors,
        where=str(file.path),
    )
    if ROPE_FACTORS not in file.tensors:
        return config
    factors = _checked(file, ROPE_FACTORS, (config.head_dim // 2,)).read()
    return with_rope_factors(config, factors, where=str(file.path))


def _checked(file: GgufFile, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the file, of the shape that its metadata ask for."""
    if name not in file.tensors:
        raise UserError(f"{file.path}: tensor {name!r} is missing")
    tensor = file.tensors[name]
    if tensor.shape != shape:
        raise UserError(
            f"{file.path}: tensor {name!r} has shape {list(tensor.shape)}; its metadata ask for "
            f"{list(shape)}"
        )
    return tensor


def _dtype(tensors: Mapping[str, Tensor | Rotated]) -> str:
    """Narrowest dtype that holds all weights: writers keep the vectors of any model in float32."""
    for tensor in tensors.values():
        if tensor.dtype == "BF16":
            continue
        if len(tensor.shape) > 1:
            return "float32"
        for _, values in tensor.chunks(0, tensor.shape[0]):
            if (values.astype(ml_dtypes.bfloat16).astype(values.dtype) != values).any():
                return "float32"
    return "bfloat16"
